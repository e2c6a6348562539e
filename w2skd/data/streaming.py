"""Images that are read when they are needed: decoded and augmented in worker processes, normalised on the device.

Nothing depends on how many workers there are, or on which of them meets an example. The order of an epoch is a function
of (seed, epoch), an example's augmentation one of (seed, epoch, example, repeat). The requests that workers get carry
all that changes: one endless row of them for the whole run, so that nothing stalls or starts anew between epochs.

Shapes: n examples of a micro-batch, N of the set; S side in px.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from w2skd.data.batch import LabelledImages
from w2skd.data.counter import seed_from
from w2skd.data.examples import Examples
from w2skd.data.images import Normalization
from w2skd.data.normalize import Normalizer
from w2skd.data.order import BatchOrder, Slice
from w2skd.data.transforms import Colour, EvalTransform, Pipeline, TrainTransform
from w2skd.data.workers import in_workers
from w2skd.errors import DataError
from w2skd.platform.ranks import Ranks

Batches = Generator[LabelledImages, None, None]


class StreamingFeed:
    """Endless training batches, in `BatchOrder`, out of a set that does not fit on the device.

    Bytes go to the device and become (x / 255 - mean) / std there, in float32. What ``cutout`` and ``random_erasing``
    blank is set before that to the bytes nearest to the mean colour: at most 1 / (510 std) from 0, that is 0.01.

    Args:
        examples: at least one; picklable.
        labels: int64 [N].
        normalization: of pixels scaled to [0, 1].
        batch_size: examples per optimizer step, over all ranks and micro-batches.
        size_px: S.
        transform: what is done to an image.
        seed: of order and augmentation.
        device: where batches are made.
        workers: processes per rank; 0 reads in this one.
        repeats: how often an example is in its batch, augmented anew each time.
        size_at: global step to the S of its batch; None is `size_px` throughout.
        timeout_s: how long a batch may be awaited.
        channels_last: memory format of the batches; their values are the same.

    Raises:
        UsageError: the batch is no multiple of the repeats.
    """

    def __init__(
        self,
        examples: Examples,
        labels: Tensor,
        normalization: Normalization,
        *,
        batch_size: int,
        size_px: int,
        transform: TrainTransform,
        seed: int,
        device: torch.device,
        workers: int,
        repeats: int = 1,
        size_at: Callable[[int], int] | None = None,
        timeout_s: float = 300.0,
        channels_last: bool = False,
    ):
        assert len(labels) == len(examples), f"{len(labels)} labels of {len(examples)} examples"
        self._order = BatchOrder(len(examples), batch_size, repeats, seed)
        self.steps_per_epoch = self._order.steps_per_epoch
        self._examples = examples
        self._labels = labels.to(device)
        self._blank = _mean_colour(normalization)
        self._normalize = Normalizer(normalization, device, channels_last)
        self._transform = transform
        self._size_px = size_px
        self._size_at = size_at
        self._seed = seed
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

    def example(self) -> LabelledImages:
        """Return a batch of the first example, not augmented.

        Raises:
            DataError: it cannot be read.
        """
        read = _Read(self._examples, EvalTransform(self._size_px, self._transform.interpolation))
        pixels = read(_Request((0,), self._size_px))
        if isinstance(pixels, DataError):
            raise pixels
        ids = torch.zeros(1, dtype=torch.int64, device=self._device)
        return LabelledImages(self._normalize(pixels.to(self._device)), self._labels[ids], ids, 0)

    def _micro_batches(self, slices: Callable[[], Iterator[Slice]]) -> Batches:
        read = _Read(self._examples, self._transform, self._blank, self._seed)
        requests = _Requests(self._order, slices, self._size_of)
        made = in_workers(
            read,
            requests,
            workers=self._workers,
            timeout_s=self._timeout_s,
            pin_memory=self._device.type == "cuda",
        )
        epoch, order = -1, self._labels[:0]
        with closing(made):
            for pixels, part in zip(made, slices(), strict=False):
                if part.epoch != epoch:
                    epoch, order = part.epoch, self._order.ids(part.epoch, self._device)
                ids = order[part.start : part.end]
                images = self._normalize(pixels.to(self._device, non_blocking=True))
                yield LabelledImages(images, self._labels[ids], ids, part.step, part.number)

    def _size_of(self, step: int) -> int:
        return self._size_px if self._size_at is None else self._size_at(step)


def stream_evaluation(
    examples: Examples,
    labels: Tensor,
    normalization: Normalization,
    *,
    resize_px: int,
    crop_px: int,
    interpolation: str,
    device: torch.device,
    batch_size: int,
    workers: int,
    ranks: Ranks = Ranks(),
    timeout_s: float = 300.0,
    channels_last: bool = False,
) -> Batches:
    """Iterate over this rank's shard of an evaluation set, in order, without augmentation.

    Args:
        examples: picklable.
        labels: int64 [N].
        normalization: of pixels scaled to [0, 1].
        resize_px: what an image's shorter side is brought to.
        crop_px: S, side of the centre that is taken then.
        interpolation: ``bilinear``, ``bicubic`` or ``nearest``.
        device: where batches are made.
        batch_size: examples per batch of this rank; the last batch may have fewer.
        workers: processes per rank; 0 reads in this one.
        ranks: the ranks that share the set.
        timeout_s: how long a batch may be awaited.
        channels_last: memory format of the batches.

    Raises:
        DataError: while batches are taken: an example cannot be read, or a worker was killed or hangs.
    """
    shard = ranks.shard(len(examples))
    parts = [shard[first : first + batch_size] for first in range(0, len(shard), batch_size)]
    labels = labels.to(device)
    normalize = Normalizer(normalization, device, channels_last)
    made = in_workers(
        _Read(examples, EvalTransform(resize_px, interpolation)),
        [_Request(part, crop_px) for part in parts],
        workers=min(workers, len(parts)),
        timeout_s=timeout_s,
        pin_memory=device.type == "cuda",
    )
    with closing(made):
        for pixels, part in zip(made, parts, strict=True):
            images = normalize(pixels.to(device, non_blocking=True))
            ids = torch.arange(part.start, part.stop, device=device)
            yield LabelledImages(images, labels[part.start : part.stop], ids, step=0)


class _Request(NamedTuple):
    """What a worker must know to make the pixels of one micro-batch.

    Attributes:
        ids: of the examples.
        size_px: S.
        repeats: for each, how often its batch had it before.
        epoch: for which augmentation is drawn.
    """

    ids: Sequence[int]
    size_px: int
    repeats: Sequence[int] = ()
    epoch: int = 0


class _Requests:
    """The endless row of requests of one rank."""

    def __init__(self, order: BatchOrder, slices: Callable[[], Iterator[Slice]], size_of: Callable[[int], int]):
        self._order = order
        self._slices = slices
        self._size_of = size_of

    def __iter__(self) -> Iterator[_Request]:
        epoch, ids, repeats = -1, torch.empty(0), self._order.repeat_numbers()
        for part in self._slices():
            if part.epoch != epoch:
                epoch, ids = part.epoch, self._order.ids(part.epoch)
            places = slice(part.start, part.end)
            yield _Request(ids[places].tolist(), self._size_of(part.step), repeats[places].tolist(), epoch)


class _Transform(Protocol):
    def pipeline(self, size_px: int, blank: Colour) -> Pipeline: ...


@dataclass(frozen=True)
class _Read:
    """Reads and transforms a micro-batch: request to uint8 [n, 3, S, S], strided like [n, S, S, 3].

    Attributes:
        examples: to read.
        transform: of each.
        blank: colour of blanked parts.
        seed: of random transforms; None where nothing is drawn.
    """

    examples: Examples
    transform: _Transform
    blank: Colour = (0, 0, 0)
    seed: int | None = None

    def __call__(self, request: _Request) -> Tensor | DataError:
        apply = self.transform.pipeline(request.size_px, self.blank)
        pixels = np.empty((len(request.ids), request.size_px, request.size_px, 3), dtype=np.uint8)
        # The transforms draw from the global generator, which is the main process's own where there are no workers.
        before = torch.default_generator.get_state()
        try:
            for place, example in enumerate(request.ids):
                image = self.examples.open(example)
                if self.seed is not None:
                    counters = (request.epoch, example, request.repeats[place])
                    torch.default_generator.manual_seed(seed_from(self.seed, *counters))
                apply(image, pixels[place])
        except DataError as error:
            return error
        finally:
            torch.default_generator.set_state(before)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _mean_colour(normalization: Normalization) -> Colour:
    red, green, blue = (min(255, max(0, round(255 * mean))) for mean in normalization.mean)
    return red, green, blue
