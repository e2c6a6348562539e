"""What every feed of images with boxes hands out.

Legend: n images, k boxes of one of them; H x W px of the batch with its padding.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Boxes:
    """The objects of one image.

    Attributes:
        boxes: float32 [k, 4], xyxy in px; of a batch those of the input image.
        labels: int64 [k], from 0 to K - 1 in the order of the categories' ids.
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
        images: float32 [n, 3, H, W], normalised, padded with 0 at right and bottom; H and W are multiples of 32.
        sizes: (height, width) in px of each image within its padding.
        targets: of each image, boxes in px of it as it is here.
        ids: int64 [n], indices into the set.
        step: the global optimizer step that it belongs to; 0 outside training.
        scales: float32 [n, 2], (y, x); px of the original image = px here / scale, where nothing was cropped or
            mirrored. On the CPU, where scoring is done.
    """

    images: Tensor
    sizes: tuple[tuple[int, int], ...]
    targets: tuple[Boxes, ...]
    ids: Tensor
    step: int
    scales: Tensor

    @property
    def model_inputs(self) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
        """What a detector's forward takes: images and their sizes."""
        return (self.images, self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)
