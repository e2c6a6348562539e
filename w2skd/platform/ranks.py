"""This process among the ranks that torchrun started, and how the ranks agree.

Every rank runs the same code. Where a decision could differ between ranks (a resume, the switch, a stop request),
rank 0 decides and broadcasts. With a single process every method is the identity and there is no process group.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from w2skd.errors import UserError

T = TypeVar("T")


def _attempt(action: Callable[[], T]) -> tuple[T | None, UserError | None]:
    try:
        return action(), None
    except UserError as error:
        return None, error


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of a run.

    Attributes:
        rank: 0 to `world` - 1, across all machines.
        world: number of processes.
        local_rank: rank on this machine; selects the GPU.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which decides, writes files and prints."""
        return self.rank == 0

    def share(self, parts: Sequence[T]) -> Sequence[T]:
        """Return this rank's share of the parts of a whole. The shares of all ranks are disjoint."""
        return parts[self.rank :: self.world]

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def decide(self, value: T) -> T:
        """Return rank 0's value on every rank. The value must be picklable."""
        if self.world == 1:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]  # type: ignore[no-any-return]

    def on_main(self, action: Callable[[], T]) -> T:
        """Run an action on rank 0 only. Return its result, or raise its `UserError`, on every rank."""
        result, problem = self.decide(_attempt(action) if self.is_main else (None, None))
        if problem is not None:
            raise problem
        return result  # type: ignore[return-value]

    def on_all(self, action: Callable[[], T]) -> T:
        """Run an action on every rank and return its own result. If any fail, raise the first `UserError` on all."""
        result, problem = _attempt(action)
        for first in self.gather(problem):
            if first is not None:
                raise first
        return result  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in rank order, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        if self.world == 1:
            return flag
        return bool(self.sum_(torch.tensor(int(flag))).item())

    def average_buffers_(self, modules: Iterable[nn.Module]) -> None:
        """Average floating-point buffers (BatchNorm's running statistics) over the ranks, in place."""
        if self.world == 1:
            return
        for module in modules:
            for buffer in module.buffers():
                if buffer.is_floating_point():
                    self.sum_(buffer).div_(self.world)


def ranks_from_environment() -> Ranks:
    """Read the environment variables of torchrun, or of a launcher that sets the same ones."""
    return Ranks(
        rank=int(os.environ.get("RANK", 0)),
        world=int(os.environ.get("WORLD_SIZE", 1)),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
    )


@contextmanager
def process_group(ranks: Ranks, device: torch.device, timeout_s: float = 1800.0) -> Iterator[None]:
    """Join the process group for the duration of the block: gloo on CPU, gloo and NCCL on CUDA.

    If the block fails on one rank, the group is aborted, so the other ranks fail in their next collective operation
    instead of hanging in it.
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
