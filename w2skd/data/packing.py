"""Writing of packed image folders, see `w2skd.data.packed`."""

import fcntl
import hashlib
import os
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from w2skd import __version__
from w2skd.data.examples import Examples
from w2skd.data.packed import INDEX, RECORD, SCHEMA, Format, PackedFile, PackedPart, PackRecord, decode_jpeg
from w2skd.data.sources import SOURCES, Listing
from w2skd.errors import DataError, UsageError
from w2skd.platform.files import write_json, writing
from w2skd.recipe.data import ImageDataSection

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_444 = 0
"""Pillow's value of ``subsampling`` for JPEG without chroma subsampling."""

_AHEAD = 8
"""Images per worker that are encoded ahead of the writer."""

_LISTED = 5
"""Maximum number of unreadable files that an error names."""

Progress = Callable[[int, int], None]
"""Receives the number of finished images and the number of all images."""


@dataclass(frozen=True)
class PackOptions:
    """How images are packed.

    Attributes:
        side_px: maximum length of an image's shorter side.
        format: ``jpeg`` or ``raw``.
        quality: of JPEG, 1 to 100.
        workers: number of threads that decode and encode.
        shard_bytes: maximum size of a shard, unless a single image is larger.
    """

    side_px: int = 256
    format: Format = "jpeg"
    quality: int = 95
    workers: int = 1
    shard_bytes: int = 2**30


@dataclass(frozen=True)
class _Encoded:
    """One image to be written."""

    data: bytes
    width: int
    height: int
    is_resized: bool
    is_changed: bool


def pack(
    section: ImageDataSection, out: Path, options: PackOptions, *, overwrite: bool = False, progress: Progress
) -> PackRecord:
    """Resize the images of an image folder and write them into a packed folder.

    Subsets (``train_examples``, ``eval_examples``) and the hold-out are not applied: training draws them from the
    packed images, exactly as from the original files. With ``validation_share`` only the training set is packed.

    Images are resized like torchvision's ``Resize(side_px)`` with the section's interpolation and never enlarged. With
    the format ``jpeg``, an upright RGB JPEG that needs no resizing is copied unchanged.

    Args:
        section: with source ``image_folder``.
        out: folder to write; appears only when it is complete.
        options: how to pack.
        overwrite: replace an existing packed folder.
        progress: called after every image.

    Raises:
        UsageError: `out` holds something else, or the recipe needs larger images.
        DataError: files are missing or inconsistent, or images cannot be decoded; the error counts all of them.
        OutputError: the folder cannot be written.
    """
    assert section.source == "image_folder", section.source
    _check_side(section, options.side_px)
    out = out.resolve()
    _check_target(out, overwrite)
    train, evaluation, _, _ = SOURCES[section.source](section)
    listings = {"train": train} | ({} if evaluation is None else {"eval": evaluation})
    encode = _Encoder(section.preparation.interpolation, options)
    total, done, unreadable, parts = sum(map(len, listings.values())), 0, list[str](), dict[str, PackedPart]()
    with _replacing(out) as folder:
        for name, listing in listings.items():
            writer = _PartWriter(folder, name, options.shard_bytes)
            for index, encoded in enumerate(_in_order(encode, listing.examples, options.workers)):
                if isinstance(encoded, DataError):
                    unreadable.append(str(encoded) if not unreadable else listing.examples.name(index))
                elif not unreadable:
                    writer.add(encoded, int(listing.labels[index]), listing.examples.name(index))
                done += 1
                progress(done, total)
            if not unreadable:
                parts[name] = writer.close(listing)
        if unreadable:
            raise DataError(_describe(unreadable, total))
        record = PackRecord(
            SCHEMA,
            __version__,
            str(section.root.absolute()),
            options.side_px,
            section.preparation.interpolation,
            options.format,
            options.quality if options.format == "jpeg" else None,
            train.classes,
            parts,
        )
        write_json(folder / RECORD, asdict(record))
    return record


def shrink(image: Image.Image, side_px: int, interpolation: str) -> Image.Image:
    """Resize the shorter side to `side_px` like torchvision's ``Resize``, antialiased, unless it is shorter already."""
    shorter, longer = sorted(image.size)
    if shorter <= side_px:
        return image
    longer_px = int(side_px * longer / shorter)
    size = (side_px, longer_px) if image.width <= image.height else (longer_px, side_px)
    return image.resize(size, _FILTERS[interpolation])


@dataclass(frozen=True)
class _Encoder:
    """Decodes, resizes and encodes one image. Returns the error of an image that cannot be packed."""

    interpolation: str
    options: PackOptions

    def __call__(self, examples: Examples, index: int) -> _Encoded | DataError:
        try:
            image = examples.open(index)
            small = shrink(image, self.options.side_px, self.interpolation)
            is_resized = small is not image
            if self.options.format == "raw":
                return _Encoded(small.tobytes(), *small.size, is_resized, is_resized)
            if not is_resized and _decodes_to(content := examples.content(index), image):
                return _Encoded(content, *small.size, is_resized, False)
            buffer = BytesIO()
            small.save(buffer, "JPEG", quality=self.options.quality, subsampling=_444)
            return _Encoded(buffer.getvalue(), *small.size, is_resized, True)
        except DataError as error:
            return error
        except (OSError, ValueError) as error:  # JPEG has at most 65,535 px per side
            width, height = small.size
            return DataError(f"{examples.name(index)}: {width} x {height} px cannot be saved as JPEG ({error})")


