"""From one image with boxes in its own size to the pixels and boxes that a detector sees.

Every draw is a function of counters, so that nobody's generator is read or moved. Pixels stay bytes throughout.

Legend: H x W px of an image; k boxes, xyxy in px.
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
    """What became of one image.

    Attributes:
        pixels: uint8 [H, W, 3].
        target: its boxes, in px of `pixels`, of positive area and within the image; none may be left.
        scale: (y, x), by which it was enlarged.
    """

    pixels: NDArray[np.uint8]
    target: Boxes
    scale: tuple[float, float]


@dataclass(frozen=True)
class DetectionTransform:
    """Crop, resize, mirror, in this order.

    An image is resized (bilinear, antialiased) so that its shorter side is `min_size_px`, or less where its longer side
    would exceed `max_size_px` (Ren et al. 2015, "Faster R-CNN"); smaller images are enlarged.

    Attributes:
        min_size_px: of the shorter side.
        max_size_px: that the longer side may have.
        flip: mirror every second image from left to right.
        jitter: least and greatest factor on both sizes, drawn evenly.
        crop: least and greatest share of either side that is kept, drawn for each side on its own, at a random place;
            None keeps all. A box stays when its centre does, and is clipped.
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
        """The same sizes, with nothing drawn."""
        return replace(self, flip=False, jitter=(1.0, 1.0), crop=None)

    def __call__(self, image: Image.Image, target: Boxes, seed: int = 0, *counters: int) -> Transformed:
        """Transform one image.

        Args:
            image: RGB, in its own size.
            target: boxes in px of `image`.
            seed: of the draws.
            counters: what they are for: (epoch, example).
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
            # Rounding may have moved an edge by the last bit.
            boxes = torch.minimum(boxes, torch.tensor([width, height] * 2, dtype=torch.float32))
        if self.flip and flip < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        # What is too thin for float32 after all this would make a detector's logarithms infinite.
        solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return Transformed(np.asarray(image), Boxes(boxes[solid], labels[solid]), scale)


def _fitted(size: tuple[int, int], min_size_px: int, max_size_px: int, factor: float) -> tuple[int, int]:
    """The size of the same shape that fits; each side is rounded, and is 1 px at least."""
    short, long = min(size), max(size)
    scale = factor * min(min_size_px / short, max_size_px / long)
    width, height = (max(1, round(side * scale)) for side in size)
    return width, height


def _frame(size: tuple[int, int], share: tuple[float, float], draws: list[float]) -> tuple[int, int, int, int]:
    """What is kept of an image of (width, height): xyxy in whole px."""
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
