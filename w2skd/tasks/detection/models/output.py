"""Inputs and outputs that all detectors share.

Shapes: N images of H x W px with padding, K classes; k ground-truth boxes and d detections of one image.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Truth(Protocol):
    """Ground truth of one image."""

    @property
    def boxes(self) -> Tensor:
        """float32 [k, 4], xyxy in px of the input image, of positive width and height."""
        ...

    @property
    def labels(self) -> Tensor:
        """int64 [k], from 0 to K - 1."""
        ...


class Detections(NamedTuple):
    """Detections of one image, by descending score.

    Attributes:
        boxes: float32 [d, 4], xyxy in px of the input image, clipped to it.
        scores: float32 [d], from 0 to 1.
        labels: int64 [d], from 0 to K - 1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class DetectorOutput(NamedTuple):
    """Output of one forward.

    Attributes:
        losses: parts of the task loss by name, 0-d float32; empty without targets.
        heads: head outputs by name, float32; listed in the docstring of each detector class.
        detections: per image; empty with targets or `detect=False`.
    """

    losses: dict[str, Tensor]
    heads: dict[str, Any]
    detections: list[Detections]


Sizes = Sequence[tuple[int, int]]
"""(height, width) in px of each image within its padding."""
