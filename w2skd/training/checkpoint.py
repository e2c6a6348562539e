"""Everything that a resume needs, and the weights that a run leaves behind: written atomically, read safely.

Nothing here ever unpickles code: ``.pt`` files are read with ``weights_only=True``, finished models are safetensors.
"""

import json
import os
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from w2skd.errors import CheckpointError, RecipeError
from w2skd.platform.files import atomic_file, write_atomically, writing
from w2skd.recipe.load import validate_recipe
from w2skd.recipe.schema import Recipe
from w2skd.weights.fit import describe_misfit, fit
from w2skd.weights.unpickle import load_pt

FORMAT = 1

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
        recipe: of the run that made them, if the file says.
        role: ``teacher`` or ``student`` in that recipe.
        details: whatever else the run noted: classes, metrics, step. Of another tool's checkpoint: ``layout``, the key
            under which it kept these weights, and ``arch`` if it says.
    """

    path: Path
    state: StateDict
    recipe: Recipe | None = None
    role: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def model_name(self) -> str | None:
        """The architecture's name in the catalog, if the file says."""
        return None if self.recipe is None else self.recipe.model_of(self.role or "student")


def save_checkpoint(folder: Path, state: dict[str, Any], *, best: bool) -> None:
    """Write ``last.pt``, keep the one before as ``previous.pt``, and on request mark it as ``best.pt``.

    A crash at any moment leaves at least one complete checkpoint under one of the first two names.

    Raises:
        OutputError: the folder is read-only or the disk full; the former checkpoints are still there.
    """
    last, fresh = folder / "last.pt", folder / "next.pt"
    with atomic_file(fresh) as file:
        _write({"format": FORMAT, **state}, file)
    with writing(last):
        if last.exists():
            os.replace(last, folder / "previous.pt")
        os.replace(fresh, last)
        if best:
            _share(last, folder / "best.pt")


def rewind_to(folder: Path, state: dict[str, Any]) -> None:
    """Make a checkpoint the newest: those that came after it belong to a course that is now discarded.

    Raises:
        OutputError: the folder is read-only or the disk full; some complete checkpoint is still there.
    """
    best = folder / "best.pt"
    try:
        of_the_course = load_checkpoint(best)["engine"]["step"] <= state["engine"]["step"]
    except CheckpointError:  # missing, or damaged and so of no use
        of_the_course = False
    save_checkpoint(folder, state, best=False)
    with writing(folder):
        _share(folder / "last.pt", folder / "previous.pt")
        if not of_the_course:
            best.unlink(missing_ok=True)


def load_last_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The newest readable checkpoint, and why a newer one was passed over.

    Returns:
        The checkpoint, or None when the folder has none; a sentence on a damaged file, or None.

    Raises:
        CheckpointError: there are checkpoints, and none can be read.
    """
    problem = None
    for name in ("last.pt", "previous.pt"):
        if (folder / name).exists():
            try:
                return load_checkpoint(folder / name), problem
            except CheckpointError as error:
                problem = str(error) if problem is None else f"{problem}; {error}"
    if problem is not None:
        raise CheckpointError(problem)
    return None, None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint of w2skd.

    Raises:
        CheckpointError: the file is missing, cut off, carries code, or is not ours.
    """
    values = load_pt(path)
    if not _is_ours(values):
        raise CheckpointError(f"{path}: not a training checkpoint of w2skd")
    _check(path, values)
    return values


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
    if _is_ours(values):
        _check(file, values)
        engine = values["engine"]
        weights = engine["model"] if engine["average"] is None else _averaged(engine["average"])
        recipe = _recipe_of(values.get("recipe"), file)
        return Weights(file, weights, recipe, values.get("role"), dict(values.get("details") or {}))
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


def _write(values: dict[str, Any], file: IO[bytes]) -> None:
    """`torch.save`, with the system's own error where torch hides it behind one about its archive."""
    try:
        torch.save(values, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _is_ours(values: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(values, dict) and "format" in values and "engine" in values


def _check(path: Path, values: dict[str, Any]) -> None:
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
    recipe, role = _recipe_of(metadata.pop("recipe", None), path), metadata.pop("role", None)
    return Weights(path, state, recipe, role, metadata)


def _recipe_of(values: Any, path: Path) -> Recipe | None:
    if values is None:
        return None
    try:
        return validate_recipe(values, str(path))
    except RecipeError as error:
        raise CheckpointError(f"{path}: its recipe is damaged or of another version: {error}") from None


def _averaged(state: StateDict) -> dict[str, Tensor]:
    """The weights inside the state dict of `torch.optim.swa_utils.AveragedModel`."""
    return {name.removeprefix("module."): tensor for name, tensor in state.items() if name != "n_averaged"}


def _is_state_dict(values: Any) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(values, dict) and bool(values) and all(isinstance(value, Tensor) for value in values.values())


def _share(source: Path, target: Path) -> None:
    """Give a file a second name, as a link where the file system can; files here are replaced, never changed."""
    fresh = target.with_name(f".{target.name}.part")
    fresh.unlink(missing_ok=True)
    try:
        os.link(source, fresh)
    except OSError:
        shutil.copyfile(source, fresh)
    os.replace(fresh, target)
