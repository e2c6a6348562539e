"""What a file is by its content, whatever its name says."""

import zipfile
from collections.abc import Callable
from pathlib import Path

_READ = 512
"""Bytes at the beginning of a file that are inspected."""

_MAGIC: dict[bytes, str] = {
    b"\x89HDF": "an HDF5 file, as Keras writes them; convert it to a PyTorch state dict",
    b"\x93NUMPY": "a NumPy array; save a state dict with torch.save or safetensors",
    b"\x1f\x8b": "compressed (gzip): unpack it first",
    b"\xfd7zXZ": "compressed (xz): unpack it first",
    b"BZh": "compressed (bzip2): unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed (zstd): unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF document",
    b"GGUF": "a GGUF file of a language model",
}

_LFS = b"version https://git-lfs.github.com/spec/"

_ZIPPED: tuple[tuple[Callable[[str], bool], str], ...] = (
    (
        lambda name: name.endswith("/constants.pkl") or "/code/" in name,
        "a TorchScript archive, which contains code; in the program that made it, save "
        "torch.save(model.state_dict(), ...) instead",
    ),
    (
        lambda name: name.endswith("archive_format") or (name.endswith(".json") and "/models/" in f"/{name}"),
        "an archive of torch.export; save model.state_dict() of the original model instead",
    ),
    (
        lambda name: name.endswith(".npy"),
        "an archive of NumPy arrays; save a state dict with torch.save or safetensors",
    ),
    (lambda name: name.endswith(".weights.h5"), "a Keras model; convert it to a PyTorch state dict"),
)


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins like safetensors: the length of a JSON object, then the object.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def is_torch(path: Path) -> bool:
    """Return whether a file begins like one of torch: a zip archive, or a pickle of protocol 2 or later.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return file.read(2).startswith((b"PK", b"\x80"))


def describe_other(path: Path) -> str | None:
    """Return what a file is, and the way out, if it is known and no checkpoint of torch; else None.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_READ)
    if not start:
        return "is empty: copy or download it again"
    if start.startswith(_LFS):
        return "is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page (HTML), often a sign-in or error page: download the file again"
    for magic, what in _MAGIC.items():
        if start.startswith(magic):
            return f"is {what}"
    if start[257:262] == b"ustar":
        return _describe_tar(start)
    if start.startswith(b"PK"):
        return _describe_zip(path)
    if start[:1] == b"\x08" and any(word in start for word in (b"pytorch", b"onnx", b"tf2onnx")):
        return "is an ONNX model; save model.state_dict() of the original model instead"
    return "is a text file, not a checkpoint" if _is_text(start) else None


def _describe_tar(start: bytes) -> str:
    if start.startswith((b"sys_info", b"pickle", b"storages", b"tensors")):
        return "has the tar format of PyTorch before 0.1.10; load and save it again with an old version"
    return "is a tar archive: unpack it first"


def _describe_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return None  # torch's reader names the damage
    for belongs, what in _ZIPPED:
        if any(belongs(name) for name in names):
            return f"is {what}"
    if any(name.endswith("data.pkl") for name in names):
        return None
    return "is a zip archive without a checkpoint in torch's format: unpack it first"


def _is_text(start: bytes) -> bool:
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # else a character may be cut off
            return False
        text = start[: error.start].decode()
    return all(character.isprintable() or character in "\n\r\t" for character in text)
