"""Read, write and load model weights.

No pickled code is executed: ``.pt`` files are read with ``weights_only=True``, finished models are safetensors.
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
"""Format version of training checkpoints."""

StateDict = Mapping[str, Tensor]

_AVERAGED_KEYS = ("model_ema", "state_dict_ema")
_PLAIN_KEYS = ("state_dict", "model", "model_state_dict", "module", "net")
"""Keys of the weights in checkpoints of torchvision's references, timm, DeiT, Lightning, DeepSpeed and tutorials."""

_LISTED_RUNS = 3
"""Maximum number of runs that an error message lists."""


@dataclass(frozen=True)
class Weights:
    """A model's weights and their metadata.

    Attributes:
        path: the file that they were read from.
        state: name -> tensor, on the CPU.
        recipe: recipe of the run that trained them, as plain values; None if the file has none.
        role: ``teacher`` or ``student`` in that recipe.
        details: other metadata of the run: classes, metrics, step. For another tool's checkpoint: ``layout``, the key
            of these weights in the file, and ``arch`` if the file has it.
    """

    path: Path
    state: StateDict
    recipe: Mapping[str, Any] | None = None
    role: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def model_name(self) -> str | None:
        """Name of the model in the recipe, or None without a recipe."""
        return None if self.recipe is None else self.recipe[self.role or "student"]["model"]


def save_model(path: Path, state: StateDict, recipe: Recipe, role: str, details: Mapping[str, Any]) -> None:
    """Write final weights as safetensors, with the recipe in the metadata so that ``evaluate`` needs no other file."""
    # Tensors are cloned because safetensors rejects shared memory.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    metadata = {"w2skd": json.dumps({"recipe": recipe.model_dump(mode="json"), "role": role, **details})}
    write_atomically(path, to_safetensors(tensors, metadata))


def load_weights(path: Path) -> Weights:
    """Read a model's weights from a finished run's directory, a ``.safetensors`` file, or a ``.pt`` file of any suffix.

    A file of another tool may be a bare state dict, or contain one under a common key. From a training checkpoint, the
    averaged weights are read if it has any, as in validation.

    Raises:
        CheckpointError: the file is missing, truncated, contains code, or contains no weights.
    """
    file = _file_of_run(path) if path.is_dir() else path
    if not file.exists():
        raise CheckpointError(f"{file}: no such checkpoint")
    if file.suffix == ".safetensors":
        return _load_safetensors(file)
    values = load_pt(file)
    if is_checkpoint(values):
        check_archive(file, values)
        engine = values["engine"]
        state = _without_average(engine["average"] or engine["model"])
        return Weights(file, state, values.get("recipe"), values.get("role"), dict(values.get("details") or {}))
    if _is_state_dict(values):
        return Weights(file, _without_average(values))
    if isinstance(values, dict):
        for key in (*_AVERAGED_KEYS, *_PLAIN_KEYS):
            found = values.get(key)
            if _is_state_dict(found):
                details = {"layout": key} | ({"arch": values["arch"]} if isinstance(values.get("arch"), str) else {})
                return Weights(file, _without_average(found), details=details)
    raise CheckpointError(
        f"{file}: contains no weights that w2skd can read; expected its own checkpoint, a state dict, or a state dict "
        f"under {', '.join((*_PLAIN_KEYS, *_AVERAGED_KEYS))}"
    )


def load_into(model: nn.Module, weights: Weights, *, expected: str) -> None:
    """Load weights into a model named `expected`, strictly.

    Tensors are renamed as in `w2skd.weights.fit.fit`. The model keeps its own precision.

    Raises:
        CheckpointError: names or shapes differ; the message contains the likely reason.
    """
    found = fit(model, weights.state)
    if not found.is_whole:
        raise CheckpointError(f"{weights.path}: {describe_misfit(found, expected, _made_for(weights, expected))}")
    state = OrderedDict(found.state)
    # The names are those of the modules' current versions; MNASNet rejects a state dict without a version.
    state._metadata = found.own._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state)


def number_of_classes(model: nn.Module, weights: Weights, classes: int) -> int | None:
    """Return the number of classes of a checkpoint's head.

    Args:
        model: a model of the checkpoint's architecture; stays unchanged.
        weights: the checkpoint.
        classes: the number of classes that the model was built for.

    Returns:
        None if the weights differ from the model in more than the number of classes.
    """
    found = fit(model, weights.state)
    if found.is_whole:
        return classes
    theirs, ours = found.head_classes or (None, None)
    return theirs if ours == classes else None


def _made_for(weights: Weights, expected: str) -> str | None:
    arch = weights.details.get("arch")
    if arch is None or arch == expected.rpartition(":")[2].partition(".")[0]:  # without library and timm's tag
        return weights.model_name
    return str(arch)


def is_checkpoint(values: Any) -> TypeGuard[dict[str, Any]]:
    """Return whether the content of a ``.pt`` file is a training checkpoint of w2skd."""
    return isinstance(values, dict) and "format" in values and "engine" in values


def check_archive(path: Path, values: dict[str, Any]) -> None:
    """Verify a training checkpoint's format version and the checksums of its archive, which torch.load ignores.

    Raises:
        CheckpointError: the version is unsupported, or the file is damaged.
    """
    if values["format"] != FORMAT:
        raise CheckpointError(f"{path}: format {values['format']} is not supported; this version reads {FORMAT}")
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except Exception as error:  # a damaged header can cause any exception
        raise CheckpointError(f"{path}: damaged ({error})") from None
    if bad is not None:
        raise CheckpointError(f"{path}: damaged (wrong checksum of {bad})")


def _file_of_run(folder: Path) -> Path:
    file = folder / "model.safetensors"
    if not file.exists():
        state = "run not finished" if (folder / "status.json").exists() else "not a run directory"
        runs = sorted(found.parent for depth in ("*", "*/*") for found in folder.glob(f"{depth}/model.safetensors"))
        listed = ", ".join(map(str, runs[:_LISTED_RUNS])) + (", ..." if len(runs) > _LISTED_RUNS else "")
        finished = f"; finished runs in it: {listed}" if runs else ""
        raise CheckpointError(f"{folder}: {state}, model.safetensors is missing{finished}")
    return file


def _load_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = json.loads((file.metadata() or {}).get("w2skd", "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or truncated ({error})") from None
    if not isinstance(metadata, dict):
        return Weights(path, state)
    recipe, role = metadata.pop("recipe", None), metadata.pop("role", None)
    return Weights(path, state, recipe, role, metadata)


def _without_average(state: StateDict) -> StateDict:
    """Return the weights inside a state dict of `torch.optim.swa_utils.AveragedModel`; others as they are."""
    if "n_averaged" not in state:
        return state
    return {name.removeprefix("module."): tensor for name, tensor in state.items() if name != "n_averaged"}


def _is_state_dict(values: Any) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(values, dict) and bool(values) and all(isinstance(value, Tensor) for value in values.values())
