"""Fit a foreign state dict to a model: rename its tensors, or explain why they don't fit."""

import copy
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
"""Prefixes that DistributedDataParallel, torch.compile and other trainers add to names."""

_COUNTER = "num_batches_tracked"
"""BatchNorm's count of batches, missing from older files; nothing depends on it unless averaging is cumulative."""

_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
"""Auxiliary classifiers of GoogLeNet and Inception, used only in their authors' training."""

_DOTTED = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)")
"""Former names in torchvision's DenseNet files: ``norm.1`` is now ``norm1``, as module names must not contain dots."""

_LEAVINGS = re.compile(
    r"(.*\.)?(total_ops|total_params|_extra_state|num_updates|n_averaged)|initted|step|decay|"
    r".*\.(activation_post_process|weight_fake_quant|act_fake_quant)\..*"
)
"""Entries that FLOP counters, averaging wrappers, Transformer Engine and quantisation tools add to state dicts."""

_DIALECTS = {
    "timm": (r"blocks\.0\.attn\.qkv\.weight", r"stages\.0\.blocks\.0\.", r"conv_stem\.weight", r"s1\.b1\.conv1\."),
    "torchvision": (r"encoder\.layers\.encoder_layer_0\.", r"features\.\d+\.", r"trunk_output\.block1\."),
    "transformers": (
        r"(\w+\.)?encoder\.layer\.0\.",
        r"(\w+\.)?encoder\.stages\.0\.",
        r"(\w+\.)?embeddings\.|.*embedder\.",
    ),
}
"""Library -> patterns at the start of tensor names that only its models have."""

_DENSE = re.compile(
    r"rpn\.|roi_heads\.|backbone\.(body|fpn)\.|head\.(classification|regression)_head\.|aux_classifier\."
)
"""Start of tensor names in detectors and segmentation models."""

_LISTED = 3
"""Maximum number of tensor names of each kind that an error message lists."""


