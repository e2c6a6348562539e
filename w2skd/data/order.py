"""Which example has which place in which batch: one rule for every feed, a function of (seed, epoch) only.

Shapes: N examples of the set, M places of an epoch's batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from w2skd.data.counter import permutation
from w2skd.errors import UsageError


class Slice(NamedTuple):
    """One rank's micro-batch: places `start` to `end` of its epoch.

    Attributes:
        epoch: counted from 0.
        step: global, counted from 0.
        number: micro x ranks + rank, which slice of the step's batch.
        start: first place.
        end: behind the last place.
    """

    epoch: int
    step: int
    number: int
    start: int
    end: int


@dataclass(frozen=True)
class BatchOrder:
    """Endless epochs of equally large batches.

    Epoch e takes the examples in the order ``permutation(N, seed, e)``. Its last batch is filled up from the start of
    the same order, so that every batch is full, also where the set has fewer examples than it.

    With repeated augmentation (Hoffer et al. 2020, "Augment your batch") a batch holds only ``batch_size / repeats``
    examples, in a row, and that row `repeats` times. An epoch keeps its number of steps and so shows a part of the set.

    Attributes:
        examples: N, at least 1.
        batch_size: examples per optimizer step, over all ranks and micro-batches.
        repeats: how often an example is in its batch.
        seed: of the order.
    """

    examples: int
    batch_size: int
    repeats: int
    seed: int

    def __post_init__(self) -> None:
        assert self.examples > 0, "no examples"
        assert self.batch_size > 0, f"batch_size {self.batch_size}"
        assert self.repeats > 0, f"repeats {self.repeats}"
        if self.batch_size % self.repeats:
            raise UsageError(
                f"train.batch_size: {self.batch_size} examples cannot be equally many with {self.repeats} repeats each "
                f"(data.repeats); take a multiple of {self.repeats}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Batches that would show the whole set once without repeats."""
        return -(-self.examples // self.batch_size)

    def ids(self, epoch: int, device: torch.device | None = None) -> Tensor:
        """Return the example at every place: int64 [M]."""
        batch, place = self._places(device)
        row = self.batch_size // self.repeats
        order = permutation(self.examples, self.seed, epoch, device=device)
        return order[(batch * row + place % row) % self.examples]

    def repeat_numbers(self, device: torch.device | None = None) -> Tensor:
        """Return for every place how often its batch had that example before: int64 [M], the same in every epoch."""
        return self._places(device)[1] // (self.batch_size // self.repeats)

    def slices(self, first_step: int, *, rank: int, ranks: int, accumulate: int) -> Iterator[Slice]:
        """Yield this rank's micro-batches without end, `accumulate` of them a step, from global step `first_step` on.

        A step's batch is cut into ranks x accumulate equal slices. Rank r takes slice micro x ranks + r, so that two
        ranks see what one process with twice the accumulation sees.

        Raises:
            UsageError: the batch cannot be cut into equal slices.
        """
        if self.batch_size % (ranks * accumulate):
            raise UsageError(
                f"train.batch_size: {self.batch_size} examples cannot be shared equally among {ranks} ranks x "
                f"{accumulate} accumulated micro-batches; take a multiple of {ranks * accumulate}"
            )
        return self._slices(first_step, rank, ranks, accumulate)

    def _slices(self, first_step: int, rank: int, ranks: int, accumulate: int) -> Iterator[Slice]:
        size = self.batch_size // (ranks * accumulate)
        step = first_step
        while True:
            epoch, batch = divmod(step, self.steps_per_epoch)
            for micro in range(accumulate):
                number = micro * ranks + rank
                start = batch * self.batch_size + number * size
                yield Slice(epoch, step, number, start, start + size)
            step += 1

    def _places(self, device: torch.device | None) -> tuple[Tensor, Tensor]:
        """Number of the batch and place within it: int64 [M] each."""
        places = torch.arange(self.steps_per_epoch * self.batch_size, device=device)
        return places // self.batch_size, places % self.batch_size
