"""Modules compiled with `torch.compile`."""

from typing import Any

import torch
from torch import nn

from w2skd.errors import TrainingError
from w2skd.recipe.compilation import Compile

_MOST_GRAPHS = 64
"""Limit on the compiled graphs of a model. Each input shape needs one."""


class Compiled(nn.Module):
    """A compiled module that reports a failed compilation as a `TrainingError`.

    With ``reduce-overhead``, CUDA graphs replay the kernels of a pass with one launch. A replay overwrites the previous
    outputs, so callers copy the outputs that they keep, and call `begin_pass` before the passes of each micro-batch.

    Args:
        module: the module. It keeps its weights, state dict and mode.
        mode: True, or ``reduce-overhead``.
        key: recipe key of the setting, for errors.

    Raises:
        TrainingError: torch cannot compile on this machine. Some causes only show at the first call.
    """

    def __init__(self, module: nn.Module, mode: Compile, key: str):
        super().__init__()
        self._key = key
        self._records_graphs = mode == "reduce-overhead"
        try:
            # Static shapes give each of a progressive schedule's few sizes its own fast kernels. Beyond its limit torch
            # runs new shapes uncompiled, which would hit the full size: it comes last, and most steps use it.
            self._module = torch.compile(module, dynamic=False, mode="reduce-overhead" if mode is not True else None)
            torch._dynamo.config.recompile_limit = max(_MOST_GRAPHS, torch._dynamo.config.recompile_limit)
        except RuntimeError as error:  # such as an unsupported version of Python
            raise self._cannot_compile(error) from error

    def begin_pass(self) -> None:
        """Allow CUDA graphs to overwrite the outputs of earlier passes."""
        if self._records_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Call the module."""
        try:
            return self._module(*inputs, **options)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise self._cannot_compile(error) from error

    def _cannot_compile(self, error: Exception) -> TrainingError:
        cause = getattr(error, "inner_exception", error)  # the compiler's message, without torch's preamble
        reason = next(iter(str(cause).splitlines()), type(cause).__name__).rstrip(".")
        return TrainingError(
            f"{self._key}: torch cannot compile the model: {reason}; "
            f"install a C++ compiler (and Triton for GPUs), or set {self._key}=false"
        )
