"""Files that are either old or new, never a part: what a crash, a full disk or a second reader must not break."""

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
    """Turn a full disk or a read-only folder into one clear line.

    Raises:
        OutputError: an `OSError` came out of the block.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes `path`'s place when the block ends well, and vanishes otherwise.

    Raises:
        OutputError: the folder is read-only or the disk full; the old content is still there.
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
    """Replace a file's content.

    Raises:
        OutputError: the folder is read-only or the disk full; the old content is still there.
    """
    with atomic_file(path) as file:
        file.write(content)


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed in `atomic_file` left in a folder; nobody may be writing there."""
    with writing(folder):
        for path in folder.glob(f".*{_UNFINISHED}"):
            path.unlink()


def write_json(path: Path, values: Any) -> None:
    """Write readable JSON atomically."""
    write_atomically(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())
