"""How somebody else's state dict fits a model: what its tensors are called there, and why if it doesn't."""

import copy
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
"""What names gain by DistributedDataParallel, by torch.compile, and by other people's trainers."""

_COUNTER = "num_batches_tracked"
"""BatchNorm's count of batches, which older files lack; without a cumulative average nothing depends on it."""

_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
"""The classifiers beside GoogLeNet's and Inception's own, which only their authors' training used."""

_DOTTED = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)")
"""As torchvision's DenseNet files still write what is ``norm1`` now, since no module's name may hold a dot."""

_DIALECTS = {
    "timm": (r"blocks\.0\.attn\.qkv\.weight", r"stages\.0\.blocks\.0\.", r"conv_stem\.weight", r"s1\.b1\.conv1\."),
    "torchvision": (r"encoder\.layers\.encoder_layer_0\.", r"features\.\d+\.", r"trunk_output\.block1\."),
    "transformers": (
        r"(\w+\.)?encoder\.layer\.0\.",
        r"(\w+\.)?encoder\.stages\.0\.",
        r"(\w+\.)?embeddings\.|.*embedder\.",
    ),
}
"""Library -> beginnings of names that only its models have; what two libraries call alike tells nothing."""

_DENSE = re.compile(
    r"rpn\.|roi_heads\.|backbone\.(body|fpn)\.|head\.(classification|regression)_head\.|aux_classifier\."
)
"""Beginnings of names in detectors and segmentation models."""

_NAMED = 3


@dataclass(frozen=True)
class Fit:
    """A state dict, held against a model's.

    Attributes:
        state: the tensors under the model's names, as far as these could be found.
        own: the model's own state dict.
        missing: names that only the model has.
        unexpected: names that only the file has.
        other_shape: names that both have, with tensors of different shapes.
    """

    state: dict[str, Tensor]
    own: Mapping[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    other_shape: list[str]

    @property
    def is_whole(self) -> bool:
        """Whether every tensor has its place."""
        return not (self.missing or self.unexpected or self.other_shape)

    @property
    def head_classes(self) -> tuple[int, int] | None:
        """Numbers of classes in the file and in the model, where nothing else differs between them.

        The tensors that differ do so in their first dimension only, all from the same number to the same other one.
        """
        if self.missing or self.unexpected or not self.other_shape:
            return None
        shapes = [(self.state[name].shape, self.own[name].shape) for name in self.other_shape]
        if any(not theirs or not ours or theirs[1:] != ours[1:] for theirs, ours in shapes):
            return None
        counts = {(theirs[0], ours[0]) for theirs, ours in shapes}
        return counts.pop() if len(counts) == 1 else None


def fit(model: nn.Module, state: Mapping[str, Tensor]) -> Fit:
    """Hold a state dict against a model, which stays as it is.

    Names lose the prefixes of wrappers where all of them share one and more of them fit without it, and become what
    the model's modules call now what an older version of them wrote. Auxiliary classifiers that the model doesn't have
    are left out; counters of BatchNorm that the file doesn't have are filled with the model's own.
    """
    own = model.state_dict()
    state = _without_wrappers({name: tensor for name, tensor in state.items() if name != "n_averaged"}, own)
    state = {_DOTTED.sub(r"\1", name): tensor for name, tensor in state.items()}
    if not own.keys() <= state.keys():
        state = _as_modules_call_it(model, state, own)
    state = {name: tensor for name, tensor in state.items() if name in own or not name.startswith(_AUXILIARY)}
    state |= {name: own[name] for name in own if name not in state and _is_counter_of(name, state)}
    return Fit(
        state,
        own,
        missing=[name for name in own if name not in state],
        unexpected=[name for name in state if name not in own],
        other_shape=[name for name in own if name in state and own[name].shape != state[name].shape],
    )


def describe_misfit(found: Fit, expected: str, made_for: str | None) -> str:
    """One line that says what differs, and what is likely the reason.

    Args:
        found: not whole.
        expected: the model's name.
        made_for: the name of the model that the file says it is of, if it does.
    """
    if made_for is not None and made_for != expected:
        return f"made for {made_for}, not for {expected}"
    if found.head_classes is not None:
        theirs, ours = found.head_classes
        return f"its {expected} has {theirs} classes, the data has {ours}"
    if not found.missing and not found.unexpected and len(found.other_shape) < _NAMED:
        name = found.other_shape[0]
        return f"does not fit {expected}: {name} is {_shape(found.state[name])}, expected {_shape(found.own[name])}"
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
        for kind, names in (
            ("missing", found.missing),
            ("unexpected", found.unexpected),
            ("of another shape", found.other_shape),
        )
        if names
    ]
    reason = _likely_reason(found)
    return f"not the weights of {expected}: {'; '.join(parts)}{f'; probably {reason}' if reason else ''}"