def _decodes_to(content: bytes, image: Image.Image) -> bool:
    """Return whether a file is a JPEG that yields these pixels without any conversion."""
    if not content.startswith(b"\xff\xd8"):
        return False
    with suppress(Exception):  # Pillow's decoders raise almost any exception
        stored = decode_jpeg(content)
        return stored.mode == "RGB" and stored.size == image.size and stored.tobytes() == image.tobytes()
    return False


def _in_order(encode: _Encoder, examples: Examples, workers: int) -> Iterator[_Encoded | DataError]:
    """Encode all images in threads and yield them in order. The threads run ahead by a limited number of images."""
    Image.init()  # registers the formats once, before the threads start
    pool = ThreadPoolExecutor(workers)
    waiting = deque[Future[_Encoded | DataError]]()
    try:
        for index in range(len(examples)):
            waiting.append(pool.submit(encode, examples, index))
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _PartWriter:
    """Writes the files of one set."""

    def __init__(self, folder: Path, part: str, shard_bytes: int):
        self._folder = folder
        self._part = part
        self._shard_bytes = shard_bytes
        self._shard = _HashedFile(folder / f"{part}-00000.bin")
        self._shards = list[PackedFile]()
        self._names = _HashedFile(folder / f"{part}-names.txt")
        self._rows = list[tuple[int, ...]]()
        self._resized = self._changed = 0

    def add(self, image: _Encoded, label: int, name: str) -> None:
        """Append an image."""
        if self._shard.size and self._shard.size + len(image.data) > self._shard_bytes:
            self._shards.append(self._shard.close())
            self._shard = _HashedFile(self._folder / f"{self._part}-{len(self._shards):05}.bin")
        place = len(self._shards), self._shard.size, len(image.data)
        self._shard.write(image.data)
        self._names.write(os.fsencode(f"{name}\n"))
        self._rows.append((*place, image.height, image.width, label, self._names.size, zlib.crc32(image.data)))
        self._resized += image.is_resized
        self._changed += image.is_changed

    def close(self, listing: Listing) -> PackedPart:
        """Finish all files."""
        self._shards.append(self._shard.close())
        index = BytesIO()
        np.save(index, np.array(self._rows, dtype=INDEX), allow_pickle=False)
        file = _HashedFile(self._folder / f"{self._part}.npy")
        file.write(index.getvalue())
        return PackedPart(
            len(self._rows),
            self._resized,
            self._changed,
            listing.notes,
            file.close(),
            self._names.close(),
            tuple(self._shards),
        )


class _HashedFile:
    """A new file with its SHA-256."""

    def __init__(self, path: Path):
        self.size = 0
        self._path = path
        self._file = path.open("xb")
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def close(self) -> PackedFile:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        return PackedFile(self._path.name, self.size, self._digest.hexdigest())


def _check_side(section: ImageDataSection, side_px: int) -> None:
    sizes = {"data.image_size": section.image_size or 0, "data.eval_resize": section.preparation.eval_resize or 0}
    key = max(sizes, key=lambda key: sizes[key])
    if sizes[key] > side_px:
        raise UsageError(
            f"--side {side_px} is smaller than {key} ({sizes[key]}), so training would enlarge the images again; "
            f"use --side {sizes[key]} or more"
        )


def _check_target(out: Path, overwrite: bool) -> None:
    with writing(out):
        if out.exists() and not out.is_dir():
            raise UsageError(f"--out {out}: is a file; give a folder")
        if out.is_mount():
            raise UsageError(f"--out {out}: a pack cannot replace a mount point; give a folder in it")
        if not out.exists() or not any(out.iterdir()):
            return
    if not overwrite:
        raise UsageError(f"--out {out}: the folder is not empty; give a new one, or --overwrite to replace a pack")
    if not (out / RECORD).exists():
        raise UsageError(f"--out {out}: not replaced, because it contains no {RECORD}; give a new folder")


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `out`. It replaces `out` when the block ends, and is removed if the block fails.

    Raises:
        UsageError: another process is writing it.
        OutputError: it cannot be written.
    """
    unfinished, old = (out.with_name(f".{out.name}.{ending}") for ending in ("part", "old"))
    with writing(out):
        unfinished.mkdir(parents=True, exist_ok=True)
        handle = os.open(unfinished, os.O_RDONLY)
        try:
            _lock(handle, out)
            for left in (*unfinished.iterdir(), *([old] if old.exists() and out.exists() else [])):
                shutil.rmtree(left) if left.is_dir() else left.unlink()  # left by a killed process
            yield unfinished
            if out.exists():
                os.rename(out, old)
            os.rename(unfinished, out)
            shutil.rmtree(old, ignore_errors=True)
        except UsageError:
            raise
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        finally:
            os.close(handle)


def _lock(handle: int, out: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"--out {out}: another w2skd pack is writing it; wait for it or give another folder") from None
    except OSError:  # not supported by some network file systems
        pass


def _describe(unreadable: list[str], total: int) -> str:
    """Describe images that cannot be packed: the first error in full, then names."""
    first, *others = unreadable
    more = f", and {len(others) - _LISTED + 1:,} more" if len(others) >= _LISTED else ""
    also = f"; also {', '.join(others[: _LISTED - 1])}{more}" if others else ""
    return f"{len(unreadable):,} of {total:,} images cannot be packed, nothing was written: {first}{also}"
