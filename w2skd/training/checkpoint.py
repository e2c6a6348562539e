"""Everything that a resume needs, written atomically."""

import os
import shutil
from pathlib import Path
from typing import IO, Any

import torch

from w2skd.errors import CheckpointError
from w2skd.platform.files import atomic_file, writing
from w2skd.weights.load import FORMAT, check_archive, is_checkpoint
from w2skd.weights.unpickle import load_pt


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
    if not is_checkpoint(values):
        raise CheckpointError(f"{path}: not a training checkpoint of w2skd")
    check_archive(path, values)
    return values


def _write(values: dict[str, Any], file: IO[bytes]) -> None:
    """`torch.save`, with the system's own error where torch hides it behind one about its archive."""
    try:
        torch.save(values, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _share(source: Path, target: Path) -> None:
    """Give a file a second name, as a link where the file system can; files here are replaced, never changed."""
    fresh = target.with_name(f".{target.name}.part")
    fresh.unlink(missing_ok=True)
    try:
        os.link(source, fresh)
    except OSError:
        shutil.copyfile(source, fresh)
    os.replace(fresh, target)
