"""A picture of the images of a training batch.

Shapes: N images of H x W px.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from w2skd.pictures.sheet import GAP_PX, LINE_PX, MARGIN_PX, SHEET_PX, TEXT_PX, Sheet, cut, enlarged

BATCH_IMAGES = 64
"""Maximum number of images drawn, a square number; fewer if they are large."""

_TILE_PX = 160


def draw_batch(images: Tensor, captions: Sequence[str], path: Path, *, title: str) -> None:
    """Draw the first images of a batch in a grid, enlarged by an integer factor without interpolation.

    Args:
        images: uint8 [N, 3, H, W], RGB.
        captions: N lines, one below each image, shortened to its width.
        path: PNG file to write.
        title: heading; a subtitle gives the number of images.

    Raises:
        UsageError: the file name does not end in ``.png``.
        OutputError: the picture cannot be written.
    """
    assert images.dtype is torch.uint8, images.dtype
    assert images.shape[1:2] == (3,), images.shape
    assert len(images) == len(captions), (len(images), len(captions))
    height, width = images.shape[2:]
    zoom = max(1, round(_TILE_PX / max(height, width)))
    across = max(2, min(math.isqrt(BATCH_IMAGES), SHEET_PX // (zoom * width + GAP_PX)))
    shown = min(len(images), across * across)
    columns = min(across, math.ceil(math.sqrt(shown)))
    sheet = Sheet()
    scale = f", enlarged {zoom} times" if zoom > 1 else ""
    top = sheet.head(title, f"{shown} of {len(images)}, {width} x {height} pixels{scale}")
    pixels = images[:shown].permute(0, 2, 3, 1).cpu().numpy()
    for index, (tile, caption) in enumerate(zip(pixels, captions, strict=False)):
        row, column = divmod(index, columns)
        x = MARGIN_PX + column * (zoom * width + GAP_PX)
        y = top + row * (zoom * height + LINE_PX + GAP_PX)
        sheet.paste(x, y, enlarged(tile, zoom))
        sheet.write(x, y + zoom * height + LINE_PX // 2, cut(caption, zoom * width, TEXT_PX))
    sheet.save(path)
