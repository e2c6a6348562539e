"""Files that libraries publish, read from torch's cache or downloaded into it."""

import fcntl
import hashlib
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import torch.hub

from w2skd.errors import CheckpointError

PATIENCE_S = 30.0
"""Timeout for a silent server: the firewalls of clusters often drop packets instead of refusing a connection."""


def cached_or_fetched(url: str, *, wanted: str, instead: str, name: str | None = None) -> Path:
    """Return a published file from torch's cache, downloading it first if it is missing.

    The SHA-256 prefix in the file's name, if there is one, is verified.

    Args:
        url: where the file is published.
        wanted: description of the file for error messages.
        instead: what a user can do without the file; ends an error message.
        name: name of the file in the cache; None takes it from the URL.

    Raises:
        CheckpointError: the file is not cached and cannot be downloaded (the message explains how to provide it), or
            its checksum is wrong.
    """
    folder = hub_folder()
    file = folder / (name or file_name(url))
    if not file.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with alone(folder / f".{file.name}.lock"), patience():
                if not file.exists():  # another rank may have downloaded it meanwhile
                    torch.hub.download_url_to_file(url, str(file), _promised_sum(file), progress=sys.stderr.isatty())
        except (OSError, RuntimeError) as error:
            renamed = f" as {file.name}" if file.name != file_name(url) else ""
            raise CheckpointError(
                f"{wanted}: {file.name} is not in {folder}, and downloading it failed ({one_line(error)}); download "
                f"{url} on another machine and copy it into that folder{renamed} (set by TORCH_HOME), {instead}"
            ) from None
    actual = sum_differs(file)
    if actual is not None:
        raise CheckpointError(
            f"{file}: damaged or a different file: its SHA-256 begins with {actual}, unlike its name; delete it and "
            f"download {url} again"
        )
    return file


def hub_folder() -> Path:
    """Return the folder in which torch caches downloaded checkpoints."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def file_name(url: str) -> str:
    """Return the file name in a URL."""
    return Path(urlparse(url).path).name


def file_sum(file: Path) -> str:
    """Return the SHA-256 of a file as hex digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def sum_differs(file: Path) -> str | None:
    """Return the beginning of a file's SHA-256 if it differs from the one in the file's name, else None."""
    promised = _promised_sum(file)
    if promised is None:
        return None
    actual = file_sum(file)[: len(promised)]
    return None if actual == promised else actual


@contextmanager
def patience() -> Iterator[None]:
    """Set the timeout of network connections to `PATIENCE_S` seconds."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold an exclusive lock among all processes that share this folder.

    Args:
        path: lock file, created if missing.

    Raises:
        OSError: the lock file cannot be opened.
    """
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def one_line(error: Exception) -> str:
    """Return the first line of an error's root cause, without the library's advice."""
    cause = error.__cause__ or getattr(error, "reason", None) or error
    return str(cause).splitlines()[0][:150] if str(cause) else type(cause).__name__


def _promised_sum(file: Path) -> str | None:
    """Return the SHA-256 prefix in a file's name, in the format of torch's hub."""
    found = torch.hub.HASH_REGEX.search(file.name)
    return found[1] if found and found[1] else None
