"""Read tensors and plain values from torch's files without executing what else they contain."""

import re
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from w2skd.errors import CheckpointError
from w2skd.weights.pickle_reader import Opaque, PickleError, TensorRef, read_pickle

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}
"""Storage classes of the format -> dtype of their elements."""

_MAGIC = 0x1950A86A20F9469CFC6C
"""First object in files of torch before 1.6."""


def read_torch_file(path: Path) -> Any:
    """Read a file that `torch.save` wrote, in its zip format or the older one.

    Returns:
        Plain values, dictionaries, lists and tuples, tensors as values of dictionaries and lists, and stand-ins from
        `w2skd.weights.pickle_reader` for everything else.

    Raises:
        CheckpointError: the file is damaged, or in another format.
    """
    try:
        with path.open("rb") as file:
            return _read_zip(path) if file.read(2) == b"PK" else _read_legacy(path)
    except PickleError as error:
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({str(error)[:120]})") from None
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if (wrong := re.match(r"Bad CRC-32 for file '(.*)'", reason)) is not None:
            raise CheckpointError(f"{path}: damaged (wrong checksum of {wrong[1]})") from None
        raise CheckpointError(f"{path}: damaged or truncated ({reason[:120]})") from None


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickled = next(name for name in entries if name.endswith("data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if (order := f"{folder}byteorder") in entries and archive.read(order).strip() == b"big":
            raise ValueError("written on a big-endian machine")
        left = path.stat().st_size  # an archive may list the same bytes many times
        buffers: dict[str, bytearray] = {}

        def content(key: str) -> bytearray:
            nonlocal left
            if key not in buffers:
                entry = entries[f"{folder}data/{key}"]
                left -= entry.file_size
                if entry.compress_type != zipfile.ZIP_STORED or left < 0:
                    raise ValueError(f"storage {key} is larger than the file")
                buffers[key] = bytearray(archive.read(entry))
            return buffers[key]

        if entries[pickled].compress_type != zipfile.ZIP_STORED:
            raise ValueError("compressed entries")
        with archive.open(pickled) as stream:
            values = read_pickle(stream)
        return _with_tensors(values, content)


def _read_legacy(path: Path) -> Any:
    """Read the format before torch 1.6: five pickles, then the storages one after the other."""
    with path.open("rb") as file:
        first = read_pickle(file)
        if first != _MAGIC:
            return first  # a plain pickle, which has no tensors of torch
        read_pickle(file)  # protocol version
        read_pickle(file)  # byte order and sizes of C types
        values = read_pickle(file)
        keys = read_pickle(file)
        known = _kinds(values)
        buffers: dict[str, bytearray] = {}
        for key in keys if isinstance(keys, list) else []:
            buffers[str(key)] = _read_storage(file, known.get(str(key), "UntypedStorage"), path.stat().st_size)
    return _with_tensors(values, buffers.__getitem__)


def _read_storage(file: IO[bytes], kind: str, most: int) -> bytearray:
    count = int.from_bytes(file.read(8), "little")
    size = count * _DTYPES[kind].itemsize
    if size > most:
        raise ValueError("a storage is larger than the file")
    content = bytearray(file.read(size))
    if len(content) < size:
        raise ValueError("a storage is cut off")
    return content


def _kinds(values: Any) -> dict[str, str]:
    """Return the key and class of every storage that values refer to."""
    return {found.storage.key: found.storage.kind for _, _, found in _slots(values) if isinstance(found, TensorRef)}


def _with_tensors(values: Any, content: Any) -> Any:
    """Replace the references to tensors in dictionaries and lists by tensors that share storages as they did."""
    if isinstance(values, TensorRef):
        return _tensor(values, content)
    typed: dict[tuple[str, torch.dtype], Tensor] = {}
    for container, key, found in _slots(values):
        if isinstance(found, TensorRef):
            container[key] = _tensor(found, content, typed)
    return values


def _slots(values: Any) -> list[tuple[Any, Any, Any]]:
    """Return container, key and value of everything in dictionaries and lists, each container once.

    Tuples and what objects of unknown classes would have been set to are searched, too.
    """
    found: list[tuple[Any, Any, Any]] = []
    waiting, seen = [values], set[int]()
    while waiting:
        container = waiting.pop()
        if isinstance(container, Opaque):
            container = container.state
        if not isinstance(container, dict | list | tuple) or id(container) in seen:
            continue
        seen.add(id(container))
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in items:
            if not isinstance(container, tuple):
                found.append((container, key, value))
            waiting.append(value)
    return found


def _tensor(ref: TensorRef, content: Any, typed: dict[tuple[str, torch.dtype], Tensor] | None = None) -> Any:
    """Build a tensor; a kind that is not known here stays a reference.

    Raises:
        ValueError: the tensor does not lie within its storage.
    """
    dtype = _DTYPES.get(ref.storage.kind) if ref.dtype is None else getattr(torch, ref.dtype, None)
    if not isinstance(dtype, torch.dtype) or ref.storage.kind not in _DTYPES:
        return ref
    typed = {} if typed is None else typed
    flat = typed.get((ref.storage.key, dtype))
    if flat is None:
        buffer = content(ref.storage.key)
        if len(buffer) % dtype.itemsize:
            raise ValueError(f"storage {ref.storage.key} ends within a number")
        flat = torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)
        typed[ref.storage.key, dtype] = flat
    if len(ref.size) != len(ref.stride) or min((ref.offset, *ref.size, *ref.stride)) < 0:
        raise ValueError(f"a tensor has size {ref.size}, stride {ref.stride} and offset {ref.offset}"[:120])
    count = 1
    for side in ref.size:
        count *= side
    last = ref.offset + sum((side - 1) * step for side, step in zip(ref.size, ref.stride, strict=True))
    if count and (last >= len(flat) or count > len(flat)):
        raise ValueError(f"a tensor needs element {last:,} of storage {ref.storage.key}, which has {len(flat):,}")
    return flat.as_strided(ref.size, ref.stride, ref.offset) if count else torch.empty(ref.size, dtype=dtype)
