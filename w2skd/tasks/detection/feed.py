"""Reading of images with boxes in data workers, and their delivery to the training device.

The workers decode, augment, resize and pad; the device normalises. As for labelled images (`w2skd.data.streaming`),
the batches do not depend on the number of workers: the order of an epoch is a function of (seed, epoch), the
augmentation of an example a function of (seed, epoch, example).

Shapes: n images of a micro-batch, H x W px with padding; k boxes of one image, M of all n.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from w2skd.data.images import Normalization
from w2skd.data.parts import equal_parts, part_size
from w2skd.data.streaming import Request
from w2skd.errors import DataError
from w2skd.tasks.detection.batch import Boxes, ImagesWithBoxes
from w2skd.tasks.detection.listing import BoxTable, Pictures
from w2skd.tasks.detection.transforms import DetectionTransform, Transformed

STRIDE_PX = 32
"""Stride of the coarsest feature map of a ResNet or MobileNet; the sides of a batch are multiples of it."""


@dataclass(frozen=True, eq=False)
class PaddedImages:
    """One micro-batch of padded images, as data workers return it.

    Attributes:
        pixels: uint8 [n, H, W, 3], 0 in the padding.
        sizes: (height, width) in px of each image.
        counts: boxes of each image.
        boxes: float32 [M, 4].
        labels: int64 [M].
        scales: (y, x) of each image.
    """

    pixels: Tensor
    sizes: tuple[tuple[int, int], ...]
    counts: tuple[int, ...]
    boxes: Tensor
    labels: Tensor
    scales: tuple[tuple[float, float], ...]

    def pin_memory(self) -> "PaddedImages":
        """Return a copy whose tensors are in page-locked memory."""
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device, *, non_blocking: bool) -> "PaddedImages":
        """Return a copy whose tensors are on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """See `Tensor.record_stream`."""
        for tensor in (self.pixels, self.boxes, self.labels):
            tensor.record_stream(stream)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "PaddedImages":
        return replace(self, pixels=change(self.pixels), boxes=change(self.boxes), labels=change(self.labels))


@dataclass(frozen=True, eq=False)
class ReadBoxes:
    """Reads, transforms and pads a micro-batch.

    Attributes:
        examples: the images.
        table: their boxes.
        transform: applied to each image and its boxes.
        seed: seed of the augmentation.
    """

    examples: Pictures
    table: BoxTable
    transform: DetectionTransform
    seed: int = 0

    @property
    def plain(self) -> "ReadBoxes":
        """The same reader without augmentation."""
        return replace(self, transform=self.transform.plain)

    def __call__(self, request: Request) -> PaddedImages | DataError:
        """Return the micro-batch, or the error of an image that cannot be read."""
        try:
            return _pad([self._read(example, request.epoch) for example in request.ids])
        except DataError as error:
            return error

    def _read(self, example: int, epoch: int) -> Transformed:
        return self.transform(self.examples.open(example), self.table.of(example), self.seed, epoch, example)


class DeliverBoxes:
    """Moves micro-batches to the device and normalises them there.

    Args:
        normalization: mean and standard deviation of pixels scaled to [0, 1].
        device: device of the batches.
        channels_last: memory format of the images.
    """

    def __init__(self, normalization: Normalization, device: torch.device, channels_last: bool):
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (normalization.mean, normalization.std))
        self._scale_and_shift = (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)
        self.device = device
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, made: PaddedImages, ids: Tensor, step: int = 0, number: int = 0) -> ImagesWithBoxes:
        """Return the batch of the examples `ids` (int64 [n], on the device)."""
        boxes, labels = (
            torch.split(part.to(self.device, non_blocking=True), list(made.counts))
            for part in (made.boxes, made.labels)
        )
        images = self._normalize(made.pixels.to(self.device, non_blocking=True), made.sizes)
        return ImagesWithBoxes(
            images, made.sizes, tuple(map(Boxes, boxes, labels)), ids, step, torch.tensor(made.scales)
        )

    def _normalize(self, pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Return (pixel / 255 - mean) / std, float32 [n, 3, H, W] with 0 in the padding, of uint8 [n, H, W, 3]."""
        n, full_height, full_width, _ = pixels.shape
        images = torch.empty((n, 3, full_height, full_width), device=self.device, memory_format=self._format)
        images.copy_(pixels.permute(0, 3, 1, 2))
        scale, shift = (self._row(values, full_width) for values in self._scale_and_shift)
        torch.addcmul(shift, images, scale, out=images)
        for image, (height, width) in zip(images, sizes, strict=True):
            image[:, height:] = 0
            image[:, :height, width:] = 0
        return images

    def _row(self, colours: Tensor, width: int) -> Tensor:
        # Expanded to one row of pixels: a multiply-add that broadcasts over the colours only is several times slower,
        # and sizes vary too much to keep whole images of constants.
        return colours.view(1, 3, 1, 1).expand(1, 3, 1, width).contiguous(memory_format=self._format)


class Part(NamedTuple):
    """Images that one evaluation batch holds.

    Attributes:
        ids: indices of the images, all of the same size with padding.
        size: length to which the batch is filled up, equal for all images of this size.
    """

    ids: Sequence[int]
    size: int


def parts_of_one_shape(sizes: Tensor, transform: DetectionTransform, most: int) -> list[Part]:
    """Divide a set into batches of images of the same padded size, since padding to a larger image moves boxes.

    Args:
        sizes: int64 [N, 2], (height, width) in px of the original images.
        transform: resizes them.
        most: maximum number of images per batch.

    Returns:
        The batches, those of large images first, so that ranks that take turns get about equal work.
    """
    by_shape: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes.tolist()):
        by_shape.setdefault(_padded([transform.plain_size(*size)]), []).append(index)
    largest_first = sorted(by_shape, key=lambda shape: (-shape[0] * shape[1], shape))
    return [
        Part(ids, part_size(len(by_shape[shape]), most))
        for shape in largest_first
        for ids in equal_parts(by_shape[shape], most)
    ]


def _padded(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the least (height, width) in multiples of `STRIDE_PX` that all sizes fit in."""
    height, width = (-(-max(sides) // STRIDE_PX) * STRIDE_PX for sides in zip(*sizes, strict=True))
    return height, width


def _pad(examples: Sequence[Transformed]) -> PaddedImages:
    sizes = tuple(example.pixels.shape[:2] for example in examples)
    height, width = _padded(sizes)
    pixels = np.zeros((len(examples), height, width, 3), dtype=np.uint8)
    for place, example in enumerate(examples):
        pixels[place, : sizes[place][0], : sizes[place][1]] = example.pixels
    return PaddedImages(
        torch.from_numpy(pixels),
        sizes,
        tuple(len(example.target) for example in examples),
        torch.cat([example.target.boxes for example in examples]),
        torch.cat([example.target.labels for example in examples]),
        tuple(example.scale for example in examples),
    )