@dataclass(frozen=True)
class Fit:
    """A state dict compared with a model's.

    Attributes:
        state: the tensors, renamed to the model's names where possible.
        own: the model's own state dict.
        missing: names that only the model has.
        unexpected: names that only the file has.
        other_shape: names that both have, with tensors of different shapes.
        ignored: entries of the file that tools added and no model uses.
    """

    state: dict[str, Tensor]
    own: Mapping[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    other_shape: list[str]
    ignored: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether all names and shapes match."""
        return not (self.missing or self.unexpected or self.other_shape)

    @property
    def head_classes(self) -> tuple[int, int] | None:
        """Numbers of classes in the file and in the model, if these are the only difference, else None.

        All tensors of different shape must differ in their first dimension only, by the same two sizes.
        """
        if self.missing or self.unexpected or not self.other_shape:
            return None
        shapes = [(self.state[name].shape, self.own[name].shape) for name in self.other_shape]
        if any(not theirs or not ours or theirs[1:] != ours[1:] for theirs, ours in shapes):
            return None
        counts = {(theirs[0], ours[0]) for theirs, ours in shapes}
        return counts.pop() if len(counts) == 1 else None


def fit(model: nn.Module, state: Mapping[str, Tensor]) -> Fit:
    """Compare a state dict with a model's, after renaming its tensors; the model stays unchanged.

    A wrapper's prefix is removed if all names share it and more of them fit without it. Names from older versions of
    the model's modules become the current ones. Auxiliary classifiers that the model lacks are dropped, and so is what
    tools such as FLOP counters added. BatchNorm counters that the file lacks are copied from the model.
    """
    own = model.state_dict()
    ignored = [name for name in state if name not in own and _LEAVINGS.fullmatch(name)]
    state = _without_wrappers({name: tensor for name, tensor in state.items() if name not in set(ignored)}, own)
    state = {_DOTTED.sub(r"\1", name): tensor for name, tensor in state.items()}
    if not own.keys() <= state.keys():
        state = _with_current_names(model, state, own)
    state = {name: tensor for name, tensor in state.items() if name in own or not name.startswith(_AUXILIARY)}
    for name in own:
        module, _, last = name.rpartition(".")
        if last == _COUNTER and f"{module}.running_mean" in state:
            state.setdefault(name, own[name])
    return Fit(
        state,
        own,
        missing=[name for name in own if name not in state],
        unexpected=[name for name in state if name not in own],
        other_shape=[name for name in own if name in state and own[name].shape != state[name].shape],
        ignored=ignored,
    )


def describe_misfit(found: Fit, expected: str, made_for: str | None) -> str:
    """Describe in one line what differs, and the likely reason.

    Args:
        found: a fit that is not whole.
        expected: the model's name.
        made_for: name of the model that the file was saved from, if the file contains it.
    """
    if made_for is not None and made_for != expected:
        return f"made for {made_for}, not for {expected}"
    if found.head_classes is not None:
        theirs, ours = found.head_classes
        return f"its {expected} has {theirs} classes, the data has {ours}"
    if not found.missing and not found.unexpected and len(found.other_shape) < _LISTED:
        name = found.other_shape[0]
        theirs_shape, our_shape = tuple(found.state[name].shape), tuple(found.own[name].shape)
        return f"does not fit {expected}: {name} is {theirs_shape}, expected {our_shape}"
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''})"
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
        return f"a larger file whose '{prefix}' part has these weights: save that part alone, without the prefix"
    if any(_DENSE.match(name) for name in found.unexpected):
        return "a detector or a segmentation model, which has no classifier"
    theirs, ours = _dialect(found.unexpected), _dialect(found.own)
    if theirs == "transformers":
        return "a model of Hugging Face's transformers, which names its layers differently"
    if theirs is not None and ours is not None and theirs != ours:
        return f"a model of {theirs}, which names its layers differently: try '{theirs}:NAME' as the model"
    head = _module_of(list(found.own)[-1])
    if found.missing and not found.other_shape and all(_module_of(name) == head for name in found.missing):
        return "a backbone without its classifier" + (", or with a different one" if found.unexpected else "")
    shared = len(found.own) - len(found.missing)
    differing = len(found.missing) + len(found.unexpected) + len(found.other_shape)
    if 2 * shared >= min(len(found.own), len(found.state)) and differing > _LISTED:
        return "another model of the same family, such as a deeper or wider one"
    if not shared and len(found.own) > _LISTED and len(found.state) > _LISTED:
        return "the weights of another model: set the model's name to theirs"
    return None


def _without_wrappers(state: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    best, fitting = state, len(own & state.keys())
    while prefix := next((word for word in _WRAPPERS if state and all(name.startswith(word) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        if len(own & state.keys()) > fitting:
            best, fitting = state, len(own & state.keys())
    return best


def _with_current_names(model: nn.Module, state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Load the state into a copy of the model: some modules, such as torchvision's ViT, convert former names."""
    misshapen = {name for name in state if name in own and own[name].shape != state[name].shape}
    readable = {name: tensor for name, tensor in state.items() if name not in misshapen}
    try:
        shadow = copy.deepcopy(model).to("meta")
        unexpected = set(shadow.load_state_dict(readable, strict=False, assign=True).unexpected_keys) | misshapen
    except (RuntimeError, TypeError, ValueError):  # wrong shape under a former name, not copyable, version required
        return state
    read = {name: tensor for name, tensor in shadow.state_dict().items() if not tensor.is_meta}
    # BatchNorm adds its counters to every state, so those may not come from the file.
    read = {name: read[name] for name in read if name in state or name.rpartition(".")[2] != _COUNTER}
    return read | {name: state[name] for name in state if name in unexpected}


def _hidden_prefix(unexpected: Collection[str], missing: Collection[str]) -> str | None:
    """Return a prefix under which the file has everything that is missing, among other tensors."""
    if len(missing) < 2:
        return None
    first = next(iter(missing))
    prefixes = (name.removesuffix(first) for name in unexpected if name.endswith(f".{first}"))
    return next((prefix for prefix in prefixes if all(f"{prefix}{name}" in unexpected for name in missing)), None)


def _dialect(names: Collection[str]) -> str | None:
    """Return the library whose models have such names, if any."""
    patterns = {library: re.compile("|".join(each)) for library, each in _DIALECTS.items()}
    return next((library for library, pattern in patterns.items() if any(map(pattern.match, names))), None)


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]
