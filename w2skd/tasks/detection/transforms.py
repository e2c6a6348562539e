"""Augmentation and resizing of one image with its boxes. Pixels stay bytes.

Random draws are functions of counters; no generator is used.

Shapes: H x W px of an image; k boxes, xyxy in px.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from w2skd.data.counter import uniform
from w2skd.tasks.detection.batch import Boxes

_DRAWS = 6


class Transformed(NamedTuple):
    """One transformed image.

    Attributes:
        pixels: uint8 [H, W, 3].
        target: its boxes in px of `pixels`, with positive area and within the image; possibly none.
        scale: (y, x) factors from the original (or its crop) to `pixels`.
    """

    pixels: NDArray[np.uint8]
    target: Boxes
    scale: tuple[float, float]


@dataclass(frozen=True)
class DetectionTransform:
    """Crop, resize and mirror, in this order.

    Images are resized (bilinear, antialiased) so that the shorter side is `min_size_px`, or less if the longer side
    would exceed `max_size_px` (Ren et al. 2015, "Faster R-CNN"). Smaller images are enlarged.

    Attributes:
        min_size_px: length of the shorter side.
        max_size_px: maximum length of the longer side.
        flip: mirror horizontally with probability 0.5.
        jitter: minimum and maximum factor on both lengths, drawn uniformly.
        crop: minimum and maximum share of each side to keep, drawn per side, at a random position; None disables
            cropping. A box is kept if its centre is, and clipped.
    """

    min_size_px: int
    max_size_px: int
    flip: bool = False
    jitter: tuple[float, float] = (1.0, 1.0)
    crop: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        assert 1 <= self.min_size_px <= self.max_size_px, f"{self.min_size_px} to {self.max_size_px} px"
        assert 0 < self.jitter[0] <= self.jitter[1], f"jitter {self.jitter}"
        assert self.crop is None or 0 < self.crop[0] <= self.crop[1] <= 1, f"crop {self.crop}"

    @property
    def plain(self) -> "DetectionTransform":
        """The same transform without augmentation."""
        return replace(self, flip=False, jitter=(1.0, 1.0), crop=None)

    def plain_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) in px that an image of this size has without augmentation."""
        return _fitted((width, height), self.min_size_px, self.max_size_px, 1.0)[::-1]

    def __call__(self, image: Image.Image, target: Boxes, seed: int = 0, *counters: int) -> Transformed:
        """Transform one image.

        Args:
            image: RGB, at its own size.
            target: boxes in px of `image`.
            seed: seed of the draws.
            counters: (epoch, example).
        """
        flip, factor, *crop = uniform(seed, *counters, torch.arange(_DRAWS)).tolist()
        boxes, labels = target.boxes.clone(), target.labels
        if self.crop is not None:
            frame = _frame(image.size, self.crop, crop)
            image = image.crop(frame)
            boxes, labels = _cropped(boxes, labels, frame)
        low, high = self.jitter
        width, height = _fitted(image.size, self.min_size_px, self.max_size_px, low + (high - low) * factor)
        scale = (height / image.height, width / image.width)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            boxes *= torch.tensor([scale[1], scale[0]] * 2)
            # Rounding may move an edge beyond the image by the last bit.
            boxes = torch.minimum(boxes, torch.tensor([width, height] * 2, dtype=torch.float32))
        if self.flip and flip < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        # A box that became too thin for float32 would make the logarithms of the box coder infinite.
        solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return Transformed(np.asarray(image), Boxes(boxes[solid], labels[solid]), scale)


def _fitted(size: tuple[int, int], min_size_px: int, max_size_px: int, factor: float) -> tuple[int, int]:
    """Return the resized (width, height), rounded, at least 1 px each."""
    short, long = min(size), max(size)
    scale = factor * min(min_size_px / short, max_size_px / long)
    width, height = (max(1, round(side * scale)) for side in size)
    return width, height


def _frame(size: tuple[int, int], share: tuple[float, float], draws: list[float]) -> tuple[int, int, int, int]:
    """Return the crop of an image of (width, height): xyxy in whole px."""
    edges = []
    for side, share_drawn, place_drawn in zip(size, draws[:2], draws[2:], strict=True):
        kept = max(1, round(side * (share[0] + (share[1] - share[0]) * share_drawn)))
        start = int((side - kept + 1) * place_drawn)
        edges.append((start, start + kept))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def _cropped(boxes: Tensor, labels: Tensor, frame: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    low, high = (torch.tensor(corner, dtype=torch.float32) for corner in (frame[:2], frame[2:]))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    stays = ((centres >= low) & (centres < high)).all(1)
    clipped = torch.cat([boxes[:, :2].maximum(low) - low, boxes[:, 2:].minimum(high) - low], 1)
    return clipped[stays], labels[stays]
