"""Images with boxes on their way to the device: decoded, resized and padded in worker processes, normalised there.

As with classified images (`w2skd.data.streaming`) nothing depends on how many workers there are: the order of an epoch
is a function of (seed, epoch), what is drawn for an example one of (seed, epoch, example).

Legend: n examples of a micro-batch, H x W px of it with its padding; k boxes of an image, M of all n.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from w2skd.data.images import Normalization
from w2skd.data.order import BatchOrder, Slice
from w2skd.data.workers import in_workers
from w2skd.errors import DataError
from w2skd.platform.ranks import Ranks
from w2skd.tasks.detection.batch import Boxes, ImagesWithBoxes
from w2skd.tasks.detection.listing import BoxTable, CocoListing, Pictures
from w2skd.tasks.detection.transforms import DetectionTransform, Transformed

Batches = Generator[ImagesWithBoxes, None, None]

STRIDE_PX = 32
"""Of the coarsest map that a ResNet or MobileNet hands to its feature pyramid; sides of a batch are multiples of it."""


class DetectionFeed:
    """Endless training batches, in `BatchOrder`.

    Args:
        listing: at least one example.
        normalization: of pixels scaled to [0, 1].
        batch_size: examples per optimizer step, over all ranks and micro-batches.
        transform: what is done to an image.
        seed: of order and augmentation.
        device: where batches are made.
        workers: processes per rank; 0 reads in this one.
        timeout_s: how long a batch may be awaited.
        channels_last: memory format of the batches; their values are the same.
    """

    def __init__(
        self,
        listing: CocoListing,
        normalization: Normalization,
        *,
        batch_size: int,
        transform: DetectionTransform,
        seed: int,
        device: torch.device,
        workers: int,
        timeout_s: float = 300.0,
        channels_last: bool = False,
    ):
        self._order = BatchOrder(len(listing), batch_size, 1, seed)
        self.steps_per_epoch = self._order.steps_per_epoch
        self._read = _Read(listing.examples, listing.table, transform, seed)
        self._deliver = _Delivery(normalization, device, channels_last)
        self._device = device
        self._workers = workers
        self._timeout_s = timeout_s

    def micro_batches(self, first_step: int, *, rank: int = 0, ranks: int = 1, accumulate: int = 1) -> Batches:
        """Yield this rank's micro-batches without end, as `BatchOrder.slices` cuts them.

        The workers start with the first of them. They end when the generator is closed or dropped.

        Raises:
            UsageError: the batch cannot be cut into equal slices.
            DataError: while batches are taken: an example cannot be read, or a worker was killed or hangs.
        """

        def slices() -> Iterator[Slice]:
            return self._order.slices(first_step, rank=rank, ranks=ranks, accumulate=accumulate)

        slices()  # refuses at once
        return self._micro_batches(slices)

    def example(self) -> ImagesWithBoxes:
        """Return a batch of the first example, resized and nothing else.

        Raises:
            DataError: it cannot be read.
        """
        made = replace(self._read, transform=self._read.transform.plain)(_Request((0,)))
        if isinstance(made, DataError):
            raise made
        return self._deliver(made, torch.zeros(1, dtype=torch.int64, device=self._device), 0)

    def _micro_batches(self, slices: Callable[[], Iterator[Slice]]) -> Batches:
        results = in_workers(
            self._read,
            _Requests(self._order, slices),
            workers=self._workers,
            timeout_s=self._timeout_s,
            pin_memory=self._device.type == "cuda",
        )
        epoch, order = -1, torch.empty(0)
        with closing(results):
            for made, part in zip(results, slices(), strict=False):
                if part.epoch != epoch:
                    epoch, order = part.epoch, self._order.ids(part.epoch, self._device)
                yield self._deliver(made, order[part.start : part.end], part.step)


def detection_evaluation_batches(
    listing: CocoListing,
    normalization: Normalization,
    *,
    transform: DetectionTransform,
    device: torch.device,
    batch_size: int,
    workers: int,
    ranks: Ranks = Ranks(),
    timeout_s: float = 300.0,
    channels_last: bool = False,
) -> Batches:
    """Iterate over this rank's shard of an evaluation set, in order, without augmentation.

    Args:
        listing: the set.
        normalization: of pixels scaled to [0, 1].
        transform: gives the sizes; what it draws in training is not drawn here.
        device: where batches are made.
        batch_size: examples per batch of this rank; the last batch may have fewer.
        workers: processes per rank; 0 reads in this one.
        ranks: the ranks that share the set.
        timeout_s: how long a batch may be awaited.
        channels_last: memory format of the batches.

    Raises:
        DataError: while batches are taken: an example cannot be read, or a worker was killed or hangs.
    """
    shard = ranks.shard(len(listing))
    parts = [shard[first : first + batch_size] for first in range(0, len(shard), batch_size)]
    deliver = _Delivery(normalization, device, channels_last)
    results = in_workers(
        _Read(listing.examples, listing.table, transform.plain),
        [_Request(part) for part in parts],
        workers=min(workers, len(parts)),
        timeout_s=timeout_s,
        pin_memory=device.type == "cuda",
    )
    with closing(results):
        for made, part in zip(results, parts, strict=True):
            yield deliver(made, torch.arange(part.start, part.stop, device=device), 0)


class _Request(NamedTuple):
    """What a worker must know to make one micro-batch.

    Attributes:
        ids: of the examples.
        epoch: for which augmentation is drawn.
    """

    ids: Sequence[int]
    epoch: int = 0


class _Requests:
    """The endless row of requests of one rank."""

    def __init__(self, order: BatchOrder, slices: Callable[[], Iterator[Slice]]):
        self._order = order
        self._slices = slices

    def __iter__(self) -> Iterator[_Request]:
        epoch, ids = -1, torch.empty(0)
        for part in self._slices():
            if part.epoch != epoch:
                epoch, ids = part.epoch, self._order.ids(part.epoch)
            yield _Request(ids[part.start : part.end].tolist(), epoch)


@dataclass(frozen=True, eq=False)
class _Made:
    """A micro-batch before it reaches the device.

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

    def pin_memory(self) -> "_Made":
        return replace(
            self,
            pixels=self.pixels.pin_memory(),
            boxes=self.boxes.pin_memory(),
            labels=self.labels.pin_memory(),
        )


