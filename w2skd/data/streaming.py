"""Batches that data workers read and transform while the model trains, delivered to the training device.

The batches do not depend on the number of workers: the order of an epoch is a function of (seed, epoch), the
augmentation of an example a function of (seed, epoch, example, repeat). The workers receive one endless sequence of
requests for the whole run, so that no epoch starts with a stall.

Shapes: n examples of a micro-batch.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from w2skd.data.order import BatchOrder, Slice
from w2skd.data.transfer import to_device
from w2skd.data.workers import Made, Workers, prepare_workers
from w2skd.errors import DataError
from w2skd.platform.ranks import Ranks

Batch_co = TypeVar("Batch_co", covariant=True)
Made_co = TypeVar("Made_co", covariant=True)
Made_contra = TypeVar("Made_contra", contravariant=True)


class Request(NamedTuple):
    """One micro-batch for a data worker to read.

    Attributes:
        ids: indices of the examples.
        size_px: side of the images in px; 0 if the feed does not prescribe one.
        epoch: epoch, for random augmentation.
        repeats: for each example, how often it appeared earlier in its batch.
    """

    ids: Sequence[int]
    size_px: int = 0
    epoch: int = 0
    repeats: Sequence[int] = ()


class Reader(Protocol[Made_co]):
    """Reads and transforms one micro-batch. Picklable, because data workers run it."""

    @property
    def plain(self) -> Self:
        """The same reader without augmentation."""
        ...

    def __call__(self, request: Request, /) -> Made_co | DataError:
        """Return the micro-batch, or the error of an example that cannot be read."""
        ...


class Delivery(Protocol[Made_contra, Batch_co]):
    """Moves micro-batches to the device and makes them the model's input, without waiting for the device."""

    @property
    def device(self) -> torch.device:
        """Device of the batches."""
        ...

    def __call__(self, made: Made_contra, /, ids: Tensor, step: int = 0, number: int = 0) -> Batch_co:
        """Return the batch of the examples `ids` (int64 [n], on the device).

        Args:
            made: the micro-batch from the reader.
            ids: int64 [n], on the device.
            step: global optimizer step; 0 outside training.
            number: index of the slice in the step's batch; 0 outside training.
        """
        ...


class StreamingFeed(Generic[Made, Batch_co]):
    """Endless training batches in `BatchOrder`, read by data workers.

    Args:
        order: order of the examples.
        read: reads a micro-batch.
        deliver: moves it to the device.
        workers: the data workers.
        size_px: side of the images in px; 0 if the feed does not prescribe one.
        size_at: global step to the side of its images; None is `size_px` throughout.
    """

    def __init__(
        self,
        order: BatchOrder,
        read: Reader[Made],
        deliver: Delivery[Made, Batch_co],
        workers: Workers,
        size_px: int = 0,
        size_at: Callable[[int], int] | None = None,
    ):
        self.steps_per_epoch = order.steps_per_epoch
        self._order = order
        self._read = read
        self._deliver = deliver
        self._workers = workers
        self._size_px = size_px
        self._size_at = size_at or (lambda step: size_px)
        if workers.count:
            prepare_workers()

    def micro_batches(
        self, first_step: int, ranks: Ranks = Ranks(), accumulate: int = 1
    ) -> Generator[Batch_co, None, None]:
        """Yield this rank's micro-batches without end, as `BatchOrder.slices` cuts them.

        The first batch starts the workers. Closing or dropping the generator ends them.

        Raises:
            UsageError: the batch cannot be cut into equal slices.
            DataError: during iteration: an example cannot be read, or a worker was killed or hangs.
        """
        slices = partial(self._order.slices, first_step, ranks, accumulate)
        slices()  # raises now, not at the first batch
        requests = _Requests(self._order, slices, self._size_at)
        return _stream(
            self._read, self._deliver, self._workers, requests, self._order.with_ids(slices(), self._deliver.device)
        )

    def example(self) -> Batch_co:
        """Return a batch of the first example, without augmentation.

        Raises:
            DataError: it cannot be read.
        """
        return next(stream_once(self._read.plain, self._deliver, [[0]], size_px=self._size_px))


def stream_once(
    read: Reader[Made],
    deliver: Delivery[Made, Batch_co],
    parts: Sequence[Sequence[int]],
    *,
    size_px: int = 0,
    workers: Workers = Workers(0),
) -> Generator[Batch_co, None, None]:
    """Iterate once over batches, in order, with step 0.

    Args:
        read: reads a micro-batch.
        deliver: moves it to the device.
        parts: indices of the examples of each batch.
        size_px: side of the images in px; 0 if the feed does not prescribe one.
        workers: the data workers, at most one per batch.

    Raises:
        DataError: during iteration: an example cannot be read, or a worker was killed or hangs.
    """
    ids = ((Slice(0, 0, 0, 0, 0), to_device(torch.tensor(part), deliver.device)) for part in parts)
    return _stream(read, deliver, workers.at_most(len(parts)), [Request(part, size_px) for part in parts], ids)


def _stream(
    read: Reader[Made],
    deliver: Delivery[Made, Batch_co],
    workers: Workers,
    requests: Iterable[Request],
    slices: Iterator[tuple[Slice, Tensor]],
) -> Generator[Batch_co, None, None]:
    on_gpu = deliver.device.type == "cuda"
    copy = _SideStream(deliver.device) if on_gpu else None
    results = workers.map(read, requests, pin_memory=on_gpu)
    with closing(results):
        for made, (part, ids) in zip(results, slices, strict=False):
            yield deliver(made if copy is None else copy(made), ids, part.step, part.number)


class _SideStream:
    """Copies micro-batches to a GPU on a separate stream.

    The host requests a batch while the GPU still computes the previous step. On the same stream the copy would start
    after that step; on a separate stream it runs in parallel.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, made: Made) -> Made:
        """Return the copy. Later work of the current stream waits for it."""
        with torch.cuda.stream(self._stream):
            copied = made.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        copied.record_stream(current)  # its memory must not be reused before the current stream is done with it
        return copied


class _Requests:
    """The endless sequence of one rank's requests; each iterator starts at the first."""

    def __init__(self, order: BatchOrder, slices: Callable[[], Iterator[Slice]], size_at: Callable[[int], int]):
        self._order = order
        self._slices = slices
        self._size_at = size_at

    def __iter__(self) -> Iterator[Request]:
        repeats = self._order.repeat_numbers()
        for part, ids in self._order.with_ids(self._slices()):
            yield Request(ids.tolist(), self._size_at(part.step), part.epoch, repeats[part.start : part.end].tolist())
