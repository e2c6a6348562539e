"""Anchor grids. Teacher and student must have the same grid.

Shapes: N images, A anchors of one image over all levels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from w2skd.errors import RecipeError

SMALLEST_PX = 4
"""Anchors of smaller size would have identical shapes after rounding to whole px."""


class AnchorGrid(NamedTuple):
    """A detector's anchors, level by level of its pyramid.

    Attributes:
        strides_px: distance between neighbouring anchors of each level.
        sizes_px: square roots of the anchors' areas of each level.
        ratios: height / width, for all levels.
    """

    strides_px: tuple[int, ...]
    sizes_px: tuple[tuple[int, ...], ...]
    ratios: tuple[float, ...]

    def generator(self) -> AnchorGenerator:
        """Return torchvision's generator of these anchors."""
        return AnchorGenerator(self.sizes_px, (self.ratios,) * len(self.sizes_px))


def anchor_grid(first_stride_px: int, octaves: int, scale: float) -> AnchorGrid:
    """Return torchvision's grid: five levels with anchors of 32, 64, ... 512 px in three shapes.

    Args:
        first_stride_px: stride of the finest level; it doubles from level to level.
        octaves: sizes per level, spaced evenly (in the logarithm) over one octave.
        scale: factor of all sizes, for images smaller than COCO's at 800 px.

    Raises:
        RecipeError: the smallest anchors would be below 4 px.
    """
    smallest = int(32 * scale)
    if smallest < SMALLEST_PX:
        raise RecipeError(
            f"anchor_scale: {scale:g} gives anchors of {32 * scale:g} px, the minimum is {SMALLEST_PX} px; "
            f"use {SMALLEST_PX / 32:g} or more"
        )
    levels = range(5)
    sizes = tuple(tuple(int(scale * 32 * 2 ** (level + part / octaves)) for part in range(octaves)) for level in levels)
    return AnchorGrid(tuple(first_stride_px * 2**level for level in levels), sizes, (0.5, 1.0, 2.0))


def anchors_of(generator: AnchorGenerator, images: Tensor, levels: Sequence[Tensor]) -> Tensor:
    """Return the anchors [A, 4] (xyxy, px) of every image in a batch, ordered by level, row and cell.

    They are float32 for features of any dtype: in bf16, an edge at 1,000 px would be 4 px off.

    Args:
        generator: generator with as many sizes as levels.
        images: [N, 3, H, W].
        levels: features [N, channels, h, w] of each level.
    """
    shapes = [features.new_empty((0, 0, *features.shape[-2:]), dtype=torch.float32) for features in levels]
    height, width = images.shape[-2:]
    anchors: Tensor = generator(ImageList(images, [(height, width)]), shapes)[0]
    return anchors
