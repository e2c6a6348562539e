"""The order of examples in training batches: one rule for every feed, a function of (seed, epoch) only.

Shapes: N examples of the set, M positions in the batches of an epoch, n examples of a micro-batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from w2skd.data.counter import permutation
from w2skd.errors import UsageError
from w2skd.platform.ranks import Ranks


class Slice(NamedTuple):
    """One rank's micro-batch: positions `start` to `end` of its epoch.

    Attributes:
        epoch: epoch, from 0.
        step: global optimizer step, from 0.
        number: index of this slice in the step's batch, micro-batch x ranks + rank.
        start: first position.
        end: one past the last position.
    """

    epoch: int
    step: int
    number: int
    start: int
    end: int


@dataclass(frozen=True)
class BatchOrder:
    """Endless epochs of equally large batches.

    Epoch e visits the examples in the order ``permutation(N, seed, e)``. Its last batch is filled up from the start of
    the same order, so that every batch is full even if the set is smaller than a batch.

    With repeated augmentation (Hoffer et al. 2020, "Augment your batch") a batch holds ``batch_size / repeats``
    different examples, each `repeats` times. The number of steps per epoch stays the same, so an epoch visits only a
    part of the set.

    Attributes:
        examples: N, at least 1.
        batch_size: examples per optimizer step, over all ranks and micro-batches.
        repeats: number of times that each example appears in its batch.
        seed: seed of the order.
    """

    examples: int
    batch_size: int
    repeats: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        assert min(self.examples, self.batch_size, self.repeats) > 0, str(self)
        if self.batch_size % self.repeats:
            raise UsageError(
                f"train.batch_size: {self.batch_size} is not a multiple of data.repeats ({self.repeats}); "
                f"set a multiple of {self.repeats}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches per epoch, ceil(N / batch_size)."""
        return -(-self.examples // self.batch_size)

    def ids(self, epoch: int, device: torch.device | None = None) -> Tensor:
        """Return the example at each position: int64 [M]."""
        batch, place = self._places(device)
        row = self.batch_size // self.repeats
        places = batch.mul_(row).add_(place.remainder_(row)).remainder_(self.examples)
        return permutation(self.examples, self.seed, epoch, device=device)[places]

    def repeat_numbers(self, device: torch.device | None = None) -> Tensor:
        """Return how often each position's example appeared earlier in its batch: int64 [M], equal in all epochs."""
        if self.repeats == 1:
            return torch.zeros((), dtype=torch.int64, device=device).expand(self.steps_per_epoch * self.batch_size)
        return self._places(device)[1] // (self.batch_size // self.repeats)

    def slices(self, first_step: int, ranks: Ranks = Ranks(), accumulate: int = 1) -> Iterator[Slice]:
        """Yield this rank's micro-batches without end, `accumulate` per step, starting at global step `first_step`.

        A step's batch is cut into ranks x accumulate equal slices. Rank r takes slice micro-batch x ranks + r, so that
        two ranks see the same slices as one process with twice the accumulation.

        Raises:
            UsageError: the batch cannot be cut into equal slices.
        """
        if self.batch_size % (ranks.world * accumulate):
            raise UsageError(
                f"train.batch_size: {self.batch_size} examples cannot be divided equally among {ranks.world} ranks x "
                f"{accumulate} accumulated micro-batches; set a multiple of {ranks.world * accumulate}"
            )
        return self._slices(first_step, ranks, accumulate)

    def with_ids(self, slices: Iterator[Slice], device: torch.device | None = None) -> Iterator[tuple[Slice, Tensor]]:
        """Yield each slice with the ids of its examples: int64 [n] on `device`."""
        epoch, ids = -1, torch.empty(0)
        for part in slices:
            if part.epoch != epoch:
                epoch, ids = part.epoch, self.ids(part.epoch, device)
            yield part, ids[part.start : part.end]

    def _slices(self, first_step: int, ranks: Ranks, accumulate: int) -> Iterator[Slice]:
        size = self.batch_size // (ranks.world * accumulate)
        step = first_step
        while True:
            epoch, batch = divmod(step, self.steps_per_epoch)
            for micro in range(accumulate):
                number = micro * ranks.world + ranks.rank
                start = batch * self.batch_size + number * size
                yield Slice(epoch, step, number, start, start + size)
            step += 1

    def _places(self, device: torch.device | None) -> tuple[Tensor, Tensor]:
        """Return the batch of each position and its index in the batch: int64 [M] each."""
        places = torch.arange(self.steps_per_epoch * self.batch_size, device=device)
        return places // self.batch_size, places % self.batch_size
