"""The student as a training step calls it: wrapped for data parallelism, compiled on request."""

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
"""Limit on the compiled graphs of a model. Each input shape needs one."""


class Network:
    """Wraps a student for training. Weights, state dict and evaluation stay those of the bare module.

    Only the student is compiled. A teacher is small and runs during a part of training only, which rarely pays for its
    compilation. Evaluation is not compiled either, because its smaller last batch would need a graph of its own.

    Args:
        student: the model on its device.
        ranks: this process among the ranks.
        compiled: whether to use `torch.compile`, with one graph per input shape.

    Attributes:
        module: the module that losses call.

    Raises:
        TrainingError: torch cannot compile on this machine. Some causes only show at the first call of `module`.
    """

    def __init__(self, student: nn.Module, *, ranks: Ranks, compiled: bool):
        self.module = student
        self._parallel: DistributedDataParallel | None = None
        self._compiled = compiled
        self._met: set[tuple[torch.Size, ...]] = set()
        if ranks.world > 1:
            # The engine averages running statistics before they are used; DDP would copy rank 0's at every step.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # older versions of torch lack the option's new name
                self._parallel = DistributedDataParallel(student, broadcast_buffers=False, gradient_as_bucket_view=True)
            self.module = self._parallel
        if compiled:
            self.module = _Compiled(self.module)

    def sync_gradients(self, last: bool) -> AbstractContextManager[None]:
        """Return the context of a micro-batch. Ranks reduce gradients in the last one of each step only."""
        if self._parallel is not None and not last:
            return self._parallel.no_sync()
        return nullcontext()

    def meets(self, inputs: Iterable[Tensor]) -> bool:
        """Return whether a step with these inputs has one-off costs such as compilation, and remember their shapes.

        The first step of a process does. In a compiled network, so does the first step with each combination of shapes.
        Without compilation, new shapes cost nothing extra; images of many sizes bring some at every step.
        """
        shapes = tuple(tensor.shape for tensor in inputs if isinstance(tensor, Tensor))
        new = not self._met or (self._compiled and shapes not in self._met)
        self._met.add(shapes)
        return new


class _Compiled(nn.Module):
    """A compiled module that reports a failed compilation as a `TrainingError`."""

    def __init__(self, module: nn.Module):
        super().__init__()
        try:
            # Static shapes give each of a progressive schedule's few sizes its own fast kernels. Beyond its limit torch
            # runs new shapes uncompiled, which would hit the full size: it comes last, and most steps use it.
            self._module = torch.compile(module, dynamic=False)
            torch._dynamo.config.recompile_limit = max(_MOST_GRAPHS, torch._dynamo.config.recompile_limit)
        except RuntimeError as error:  # such as an unsupported version of Python
            raise _cannot_compile(error) from error

    def forward(self, *inputs: Any, **options: Any) -> Any:
        try:
            return self._module(*inputs, **options)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise _cannot_compile(error) from error


def _cannot_compile(error: Exception) -> TrainingError:
    cause = getattr(error, "inner_exception", error)  # the compiler's message, without torch's preamble
    reason = next(iter(str(cause).splitlines()), type(cause).__name__).rstrip(".")
    return TrainingError(
        f"train.compile: torch cannot compile the model: {reason}; "
        "install a C++ compiler (and Triton for GPUs), or set train.compile=false"
    )
