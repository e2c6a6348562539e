"""Atomic files: after a crash or on a full disk, and for every reader, a file has its old or its new content."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from w2skd.errors import OutputError

_UNFINISHED = ".part"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` inside the block, such as a full disk or a read-only folder, into a one-line error.

    Raises:
        OutputError: the block raised an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing. It replaces `path` when the block ends, and is removed if the block fails.

    Raises:
        OutputError: the folder is read-only or the disk is full; the old content remains.
    """
    with writing(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file's content atomically.

    Raises:
        OutputError: the folder is read-only or the disk is full; the old content remains.
    """
    with atomic_file(path) as file:
        file.write(content)


def remove_unfinished(folder: Path) -> None:
    """Remove files that a process killed in `atomic_file` left in a folder. No other process may be writing there."""
    with writing(folder):
        for path in folder.glob(f".*{_UNFINISHED}"):
            path.unlink()


def write_json(path: Path, values: Any) -> None:
    """Write indented JSON atomically."""
    # A file name that is not Unicode holds lone surrogates. Their escape in Python is that of JSON.
    write_atomically(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