def _likely_reason(found: Fit) -> str | None:
    prefix = _hidden_prefix(found.unexpected, found.missing)
    if prefix is not None:
        return f"weights whose names begin with '{prefix}', beside others: save those alone, without it"
    if any(_DENSE.match(name) for name in found.unexpected):
        return "a detector or a segmentation model, which holds no classifier"
    theirs, ours = _dialect(found.unexpected), _dialect(found.own)
    if theirs == "transformers":
        return "a model of Hugging Face's transformers, which names its layers in another way"
    if theirs is not None and ours is not None and theirs != ours:
        return f"a model of {theirs}, which names its layers in another way: try '{theirs}:NAME' as the model"
    head = _module_of(list(found.own)[-1])
    if found.missing and not found.other_shape and all(_module_of(name) == head for name in found.missing):
        return "a backbone without its classifier" + (", or with another one" if found.unexpected else "")
    shared = len(found.own) - len(found.missing)
    differing = len(found.missing) + len(found.unexpected) + len(found.other_shape)
    if 2 * shared >= min(len(found.own), len(found.state)) and differing > _NAMED:
        return "another model of the same family, such as a deeper or a wider one"
    if not shared and len(found.own) > _NAMED and len(found.state) > _NAMED:
        return "those of another model: name the one that they are of"
    return None


def _without_wrappers(state: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    best, fitting = state, len(own & state.keys())
    while prefix := next((word for word in _WRAPPERS if state and all(name.startswith(word) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        if len(own & state.keys()) > fitting:
            best, fitting = state, len(own & state.keys())
    return best


def _as_modules_call_it(model: nn.Module, state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let a copy of the model read the state: modules such as those of torchvision's ViT know their former names."""
    misshapen = {name for name in state if name in own and own[name].shape != state[name].shape}
    readable = {name: tensor for name, tensor in state.items() if name not in misshapen}
    try:
        shadow = copy.deepcopy(model).to("meta")
        unexpected = set(shadow.load_state_dict(readable, strict=False, assign=True).unexpected_keys) | misshapen
    except (RuntimeError, TypeError, ValueError):  # misshapen under a former name, not copyable, asks for a version
        return state
    read = {name: tensor for name, tensor in shadow.state_dict().items() if not tensor.is_meta}
    # BatchNorm adds its counters, whatever else is there of it: those are no part of the file.
    read = {name: read[name] for name in read if name in state or name.rpartition(".")[2] != _COUNTER}
    return read | {name: state[name] for name in state if name in unexpected}


def _is_counter_of(name: str, state: Collection[str]) -> bool:
    module, _, last = name.rpartition(".")
    return last == _COUNTER and f"{module}.running_mean" in state


def _hidden_prefix(unexpected: Collection[str], missing: Collection[str]) -> str | None:
    """A prefix under which the file has everything that is missing, and something else beside it."""
    if len(missing) < 2:
        return None
    first = next(iter(missing))
    for name in unexpected:
        prefix = name.removesuffix(first)
        if prefix != name and prefix.endswith(".") and all(f"{prefix}{other}" in unexpected for other in missing):
            return prefix
    return None


def _dialect(names: Collection[str]) -> str | None:
    for library, patterns in _DIALECTS.items():
        if any(re.match(pattern, name) for pattern in patterns for name in names):
            return library
    return None


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
