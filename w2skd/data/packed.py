"""Reading of packed image folders: resized images in a few large, memory-mapped files, written by ``w2skd pack``.

A packed folder holds ``pack.json`` and, for each of its sets ``train`` and ``eval``, the shards ``train-00000.bin``,
..., the index ``train.npy`` (one row of `INDEX` per image) and the names ``train-names.txt`` (one per line). Data
workers map these files and share their pages; only paths are sent to the workers.

Shapes: N images of a set, n of them read.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from w2skd.data.examples import read_squares
from w2skd.errors import DataError

SCHEMA = 1
"""Version of the layout of a packed folder."""

RECORD = "pack.json"

INDEX = np.dtype(
    [(key, "<i8") for key in ("shard", "offset", "length", "height", "width", "label", "name_end", "crc32")]
)
"""Row of an image in the index. Its name starts where the previous row's line of the names file ends."""

_MOST_OPEN = 512
"""Maximum number of mapped shards per set and process; each takes a file descriptor."""

Format = Literal["jpeg", "raw"]


@dataclass(frozen=True)
class PackedFile:
    """A file of a packed folder.

    Attributes:
        name: relative to the folder.
        size_bytes: its length.
        sha256: in hexadecimal.
    """

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class PackedPart:
    """One set of a packed folder.

    Attributes:
        examples: N.
        resized: number of images that were resized.
        changed: number of images whose pixels differ from those of the original file.
        notes: remarks about the original folder, one line each.
        index: the index.
        names: the names, relative to the original ``data.root``.
        shards: the images.
    """

    examples: int
    resized: int
    changed: int
    notes: tuple[str, ...]
    index: PackedFile
    names: PackedFile
    shards: tuple[PackedFile, ...]


@dataclass(frozen=True)
class PackRecord:
    """The content of ``pack.json``.

    Attributes:
        schema: `SCHEMA`.
        w2skd: version of w2skd that wrote the folder.
        source: the original folder.
        side_px: maximum length of an image's shorter side.
        interpolation: of the resizing.
        format: ``jpeg``, or ``raw`` for uint8 [height, width, 3].
        quality: JPEG quality; null for ``raw``.
        classes: names of the classes.
        parts: ``train`` and, unless the recipe holds out a validation share, ``eval``.
    """

    schema: int
    w2skd: str
    source: str
    side_px: int
    interpolation: str
    format: Format
    quality: int | None
    classes: tuple[str, ...]
    parts: Mapping[str, PackedPart]

    def notes(self, part: PackedPart) -> tuple[str, ...]:
        """Return remarks about one set, one line each."""
        form = "raw" if self.format == "raw" else f"JPEG quality {self.quality}"
        facts = f"packed at {self.side_px} px (shorter side), {form}, from {part.examples:,} images"
        if part.changed == 0:
            result = "pixels are those of the original files"
        else:
            of = "" if part.changed == part.examples else f" of {part.changed:,}"
            result = f"pixels{of} differ from the original files"
        return (f"{facts}: {result}", *part.notes)


def open_pack(root: Path) -> PackRecord:
    """Read ``pack.json`` and check that all files are complete.

    The hashes of indices and names are checked. Those of the shards are not, because this would take minutes;
    `PackedExamples` checks single images.

    Raises:
        DataError: the folder is not a packed folder, has another schema, or a file is missing or damaged.
    """
    if not root.is_dir():
        raise DataError(f"data.root: no such folder: {root.absolute()}")
    path = root / RECORD
    record = _parse(path, _content(path))
    for part in record.parts.values():
        for file in (part.index, part.names, *part.shards):
            _check_size(root / file.name, file)
        for file in (part.index, part.names):
            if hashlib.sha256(_content(root / file.name)).hexdigest() != file.sha256:
                raise DataError(_damaged(root / file.name, "its SHA-256 differs from the one in pack.json"))
    return record


