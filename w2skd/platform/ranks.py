"""What torchrun set up: which rank this process is, and how the ranks agree.

Every rank runs the same code. Where a decision could differ between them (a resume, the switch, a request to stop),
rank 0 decides and tells the others. With one process every method is the identity and no process group exists.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from w2skd.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among its peers.

    Attributes:
        rank: 0 to `world` - 1, over all machines.
        world: number of processes.
        local_rank: rank on this machine, which picks the GPU.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that decides, writes and speaks."""
        return self.rank == 0

    def shard(self, count: int) -> range:
        """Return this rank's part of `count` examples; every example belongs to exactly one rank."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def decide(self, value: T) -> T:
        """Rank 0's value, on every rank. The value must be picklable."""
        if self.world == 1:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]  # type: ignore[no-any-return]

    def on_main(self, action: Callable[[], T]) -> T:
        """Let rank 0 do something that others depend on: its result, or its `UserError`, on every rank."""
        if self.world == 1:
            return action()
        outcome: tuple[T | None, UserError | None] = (None, None)
        if self.is_main:
            try:
                outcome = (action(), None)
            except UserError as error:
                outcome = (None, error)
        result, problem = self.decide(outcome)
        if problem is not None:
            raise problem
        return result  # type: ignore[return-value]

    def on_all(self, action: Callable[[], T]) -> T:
        """Let every rank do something that may fail on some: its own result, or the first rank's `UserError` on all."""
        result, problem = None, None
        try:
            result = action()
        except UserError as error:
            problem = error
        for first in self.gather(problem):
            if first is not None:
                raise first
        return result  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.world == 1:
            return flag
        return bool(self.sum_(torch.tensor(int(flag))).item())

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            self.any(False)

    def average_buffers_(self, modules: Iterable[nn.Module]) -> None:
        """Make floating-point buffers (BatchNorm's running statistics) the mean over the ranks, in place."""
        if self.world == 1:
            return
        for module in modules:
            for buffer in module.buffers():
                if buffer.is_floating_point():
                    self.sum_(buffer).div_(self.world)


def ranks_from_environment() -> Ranks:
    """Read what torchrun (or a launcher that speaks like it) put into the environment."""
    return Ranks(
        rank=int(os.environ.get("RANK", 0)),
        world=int(os.environ.get("WORLD_SIZE", 1)),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
    )


@contextmanager
def process_group(ranks: Ranks, device: torch.device, timeout_s: float = 1800.0) -> Iterator[None]:
    """Join the process group for the block: gloo on CPU, NCCL beside it on CUDA.

    When the block fails on one rank, the group is torn down without waiting, so that the others fail in their next
    collective instead of hanging in it.
    """
    if ranks.world == 1 or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        yield
    except BaseException:
        if device.type == "cuda":
            dist.distributed_c10d._abort_process_group()
        raise
    else:
        dist.barrier()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
