"""What every detector takes and gives.

Legend: N images, H x W px with their padding, K classes; k boxes of one image, d detections of one image.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Truth(Protocol):
    """The objects of one image."""

    @property
    def boxes(self) -> Tensor:
        """float32 [k, 4], xyxy in px of the input image, of positive width and height."""
        ...

    @property
    def labels(self) -> Tensor:
        """int64 [k], from 0 to K - 1."""
        ...


class Detections(NamedTuple):
    """What was found in one image, the highest score first.

    Attributes:
        boxes: float32 [d, 4], xyxy in px of the input image, clipped to it.
        scores: float32 [d], from 0 to 1.
        labels: int64 [d], from 0 to K - 1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class DetectorOutput(NamedTuple):
    """The answer of one forward.

    Attributes:
        losses: the task's parts by name, 0-d float32; empty without targets.
        heads: what the heads said, in float32, by name; each family's docstring tells.
        detections: of each image; empty with targets, or where nobody asked for them.
    """

    losses: dict[str, Tensor]
    heads: dict[str, Any]
    detections: list[Detections]


Sizes = Sequence[tuple[int, int]]
"""(height, width) in px of each image within its padding."""
