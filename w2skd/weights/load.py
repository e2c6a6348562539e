"""Read, write and load model weights.

No pickled code is executed, see `w2skd.weights.torch_file`; finished models are safetensors.
"""

import json
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import nn

from w2skd.errors import CheckpointError, suggest
from w2skd.platform.files import write_atomically
from w2skd.recipe.schema import Recipe
from w2skd.weights.beside import restore_beside
from w2skd.weights.file_kind import describe_other, is_safetensors, is_torch
from w2skd.weights.fit import describe_misfit, fit
from w2skd.weights.sets import StateDict, code_in, describe_other_content, find_sets, likeliest
from w2skd.weights.torch_file import read_torch_file

FORMAT = 1
"""Format version of training checkpoints."""

_LISTED = 3
"""Maximum number of runs, keys or kinds that a message lists."""


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
        others: other sets of tensors in the file, by key. `fitting` chooses one of them if `state` does not fit.
        chosen: the user named the key of `state`, so no other set is considered.
    """

    path: Path
    state: StateDict
    recipe: Mapping[str, Any] | None = None
    role: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    others: Mapping[str, StateDict] = field(default_factory=dict)
    chosen: bool = False

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


def load_weights(path: Path, key: str | None = None) -> Weights:
    """Read a model's weights from a finished run's directory or a file, which is known by its content.

    Code in a file is never executed. A file of another tool may be a state dict or contain some anywhere; averaged
    weights are preferred. From a training checkpoint, the averaged weights are read if it has any, as in validation.

    Args:
        path: the directory or file.
        key: which set of tensors to read from a file of another tool: its keys, joined by dots, such as
            ``model.state_dict``. None chooses.

    Raises:
        CheckpointError: the file is missing, truncated, something else than a checkpoint, contains no weights, or none
            under this key.
    """
    file = _file_of_run(path) if path.is_dir() else path
    if not file.exists():
        raise CheckpointError(f"{file}: no such checkpoint")
    if has_safetensors(file):
        weights = _load_safetensors(file)
    else:
        values = read_torch_file(file)
        if not is_checkpoint(values):
            return _choose_set(file, values, key)
        if (code := code_in(values)) is not None:
            raise CheckpointError(f"{file}: {code}")
        check_archive(file, values)
        engine = values["engine"]
        state = _without_average(engine["average"] or engine["model"])
        weights = Weights(file, state, values.get("recipe"), values.get("role"), dict(values.get("details") or {}))
    if key is not None:
        raise CheckpointError(f"{file}: has one set of weights and none called '{key}': omit the key")
    return weights


def load_into(model: nn.Module, weights: Weights, *, expected: str) -> tuple[str, ...]:
    """Load weights into a model named `expected`, strictly.

    Tensors are renamed as in `w2skd.weights.fit.fit`. The model keeps its own precision. Settings that the file records
    in addition to the weights are restored; see `w2skd.weights.beside`.

    Returns:
        Remarks, one line each: which of several sets was loaded, and which entries were ignored.

    Raises:
        CheckpointError: names or shapes differ, and the message contains the likely reason; or values are not finite.
    """
    weights = fitting(model, weights)
    found = fit(model, weights.state)
    if not found.is_whole:
        raise CheckpointError(f"{weights.path}: {describe_misfit(found, expected, _made_for(weights, expected))}")
    check_finite(weights.path, found.state, found.own)
    restore_beside(model, weights.details, weights.path)
    state = OrderedDict(found.state)
    # The names are those of the modules' current versions; MNASNet rejects a state dict without a version.
    state._metadata = found.own._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state)
    return tuple(_remarks(model, weights, found.ignored))


def fitting(model: nn.Module, weights: Weights) -> Weights:
    """Return the weights with the set of tensors that fits a model, if the first choice does not."""
    if weights.chosen or not weights.others or fit(model, weights.state).is_whole:
        return weights
    for key, state in weights.others.items():
        if fit(model, state).is_whole:
            rest = {name: other for name, other in weights.others.items() if name != key}
            rest |= {weights.details.get("layout", ""): weights.state}
            return replace(weights, state=state, details=weights.details | {"layout": key}, others=rest)
    return weights


def check_finite(path: Path, state: StateDict, own: StateDict) -> None:
    """Check that weights have no NaN or infinity, except where a fresh model has one itself.

    Args:
        path: the file, for errors.
        state: the tensors to check.
        own: the model's own tensors of the same names.

    Raises:
        CheckpointError: names the first tensor with such values.
    """
    bad = []
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        values = tensor.float() if tensor.itemsize == 1 else tensor  # torch cannot add numbers of 8 bits
        # The sum is several times faster to check; it may also overflow.
        if not values.sum().isfinite() and not (finite := values.isfinite()).all():
            mine = own.get(name)
            if mine is None or mine.is_meta or not torch.equal(mine.isfinite(), finite):
                bad.append((name, int((~finite).sum()), tensor.numel()))
    if bad:
        name, count, size = bad[0]
        more = f"; {len(bad) - 1} more tensors have some" if len(bad) > 1 else ""
        raise CheckpointError(
            f"{path}: {name} is not finite: {count:,} of {size:,} values are NaN or infinite{more}. The training that "
            "wrote it diverged; use an earlier checkpoint"
        )


def _remarks(model: nn.Module, weights: Weights, ignored: Sequence[str]) -> Iterator[str]:
    layout = weights.details.get("layout")
    rivals = [] if weights.chosen else [key for key, state in weights.others.items() if fit(model, state).is_whole]
    if layout is not None and rivals:
        listed = " and ".join(f"'{key}'" for key in rivals)
        yield f"uses '{layout}'; the file also has {listed}, which would fit: choose with --weights KEY"
    if ignored:
        kinds = Counter(name.rpartition(".")[2] for name in ignored)
        listed = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common(_LISTED))
        yield f"ignored {len(ignored):,} entries that tools add and models do not use: {listed}"


def _choose_set(file: Path, values: Any, key: str | None) -> Weights:
    """Choose a set of tensors in the file of another tool.

    Raises:
        CheckpointError: there is none, or none under this key.
    """
    found, named = find_sets(values), key is not None
    if key is not None:
        if key not in found:
            listed = ", ".join(list(found)[:_LISTED]) or "none"
            raise CheckpointError(f"{file}: has no weights under '{key}'{suggest(key, found)}; it has {listed}")
    elif found:
        key = likeliest(found)
    if key is None:
        raise CheckpointError(f"{file}: {describe_other_content(values)}")
    details = {"layout": key} if key else {}
    if isinstance(values, dict) and isinstance(values.get("arch"), str):
        details["arch"] = values["arch"]
    others = {name: _without_average(state) for name, state in found.items() if name != key}
    return Weights(file, _without_average(found[key]), details=details, others=others, chosen=named)


def number_of_classes(model: nn.Module, weights: Weights, classes: int) -> int | None:
    """Return the number of classes of a checkpoint's head.

    Args:
        model: a model of the checkpoint's architecture; stays unchanged.
        weights: the checkpoint.
        classes: the number of classes that the model was built for.

    Returns:
        None if the weights differ from the model in more than the number of classes.
    """
    found = fit(model, fitting(model, weights).state)
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
        listed = ", ".join(map(str, runs[:_LISTED])) + (", ..." if len(runs) > _LISTED else "")
        finished = f"; finished runs in it: {listed}" if runs else ""
        raise CheckpointError(f"{folder}: {state}, model.safetensors is missing{finished}")
    return file


def has_safetensors(path: Path) -> bool:
    """Return whether a file is in the format of safetensors, by its content or, if that is damaged, its name.

    Raises:
        CheckpointError: the file is known to be something else, or cannot be read.
    """
    try:
        if is_safetensors(path):
            return True
        other, in_torchs_format = describe_other(path), is_torch(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    if other is not None:
        raise CheckpointError(f"{path}: {other}")
    return path.suffix == ".safetensors" and not in_torchs_format


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