@dataclass(frozen=True, eq=False)
class _Read:
    """Reads, transforms and pads a micro-batch.

    Attributes:
        examples: to read.
        table: their boxes.
        transform: of each.
        seed: of what is drawn.
    """

    examples: Pictures
    table: BoxTable
    transform: DetectionTransform
    seed: int = 0

    def __call__(self, request: _Request) -> _Made | DataError:
        try:
            return _pad([self._one(example, request.epoch) for example in request.ids])
        except DataError as error:
            return error

    def _one(self, example: int, epoch: int) -> Transformed:
        return self.transform(self.examples.open(example), self.table.of(example), self.seed, epoch, example)


def _pad(examples: Sequence[Transformed]) -> _Made:
    sizes = tuple(example.pixels.shape[:2] for example in examples)
    height, width = (-(-max(sides) // STRIDE_PX) * STRIDE_PX for sides in zip(*sizes, strict=True))
    pixels = np.zeros((len(examples), height, width, 3), dtype=np.uint8)
    for place, example in enumerate(examples):
        pixels[place, : sizes[place][0], : sizes[place][1]] = example.pixels
    return _Made(
        torch.from_numpy(pixels),
        sizes,
        tuple(len(example.target) for example in examples),
        torch.cat([example.target.boxes for example in examples]),
        torch.cat([example.target.labels for example in examples]),
        tuple(example.scale for example in examples),
    )


class _Delivery:
    """Takes micro-batches to the device and makes them what a detector takes, without waiting for the device.

    Args:
        normalization: of pixels scaled to [0, 1].
        device: where to.
        channels_last: memory format of the images.
    """

    def __init__(self, normalization: Normalization, device: torch.device, channels_last: bool):
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (normalization.mean, normalization.std))
        self._scale_and_shift = (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)
        self._device = device
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, made: _Made, ids: Tensor, step: int) -> ImagesWithBoxes:
        boxes, labels = (
            torch.split(part.to(self._device, non_blocking=True), list(made.counts))
            for part in (made.boxes, made.labels)
        )
        images = self._normalize(made.pixels.to(self._device, non_blocking=True), made.sizes)
        return ImagesWithBoxes(
            images, made.sizes, tuple(map(Boxes, boxes, labels)), ids, step, torch.tensor(made.scales)
        )

    def _normalize(self, pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """From uint8 [n, H, W, 3] to (pixel / 255 - mean) / std, float32 [n, 3, H, W], and 0 in the padding."""
        n, full_height, full_width, _ = pixels.shape
        images = torch.empty((n, 3, full_height, full_width), device=self._device, memory_format=self._format)
        images.copy_(pixels.permute(0, 3, 1, 2))
        scale, shift = (self._row(values, full_width) for values in self._scale_and_shift)
        torch.addcmul(shift, images, scale, out=images)
        for image, (height, width) in zip(images, sizes, strict=True):
            image[:, height:] = 0
            image[:, :height, width:] = 0
        return images

    def _row(self, colours: Tensor, width: int) -> Tensor:
        # One row of the images in their layout: a multiply-add that broadcasts over colours only is several times
        # slower, and whole images, of which there are many sizes here, would be a lot to keep.
        return colours.view(1, 3, 1, 1).expand(1, 3, 1, width).contiguous(memory_format=self._format)
