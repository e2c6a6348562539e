"""Generated images: a picture of many, and files of all.

Shape letters: n images of H x W px.
"""

import math
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from w2skd.errors import UsageError
from w2skd.pictures.sheet import MARGIN_PX, SHEET_PX, Sheet, check_picture_path, enlarged
from w2skd.platform.files import write_atomically, writing

_TILE_PX = 96
_GAP_PX = 2


def draw_samples(images: Tensor, path: Path, *, title: str, subtitle: str = "", columns: int | None = None) -> None:
    """Draw generated images in a grid, row by row, small ones enlarged by a whole number without smoothing.

    Args:
        images: uint8 [n, 3, H, W], RGB; the first of them are drawn, as many as a sheet has room for, which is said.
        path: a PNG file; the same images give the same bytes with the same matplotlib.
        title: what made them.
        subtitle: what to know of them.
        columns: images of a row, as far as they fit; None makes about a square.

    Raises:
        UsageError: the file is not named ``.png``.
        OutputError: the picture cannot be written.
    """
    check_picture_path(path)
    _check_images(images)
    count, _, height, width = images.shape
    zoom = max(1, round(_TILE_PX / max(height, width)))
    across, down = (max(1, SHEET_PX // (zoom * side + _GAP_PX)) for side in (width, height))
    columns = max(1, min(columns or max(math.ceil(math.sqrt(count)), math.ceil(count / down)), across))
    shown = min(count, columns * down)
    sheet = Sheet()
    of = f"{shown:,}" if shown == count else f"{shown:,} of {count:,}"
    how = f", enlarged {zoom} times" if zoom > 1 else ""
    facts = f"{of} image{'s' if count != 1 else ''}, {width} x {height} pixels{how}"
    top = sheet.head(title, f"{subtitle}; {facts}" if subtitle else facts)
    for index, pixels in enumerate(images[:shown].permute(0, 2, 3, 1).cpu().numpy()):
        row, column = divmod(index, columns)
        x, y = MARGIN_PX + column * (zoom * width + _GAP_PX), top + row * (zoom * height + _GAP_PX)
        sheet.paste(x, y, enlarged(pixels, zoom))
    write_atomically(path, sheet.png())


def check_samples_folder(folder: Path) -> None:
    """Say before hours of work what would go wrong after them, when `write_samples` writes there.

    Raises:
        UsageError: the folder holds something already, which samples would mix with.
        OutputError: it cannot be made or written to.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder}: not empty; samples go into a new or an empty folder")
    existing = next(place for place in (folder, *folder.parents, Path()) if place.exists())
    with writing(folder), tempfile.TemporaryFile(dir=existing):
        pass


def write_samples(images: Tensor, folder: Path) -> None:
    """Write every image as a PNG file of its own: ``000000.png``, ``000001.png``, in their order.

    Args:
        images: uint8 [n, 3, H, W], RGB; written without loss.
        folder: new or empty.

    Raises:
        OutputError: the folder cannot be made, or the disk is full.
    """
    _check_images(images)
    digits = max(6, len(str(len(images) - 1)))  # so that any listing has them in order
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for number, pixels in enumerate(images.permute(0, 2, 3, 1).cpu().contiguous().numpy()):
            # The least compression: a third larger, several times faster.
            Image.fromarray(pixels).save(folder / f"{number:0{digits}d}.png", compress_level=1)


def _check_images(images: Tensor) -> None:
    assert images.dtype is torch.uint8, images.dtype
    assert images.ndim == 4, images.shape
    assert images.shape[1] == 3, images.shape
