"""Files that libraries publish: out of torch's cache on this machine, else from their server."""

import fcntl
import hashlib
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlparse

import torch.hub

from w2skd.errors import CheckpointError

PATIENCE_S = 30.0
"""How long a server may be silent: clusters often drop what goes out, rather than refuse it."""


def cached_or_fetched(url: str, *, wanted: str, instead: str, name: str | None = None) -> Path:
    """The file of a URL in torch's cache, with the sum that its name holds.

    Args:
        url: of the file.
        wanted: what it is, for people.
        instead: what else a user can do without it, the end of a sentence.
        name: of the file in the cache; None where it is the URL's own.

    Raises:
        CheckpointError: it is neither there nor to be had (the message says how to bring it), or has another sum.
    """
    folder = hub_folder()
    file = folder / (name or file_name(url))
    if not file.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with alone(folder / f".{file.name}.lock"):
                if not file.exists():  # another rank was faster
                    with patience():
                        torch.hub.download_url_to_file(
                            url, str(file), _promised_sum(file), progress=sys.stderr.isatty()
                        )
        except (OSError, RuntimeError) as error:
            renamed = f" as {file.name}" if file.name != file_name(url) else ""
            raise CheckpointError(
                f"{wanted}: {file.name} is not in {folder}, and fetching it failed ({one_line(error)}); on another "
                f"machine fetch {url} and bring it into that folder{renamed} (TORCH_HOME says where it is), {instead}"
            ) from None
    differing = sum_differs(file)
    if differing is not None:
        raise CheckpointError(
            f"{file}: damaged or another file: its SHA-256 begins with {differing}, not as its name says; remove it, "
            f"and fetch it again from {url}"
        )
    return file


def hub_folder() -> Path:
    """Where torch keeps the files that it fetched."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def file_name(url: str) -> str:
    """What the file of a URL is called."""
    return Path(urlparse(url).path).name


def file_sum(file: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        for block in iter(partial(content.read, 1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def sum_differs(file: Path) -> str | None:
    """The beginning of a file's true SHA-256 where its name promises another one."""
    promised = _promised_sum(file)
    if promised is None:
        return None
    true = file_sum(file)[: len(promised)]
    return None if true == promised else true


@contextmanager
def patience() -> Iterator[None]:
    """Give up on a server that is silent for `PATIENCE_S` seconds."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let the processes of this machine, and of others with this folder, enter one by one.

    Args:
        path: of a file that stands for the lock, made where it is missing.

    Raises:
        OSError: it can be neither opened nor made.
    """
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def one_line(error: Exception) -> str:
    """The cause of an error rather than the library's advice about it."""
    cause = error.__cause__ or getattr(error, "reason", None) or error
    return str(cause).splitlines()[0][:150] if str(cause) else type(cause).__name__


def _promised_sum(file: Path) -> str | None:
    """The beginning of a file's SHA-256, in hex, that torch's hub expects in its name."""
    found = torch.hub.HASH_REGEX.search(file.name)
    return found[1] if found and found[1] else None
