"""Weights in files: read safely, written as safetensors, fitted into a model.

Nothing here unpickles code: ``.pt`` files are read with ``weights_only=True``, finished models are safetensors.
"""

import json
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from w2skd.errors import CheckpointError
from w2skd.platform.files import write_atomically
from w2skd.recipe.schema import Recipe
from w2skd.weights.fit import describe_misfit, fit
from w2skd.weights.unpickle import load_pt

FORMAT = 1
"""Version of training checkpoints."""

StateDict = Mapping[str, Tensor]

_AVERAGED_KEYS = ("model_ema", "state_dict_ema")
_PLAIN_KEYS = ("state_dict", "model", "model_state_dict", "module", "net")
"""Where the checkpoints of torchvision's references, timm, DeiT, Lightning, DeepSpeed and tutorials keep weights."""

_TOLD = 3
"""Runs that an error names before it only says that there are more."""


@dataclass(frozen=True)
class Weights:
    """A model's weights and what is known of them.

    Attributes:
        path: the file they came from.
        state: name -> tensor, on the CPU.
        recipe: of the run that made them, as plain values, if the file holds it.
        role: ``teacher`` or ``student`` in that recipe.
        details: whatever else the run noted: classes, metrics, step. Of another tool's checkpoint: ``layout``, the key
            under which it kept these weights, and ``arch`` if it says.
    """

    path: Path
    state: StateDict
    recipe: Mapping[str, Any] | None = None
    role: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def model_name(self) -> str | None:
        """The architecture's name in the catalog, if the file says."""
        return None if self.recipe is None else self.recipe[self.role or "student"]["model"]


def save_model(path: Path, state: StateDict, recipe: Recipe, role: str, details: Mapping[str, Any]) -> None:
    """Write finished weights with the recipe in the file's metadata, so that ``evaluate`` needs nothing else."""
    # Clones, since safetensors refuses tensors that share memory.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    metadata = {"w2skd": json.dumps({"recipe": recipe.model_dump(mode="json"), "role": role, **details})}
    write_atomically(path, to_safetensors(tensors, metadata))


def load_weights(path: Path) -> Weights:
    """Read a model's weights from a finished run, a ``model.safetensors``, or a ``.pt`` file of whatever suffix.

    A file of another tool may be a bare state dict, or keep one under a usual key. Of a training checkpoint the
    averaged weights are taken where there are any, as a validation does.

    Raises:
        CheckpointError: the file is missing, cut off, carries code, or holds no weights.
    """
    file = path
    if path.is_dir():
        file = path / "model.safetensors"
        if not file.exists():
            state = "not finished yet" if (path / "status.json").exists() else "not a run directory"
            inside = sorted(found.parent for depth in ("*", "*/*") for found in path.glob(f"{depth}/model.safetensors"))
            named = ", ".join(str(run) for run in inside[:_TOLD]) + (", ..." if len(inside) > _TOLD else "")
            raise CheckpointError(
                f"{path}: {state}, model.safetensors is missing" + (f"; finished runs in it: {named}" if inside else "")
            )
    if not file.exists():
        raise CheckpointError(f"{file}: no such checkpoint")
    if file.suffix == ".safetensors":
        return _load_safetensors(file)
    values = load_pt(file)
    if is_checkpoint(values):
        check_archive(file, values)
        engine = values["engine"]
        weights = engine["model"] if engine["average"] is None else _averaged(engine["average"])
        return Weights(file, weights, values.get("recipe"), values.get("role"), dict(values.get("details") or {}))
    if _is_state_dict(values):
        return Weights(file, _averaged(values) if "n_averaged" in values else values)
    if isinstance(values, dict):
        for key in (*_AVERAGED_KEYS, *_PLAIN_KEYS):
            found = values.get(key)
            if _is_state_dict(found):
                details = {"layout": key} | ({"arch": values["arch"]} if isinstance(values.get("arch"), str) else {})
                return Weights(file, _averaged(found) if "n_averaged" in found else found, details=details)
    raise CheckpointError(
        f"{file}: holds no weights that w2skd knows: neither its own checkpoint, nor a state dict, nor one under "
        f"{', '.join((*_PLAIN_KEYS, *_AVERAGED_KEYS))}"
    )


def load_into(model: nn.Module, weights: Weights, *, expected: str) -> None:
    """Copy weights into a model of the architecture named `expected`, all of them or none.

    Names may carry the prefix of a wrapper, see `w2skd.weights.fit.fit`; the model keeps its own precision.

    Raises:
        CheckpointError: names or shapes differ; the message says the likely reason.
    """
    found = fit(model, weights.state)
    if not found.is_whole:
        raise CheckpointError(f"{weights.path}: {describe_misfit(found, expected, _made_for(weights, expected))}")
    state = OrderedDict(found.state)
    # By their names they are of the versions that the modules have now; MNASNet refuses a state that has no version.
    state._metadata = found.own._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state)


def number_of_classes(model: nn.Module, weights: Weights, classes: int) -> int | None:
    """How many classes the head of a checkpoint has.

    Args:
        model: of the checkpoint's architecture, for `classes` classes; it stays as it is.
        weights: the checkpoint.
        classes: any number that the model was built for.

    Returns:
        None when the weights don't fit the model for other reasons than their number of classes.
    """
    found = fit(model, weights.state)
    if found.is_whole:
        return classes
    theirs, ours = found.head_classes or (None, None)
    return theirs if ours == classes else None


def _made_for(weights: Weights, expected: str) -> str | None:
    arch = weights.details.get("arch")
    of_the_same_name = arch == expected.rpartition(":")[2].partition(".")[0]  # without library and timm's tag
    return weights.model_name if arch is None or of_the_same_name else str(arch)


def is_checkpoint(values: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(values, dict) and "format" in values and "engine" in values


def check_archive(path: Path, values: dict[str, Any]) -> None:
    """Refuse other versions, and bytes that are not those that were written: torch writes sums but ignores them."""
    if values["format"] != FORMAT:
        raise CheckpointError(f"{path}: format {values['format']}, this version reads {FORMAT}")
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except Exception as error:  # whatever a damaged header leads to
        raise CheckpointError(f"{path}: damaged ({error})") from None
    if bad is not None:
        raise CheckpointError(f"{path}: damaged (wrong checksum of {bad})")


def _load_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = json.loads((file.metadata() or {}).get("w2skd", "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or cut off ({error})") from None
    if not isinstance(metadata, dict):
        return Weights(path, state)
    recipe, role = metadata.pop("recipe", None), metadata.pop("role", None)
    return Weights(path, state, recipe, role, metadata)


def _averaged(state: StateDict) -> dict[str, Tensor]:
    """The weights inside the state dict of `torch.optim.swa_utils.AveragedModel`."""
    return {name.removeprefix("module."): tensor for name, tensor in state.items() if name != "n_averaged"}


def _is_state_dict(values: Any) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(values, dict) and bool(values) and all(isinstance(value, Tensor) for value in values.values())
