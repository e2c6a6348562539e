"""Windows: the part of an image that becomes the model's input, chosen from the image's size before decoding."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torchvision.transforms import v2

REDUCTIONS = (8, 4, 2)
"""Divisors of the scales at which Pillow decodes JPEG files."""


class Window(NamedTuple):
    """A part of an image that is cut, resized, and cut again to a square of S px.

    Attributes:
        box: left, top, right and bottom of the part, in px of the upright image.
        resized: width and height of the resized part.
        offset: left and top of the square within the resized part.
    """

    box: tuple[int, int, int, int]
    resized: tuple[int, int]
    offset: tuple[int, int] = (0, 0)

    @property
    def reduction(self) -> int:
        """The largest of 8, 4, 2 and 1 by which decoding can divide the size and keep the square's resolution."""
        left, top, right, bottom = self.box
        shrinkage = min((right - left) / self.resized[0], (bottom - top) / self.resized[1])
        return next((by for by in REDUCTIONS if shrinkage >= by), 1)

    def square(self, size_px: int) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of the square in px of the upright image, with fractions."""
        left, top, right, bottom = self.box
        across, down = (right - left) / self.resized[0], (bottom - top) / self.resized[1]
        x, y = left + self.offset[0] * across, top + self.offset[1] * down
        return x, y, min(right, x + size_px * across), min(bottom, y + size_px * down)


def random_window(size: tuple[int, int], size_px: int, scale: tuple[float, float]) -> Window:
    """Draw the window that torchvision's v2.RandomResizedCrop would draw from torch's global generator.

    Args:
        size: width and height of the upright image.
        size_px: S.
        scale: minimum and maximum share of the image's area.
    """
    width, height = size
    drawn = _random_crop(size_px, scale).make_params([torch.empty(3, height, width, device="meta")])
    left, top = drawn["left"], drawn["top"]
    return Window((left, top, left + drawn["width"], top + drawn["height"]), (size_px, size_px))


def centre_window(size: tuple[int, int], size_px: int, resize_px: int) -> Window | None:
    """Return the window of torchvision's v2.Resize of the shorter side and v2.CenterCrop.

    Args:
        size: width and height of the upright image.
        size_px: S.
        resize_px: length of the shorter side after resizing.

    Returns:
        The window; None if `resize_px` is below S, where the square has black borders.
    """
    if resize_px < size_px:
        return None
    shorter, longer = min(size), max(size)
    longer_px = int(resize_px * longer / shorter)
    width, height = (resize_px, longer_px) if size[0] <= size[1] else (longer_px, resize_px)
    offset = round((width - size_px) / 2), round((height - size_px) / 2)
    return Window((0, 0, *size), (width, height), offset)


@lru_cache(maxsize=16)
def _random_crop(size_px: int, scale: tuple[float, float]) -> v2.RandomResizedCrop:
    return v2.RandomResizedCrop(size_px, scale)
