"""Generated images on disk: a grid of the first ones, and one PNG file per image.

Shapes: n images of H x W px.
"""

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from w2skd.pictures.sheet import MARGIN_PX, SHEET_PX, Sheet, enlarged
from w2skd.platform.files import writing

_TILE_PX = 96
_GAP_PX = 2


def draw_samples(images: Tensor, path: Path, *, title: str) -> None:
    """Draw generated images as a roughly square grid, row by row; small ones are enlarged without smoothing.

    Args:
        images: uint8 [n, 3, H, W], RGB; if the sheet is too small for all, the first ones are drawn and the subtitle
            gives both numbers.
        path: a PNG file; the same images and matplotlib version yield the same bytes.
        title: heading of the picture.

    Raises:
        UsageError: the file is not named ``.png``.
        OutputError: the picture cannot be written.
    """
    _check_images(images)
    count, _, height, width = images.shape
    zoom = max(1, round(_TILE_PX / max(height, width)))
    across, down = (max(1, SHEET_PX // (zoom * side + _GAP_PX)) for side in (width, height))
    columns = max(1, min(max(math.ceil(math.sqrt(count)), math.ceil(count / down)), across))
    shown = min(count, columns * down)
    sheet = Sheet()
    number = f"{shown:,}" if shown == count else f"{shown:,} of {count:,}"
    scale = f", enlarged {zoom} times" if zoom > 1 else ""
    top = sheet.head(title, f"{number} image{'s' if count != 1 else ''}, {width} x {height} pixels{scale}")
    for index, pixels in enumerate(images[:shown].permute(0, 2, 3, 1).cpu().numpy()):
        row, column = divmod(index, columns)
        x, y = MARGIN_PX + column * (zoom * width + _GAP_PX), top + row * (zoom * height + _GAP_PX)
        sheet.paste(x, y, enlarged(pixels, zoom))
    sheet.save(path)


def write_samples(images: Tensor, folder: Path) -> None:
    """Write each image to its own PNG file: ``000000.png``, ``000001.png``, ...

    Args:
        images: uint8 [n, 3, H, W], RGB; written losslessly.
        folder: new or empty.

    Raises:
        OutputError: the folder cannot be created, or the disk is full.
    """
    _check_images(images)
    digits = max(6, len(str(len(images) - 1)))  # so that file names sort in order
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for number, pixels in enumerate(images.permute(0, 2, 3, 1).cpu().contiguous().numpy()):
            # The lowest compression: files are a third larger but several times faster to write.
            Image.fromarray(pixels).save(folder / f"{number:0{digits}d}.png", compress_level=1)


def _check_images(images: Tensor) -> None:
    assert images.dtype is torch.uint8, images.dtype
    assert images.ndim == 4, images.shape
    assert images.shape[1] == 3, images.shape
