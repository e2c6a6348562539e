"""Micro-batches of images with boxes.

Shapes: n images, k boxes of one image; H x W px with padding.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Boxes:
    """The labelled boxes of one image.

    Attributes:
        boxes: float32 [k, 4], xyxy in px; in a batch, px of the resized image.
        labels: int64 [k], 0 to K - 1, in the order of the category ids.
    """

    boxes: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        assert self.boxes.shape == (len(self.labels), 4), f"{tuple(self.boxes.shape)}, {tuple(self.labels.shape)}"

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImagesWithBoxes:
    """One micro-batch of n examples.

    Attributes:
        images: float32 [n, 3, H, W], normalised, padded with 0 at the right and bottom; H and W are multiples of 32.
        sizes: (height, width) in px of each image without padding.
        targets: boxes of each image.
        ids: int64 [n], indices into the set.
        step: global optimizer step; 0 outside training.
        scales: float32 [n, 2] on the CPU, (y, x): px of the original image = px / scale, if nothing was cropped or
            mirrored.
    """

    images: Tensor
    sizes: tuple[tuple[int, int], ...]
    targets: tuple[Boxes, ...]
    ids: Tensor
    step: int
    scales: Tensor

    @property
    def model_inputs(self) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
        """Arguments of a detector's forward: images and their sizes."""
        return (self.images, self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)