class PackedExamples:
    """Images of a packed folder. Implements `w2skd.data.examples.Examples`.

    Args:
        root: the folder.
        part: one of its sets.
        form: how the images are stored.
    """

    def __init__(self, root: Path, part: PackedPart, form: Format):
        self._arguments = root, part, form
        self._root, self._part, self._form = self._arguments
        self._index: NDArray[Any] = np.asarray(np.load(root / part.index.name, mmap_mode="r"))
        self._names = _mapped(root / part.names.name)
        self._shard = lru_cache(_MOST_OPEN)(lambda number: _mapped(root / part.shards[number].name))

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedExamples, self._arguments

    def __len__(self) -> int:
        return len(self._index)

    @property
    def labels(self) -> Tensor:
        """Labels of the images: int64 [N]."""
        return torch.from_numpy(self._index["label"].astype(np.int64))

    def open(self, index: int) -> Image.Image:
        """Decode one image.

        Raises:
            DataError: it is damaged.
        """
        data, height, width, checksum = self._stored(index)
        if self._form == "raw":  # without the checksum, which would take a notable share of the time
            return Image.frombuffer("RGB", (width, height), data, "raw", "RGB", 0, 1)
        content = data.tobytes()
        self._check(index, content, checksum)
        try:
            return decode_jpeg(content)
        except Exception as error:  # Pillow's decoders raise almost any exception
            raise DataError(self._problem(index, str(error))) from error

    def mode(self, index: int) -> str:
        """Return RGB."""
        return "RGB"

    def read(self, indices: Tensor, size_px: int) -> Tensor:
        """Decode images and resize them, see `read_squares`.

        Raises:
            DataError: an image is damaged, or the pixels do not fit into memory.
        """
        return read_squares(lambda place: self.open(int(indices[place])), len(indices), size_px)

    def name(self, index: int) -> str:
        """Return the path of the original file relative to the original ``data.root``, with slashes."""
        start = int(self._index[index - 1]["name_end"]) if index else 0
        return os.fsdecode(self._names[start : int(self._index[index]["name_end"]) - 1].tobytes())

    def content(self, index: int) -> bytes:
        """Return the JPEG file or, for ``raw``, the size and the pixels. The checksum is verified.

        Raises:
            DataError: it is damaged.
        """
        data, height, width, checksum = self._stored(index)
        content = data.tobytes()
        self._check(index, content, checksum)
        return content if self._form == "jpeg" else f"{width}x{height}".encode() + content

    def _stored(self, index: int) -> tuple[NDArray[np.uint8], int, int, int]:
        """Return the bytes of an image without copying them, its height and width in px, and its checksum."""
        shard, offset, length, height, width, _, _, checksum = self._index[index].item()
        data = self._shard(shard)[offset : offset + length]
        if len(data) != length:
            raise DataError(self._problem(index, "the file is too short"))
        return data, height, width, checksum

    def _check(self, index: int, content: bytes, checksum: int) -> None:
        if zlib.crc32(content) != checksum:
            raise DataError(self._problem(index, "its checksum differs"))

    def _problem(self, index: int, reason: str) -> str:
        path = self._root / self._part.shards[int(self._index[index]["shard"])].name
        return _damaged(path, f"image {self.name(index)}: {reason}")


def decode_jpeg(content: bytes) -> Image.Image:
    """Decode a JPEG as it is stored, ignoring its EXIF orientation. Pillow's errors are not caught."""
    image = Image.open(BytesIO(content), formats=("JPEG",))
    image.load()
    return image


def _parse(path: Path, content: bytes) -> PackRecord:
    try:
        found = json.loads(content).get("schema")
    except (ValueError, AttributeError):
        raise DataError(_damaged(path, "not a JSON object")) from None
    if found != SCHEMA:
        raise DataError(
            f"{path}: has schema {found}, but this version of w2skd reads schema {SCHEMA}; pack the images again"
        )
    try:
        return TypeAdapter(PackRecord).validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(_damaged(path, f"{place}: {first['msg']}")) from None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(_missing(path)) from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def _check_size(path: Path, file: PackedFile) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise DataError(_missing(path)) from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    if size != file.size_bytes:
        raise DataError(_damaged(path, f"it has {size:,} bytes instead of {file.size_bytes:,}"))


def _mapped(path: Path) -> NDArray[np.uint8]:
    try:
        return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _missing(path: Path) -> str:
    if path.name == RECORD:
        return f"{path.parent}: contains no {RECORD}, so it is not a packed folder; create one with w2skd pack"
    return f"{path}: missing; copy it again or repeat w2skd pack"


def _damaged(path: Path, reason: str) -> str:
    return f"{path}: damaged ({reason}); copy it again or repeat w2skd pack"
