"""The grid of anchors, on which a teacher's and a student's heads must agree.

Legend: N images, A anchors of one image over all levels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from w2skd.errors import RecipeError

_SMALLEST_PX = 4
"""Rounded to whole px, the three shapes of a smaller anchor would be one and the same."""


class AnchorGrid(NamedTuple):
    """Where a detector looks, level by level of its pyramid.

    Attributes:
        strides_px: distance of neighbouring anchors.
        sizes_px: square roots of the anchors' areas.
        ratios: their heights, divided by their widths.
    """

    strides_px: tuple[int, ...]
    sizes_px: tuple[tuple[int, ...], ...]
    ratios: tuple[float, ...]

    def generator(self) -> AnchorGenerator:
        """Torchvision's generator of these anchors."""
        return AnchorGenerator(self.sizes_px, (self.ratios,) * len(self.sizes_px))


def anchor_grid(first_stride_px: int, octaves: int, scale: float) -> AnchorGrid:
    """Torchvision's five levels with anchors of 32, 64, ... 512 px, in three shapes.

    Args:
        first_stride_px: of the finest level; it doubles from level to level.
        octaves: sizes per level, the octave being divided evenly among them.
        scale: factor of all sizes, for images that are smaller than COCO's at 800 px.

    Raises:
        RecipeError: the scale would make anchors too small to be told apart.
    """
    smallest = int(32 * scale)
    if smallest < _SMALLEST_PX:
        raise RecipeError(
            f"anchor_scale: {scale:g} would make anchors of {32 * scale:g} px; "
            f"{_SMALLEST_PX / 32:g} or more gives {_SMALLEST_PX} px or more"
        )
    levels = range(5)
    sizes = tuple(tuple(int(scale * 32 * 2 ** (level + part / octaves)) for part in range(octaves)) for level in levels)
    return AnchorGrid(tuple(first_stride_px * 2**level for level in levels), sizes, (0.5, 1.0, 2.0))


def anchors_of(generator: AnchorGenerator, images: Tensor, levels: Sequence[Tensor]) -> Tensor:
    """Anchors [A, 4] in px, xyxy, which all images of a batch share; level by level, row by row, cell by cell.

    They are float32 whatever the features are: in bf16 an edge at 1,000 px would be 4 px off.

    Args:
        generator: as many sizes as levels.
        images: [N, 3, H, W].
        levels: features [N, channels, h, w] of each level.
    """
    shapes = [features.new_empty((0, 0, *features.shape[-2:]), dtype=torch.float32) for features in levels]
    height, width = images.shape[-2:]
    anchors: Tensor = generator(ImageList(images, [(height, width)]), shapes)[0]
    return anchors
