"""Training checkpoints: everything that a resume needs, written atomically."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from w2skd.errors import CheckpointError
from w2skd.platform.files import atomic_file, writing
from w2skd.records.schema import (
    AMOUNT,
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE,
    SchemaError,
    check_object,
    object_of,
    or_null,
)
from w2skd.weights.load import FORMAT, check_archive, is_checkpoint
from w2skd.weights.unpickle import load_pt

_FIELDS = {
    "engine": OBJECT,
    "recipe": OBJECT,
    "role": TEXT,
    "details": OBJECT,
    "teacher": or_null(OBJECT),
    "metrics_offset": WHOLE,
    "threads": WHOLE,
    "clock": object_of(AMOUNT),
}
_ENGINE = {"step": WHOLE, "best": or_null(NUMBER), "best_step": or_null(WHOLE)}
_TEACHER = {"checkpoint": TEXT, "fingerprint": TEXT}


def save_checkpoint(folder: Path, state: dict[str, Any], *, best: bool) -> None:
    """Write ``last.pt``, rename the old one to ``previous.pt`` and, with `best`, link the new one as ``best.pt``.

    A crash at any moment leaves at least one complete checkpoint under one of the first two names.

    Raises:
        OutputError: the folder is read-only or the disk is full; the earlier checkpoints remain.
    """
    last, fresh = folder / "last.pt", folder / "next.pt"
    with atomic_file(fresh) as file:
        try:
            torch.save({"format": FORMAT, **state}, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch replaces it by an error about its archive
                raise error.__context__ from None
            raise
    with writing(last):
        if last.exists():
            os.replace(last, folder / "previous.pt")
        os.replace(fresh, last)
    if best:
        link_checkpoint(last, folder / "best.pt")


def rewind_to(folder: Path, state: dict[str, Any]) -> None:
    """Make an earlier checkpoint the newest one and remove those that came after it.

    Raises:
        OutputError: the folder is read-only or the disk is full; at least one complete checkpoint remains.
    """
    best = folder / "best.pt"
    try:
        keep_best = load_checkpoint(best)["engine"]["step"] <= state["engine"]["step"]
    except CheckpointError:  # missing or damaged
        keep_best = False
    save_checkpoint(folder, state, best=False)
    link_checkpoint(folder / "last.pt", folder / "previous.pt")
    if not keep_best:
        with writing(folder):
            best.unlink(missing_ok=True)


def load_last_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """Return the newest readable checkpoint, and the reason if a newer one is damaged.

    Returns:
        The checkpoint, or None if the folder has none; the error message of a damaged file, or None.

    Raises:
        CheckpointError: all existing checkpoints are damaged.
    """
    problems: list[str] = []
    for path in (folder / "last.pt", folder / "previous.pt"):
        if path.exists():
            try:
                return load_checkpoint(path), "; ".join(problems) or None
            except CheckpointError as error:
                problems.append(str(error))
    if problems:
        raise CheckpointError("; ".join(problems))
    return None, None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint of w2skd.

    Raises:
        CheckpointError: the file is missing, truncated, contains code, is no training checkpoint of w2skd, or one of
            its fields is missing or of another type.
    """
    values = load_pt(path)
    if not is_checkpoint(values):
        raise CheckpointError(f"{path}: not a training checkpoint of w2skd")
    check_archive(path, values)
    try:
        check_object(values, _FIELDS)
        check_object(values["engine"], _ENGINE, name="engine")
        if values["teacher"] is not None:
            check_object(values["teacher"], _TEACHER, name="teacher")
    except SchemaError as error:
        raise CheckpointError(f"{path}: damaged ({error})") from None
    return values


def link_checkpoint(source: Path, target: Path) -> None:
    """Give a checkpoint a second name, which stays valid when the first one is replaced.

    A hard link suffices, because checkpoints are never modified in place. On file systems without hard links, the file
    is copied.

    Raises:
        OutputError: the folder is read-only or the disk is full.
    """
    fresh = target.with_name(f".{target.name}.part")
    with writing(target):
        fresh.unlink(missing_ok=True)
        try:
            os.link(source, fresh)
        except OSError:
            shutil.copyfile(source, fresh)
        os.replace(fresh, target)
