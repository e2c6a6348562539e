"""What a step calls: the student, wrapped for several ranks, compiled where the recipe asks for it."""

import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from w2skd.errors import TrainingError
from w2skd.platform.ranks import Ranks

_MOST_GRAPHS = 64
"""Of one model, one a shape."""


class Network:
    """The student as training sees it; its weights, its state dict and its evaluation stay those of the bare module.

    Only the student is compiled. A teacher is small and helps for a share of the run, which seldom earns back what its
    compilation would take at every start. Evaluation is not compiled either: its odd last batch would cost a graph of
    its own.

    Args:
        student: on its device.
        ranks: this process among its peers.
        compiled: whether `torch.compile` makes one graph a shape of the inputs.

    Attributes:
        module: what losses call.

    Raises:
        TrainingError: torch cannot compile here; told at the first call as far as it is not known before.
    """

    def __init__(self, student: nn.Module, *, ranks: Ranks, compiled: bool):
        self.module = student
        self._parallel: DistributedDataParallel | None = None
        self._compiled = compiled
        self._met: set[tuple[torch.Size, ...]] = set()
        if ranks.world > 1:
            # Running statistics are averaged before they are used instead of copied from rank 0 at every step.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # the option's new name is unknown to older versions
                self._parallel = DistributedDataParallel(student, broadcast_buffers=False, gradient_as_bucket_view=True)
            self.module = self._parallel
        if compiled:
            self.module = _Compiled(self.module)

    def sync_gradients(self, last: bool) -> AbstractContextManager[None]:
        """For a forward and its backward: gradients travel between ranks once a step, with its last micro-batch."""
        if self._parallel is not None and not last:
            return self._parallel.no_sync()
        return nullcontext()

    def meets(self, inputs: Iterable[Tensor]) -> bool:
        """Whether a step with these inputs pays for more than itself, such as allocations or compilation.

        The first step of a process does, and of a compiled network the first with every shape. Others may see new
        shapes at every step, as images of many sizes make them, and pay nothing that a later step would not pay too.
        """
        shapes = tuple(tensor.shape for tensor in inputs if isinstance(tensor, Tensor))
        new = not self._met or (self._compiled and shapes not in self._met)
        self._met.add(shapes)
        return new


class _Compiled(nn.Module):
    """A compiled module, which says in one line why it could not be compiled."""

    def __init__(self, module: nn.Module):
        super().__init__()
        try:
            # Static shapes: the few sizes of a progressive schedule each get the fast kernels of their own. What
            # comes after torch's limit stays uncompiled, and the full size comes last and lasts longest.
            self._module = torch.compile(module, dynamic=False)
            torch._dynamo.config.recompile_limit = max(_MOST_GRAPHS, torch._dynamo.config.recompile_limit)
        except RuntimeError as error:  # this version of Python, say
            raise _cannot_compile(error) from error

    def forward(self, *inputs: Any, **options: Any) -> Any:
        try:
            return self._module(*inputs, **options)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise _cannot_compile(error) from error


def _cannot_compile(error: Exception) -> TrainingError:
    cause = getattr(error, "inner_exception", error)  # the compiler's own words, without those of torch around them
    reason = next(iter(str(cause).splitlines()), type(cause).__name__).rstrip(".")
    return TrainingError(
        f"train.compile: torch cannot compile the model here: {reason}; a C++ compiler is needed, for GPUs Triton too: "
        "install what is missing, or set train.compile=false"
    )
