"""Images in one folder a class: listed first, decoded when needed, brought to one size and to RGB."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from w2skd.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
"""What a file may contain whatever its name, Pillow's other readers (which may start programs) being left out."""

_CHUNK = 64
_MAX_THREADS = 8


@dataclass(frozen=True)
class FileExamples:
    """Images in files.

    Attributes:
        root: folder from which examples are named.
        paths: the files, under `root`.
    """

    root: Path
    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> Image.Image:
        """See `open_image`."""
        return open_image(self.paths[index])

    def mode(self, index: int) -> str:
        """See `colour_mode`."""
        return colour_mode(self.paths[index])

    def read(self, indices: Tensor, size_px: int) -> Tensor:
        """See `read_images`."""
        return read_images([self.paths[index] for index in indices.tolist()], size_px)

    def name(self, index: int) -> str:
        """The path below `root`, with slashes."""
        return self.paths[index].relative_to(self.root).as_posix()


def list_class_folders(root: Path, folder: str, key: str) -> dict[str, list[Path]]:
    """List the images of every class under ``root/folder``, both in the order of their names.

    Hidden files and folders are ignored, and files without one of `EXTENSIONS`.

    Args:
        root: the folder of folders, ``data.root``.
        folder: name of one part, such as ``train``.
        key: what the recipe calls that name, for the error.

    Raises:
        DataError: a folder is missing, cannot be read, or has no classes; a class has no images.
    """
    if not root.is_dir():
        raise DataError(f"data.root: there is no folder {root.absolute()}")
    path = root / folder
    if not path.is_dir():
        others = ", ".join(entry.name for entry in _visible(root) if entry.is_dir()) or "none"
        raise DataError(f"{key}: there is no folder '{folder}' in {root.absolute()}; the folders there: {others}")
    classes = {entry.name: _list_images(entry) for entry in _visible(path) if entry.is_dir()}
    if not classes:
        raise DataError(f"{path}: no folders in it; one a class is expected")
    return classes


def check_same_classes(train: Sequence[str], train_path: Path, evaluation: Sequence[str], eval_path: Path) -> None:
    """Refuse two folders whose classes differ.

    Raises:
        DataError: naming the classes that only one of them has.
    """
    differences = [
        f"only in {path}: {', '.join(extra[:5])}{', ...' if len(extra) > 5 else ''}"
        for path, extra in (
            (train_path, sorted(set(train) - set(evaluation))),
            (eval_path, sorted(set(evaluation) - set(train))),
        )
        if extra
    ]
    if differences:
        raise DataError(f"the classes for training and for evaluation differ; {'; '.join(differences)}")


def read_images(paths: Sequence[Path], size: int) -> Tensor:
    """Decode images in a few threads.

    EXIF orientation is applied. Unless an image is a square of `size` px already, its shorter side is brought to
    `size` (bicubic, antialiased) and the centre is taken.

    Returns:
        uint8 [N, 3, size, size], RGB.

    Raises:
        DataError: a file cannot be read or decoded (the first such in the order of `paths`), or the pixels would not
            fit into this machine's memory.
    """
    _check_memory(len(paths), size)
    pixels = np.empty((len(paths), 3, size, size), dtype=np.uint8)

    def read_chunk(start: int) -> None:
        for index in range(start, min(start + _CHUNK, len(paths))):
            pixels[index] = np.asarray(square(open_image(paths[index]), size)).transpose(2, 0, 1)

    Image.init()  # registers the formats here, before threads race to do it
    with ThreadPoolExecutor(min(_MAX_THREADS, len(os.sched_getaffinity(0)))) as pool:
        for _ in pool.map(read_chunk, range(0, len(paths), _CHUNK)):
            pass
    return torch.from_numpy(pixels)


def _visible(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{path}: cannot be listed: {error.strerror}") from None


def _list_images(path: Path) -> list[Path]:
    entries = _visible(path)
    images = [entry for entry in entries if entry.suffix.lower() in EXTENSIONS and not entry.is_dir()]
    if not images:
        what = f"none of its {len(entries)} entries is a file that ends in" if entries else "it is empty; expected"
        raise DataError(f"{path}: class '{path.name}' has no images: {what} {', '.join(EXTENSIONS)}")
    return images


def open_image(path: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Decode one image, upright, in RGB and in its own size.

    Args:
        path: the file.
        size: (width, height) in px that the image is said to have. Where it has that only as it lies in the file, it is
            not turned: what is said about its content then holds for it as it lies.

    Raises:
        DataError: the file cannot be read or decoded, its header claims more pixels than are safe, or it has another
            size, turned or not.
    """
    with _opened(path) as image:
        rgb = _to_rgb(_upright(image, size), path)
        rgb.load()
    if size not in (None, rgb.size):
        here, said = (f"{width} x {height}" for width, height in (rgb.size, size))
        raise DataError(f"{path}: has {here} px (width x height), but its annotations are of an image of {said} px")
    return rgb


def colour_mode(path: Path) -> str:
    """How an image's colours are stored, by its header: Pillow's name, RGBA where a colour means transparency.

    Raises:
        DataError: as for `open_image`.
    """
    with _opened(path) as image:
        return "RGBA" if "transparency" in image.info else image.mode


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image that is decoded in the block; what goes wrong there becomes a `DataError` that names the file."""
    try:
        with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
            yield image
    except Image.DecompressionBombError:
        raise DataError(f"{path}: refused, its header claims more than {2 * _pixel_limit():,} pixels") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image, or of a kind that is not read: remove or convert it") from None
    except DataError:
        raise
    except Exception as error:  # damaged input makes Pillow's decoders raise about anything
        if (reason := getattr(error, "strerror", None)) is not None:  # the system's: nothing is wrong with the image
            raise DataError(f"{path}: {reason}") from error
        raise DataError(f"{path}: damaged, replace or remove it: {error}") from error


def _upright(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return image
    turned = ImageOps.exif_transpose(image)
    return image if image.size == size != turned.size else turned


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        wide = np.asarray(image, dtype=np.float64)
        image = Image.fromarray(np.round(wide / 257).astype(np.uint8))  # Pillow would clip all above 255 to white
    elif image.mode in ("I", "F"):
        raise DataError(f"{path}: pixels of mode {image.mode} have no defined range; save it with 8 or 16 bits")
    elif "transparency" in image.info:
        image = image.convert("RGBA")  # what Pillow wants between, else it warns
    return image.convert("RGB")


def square(image: Image.Image, size: int) -> Image.Image:
    """The centre of an image, its shorter side brought to `size` px (bicubic, antialiased)."""
    width, height = image.size
    if width == height == size:
        return image
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    # Resizes and crops in one go; what lies beyond the box still counts in the filter at its edges.
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def _pixel_limit() -> int:
    assert Image.MAX_IMAGE_PIXELS is not None
    return Image.MAX_IMAGE_PIXELS


def _check_memory(count: int, size: int) -> None:
    needed, there = count * 3 * size**2, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise DataError(
            f"{count:,} images of {size} x {size} px take {needed / 2**30:.0f} GiB, but this machine has "
            f"{there / 2**30:.0f} GiB; set data.train_examples or a smaller data.image_size"
        )
