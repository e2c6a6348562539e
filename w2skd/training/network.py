"""The student as a training step calls it: wrapped for data parallelism, compiled on request."""

import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from w2skd.platform.ranks import Ranks
from w2skd.recipe.compilation import Compile
from w2skd.training.compiled import Compiled


class Network:
    """Wraps a student for training. Weights, state dict and evaluation stay those of the bare module.

    Evaluation is not compiled, because a pass without gradients would need a separate graph.

    Args:
        student: the model on its device.
        ranks: this process among the ranks.
        compiled: whether and how to use `torch.compile`, with one graph per input shape.
        teacher_compiled: whether the teacher is compiled.

    Attributes:
        module: the module that losses call.

    Raises:
        TrainingError: torch cannot compile on this machine. Some causes only show at the first call of `module`.
    """

    def __init__(self, student: nn.Module, *, ranks: Ranks, compiled: Compile, teacher_compiled: bool = False):
        self.module = student
        self._parallel: DistributedDataParallel | None = None
        self._compiled = compiled
        self._teacher_compiled = teacher_compiled
        self._met: set[tuple[object, ...]] = set()
        if ranks.world > 1:
            # The engine averages running statistics before they are used; DDP would copy rank 0's at every step.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # older versions of torch lack the option's new name
                self._parallel = DistributedDataParallel(student, broadcast_buffers=False, gradient_as_bucket_view=True)
            self.module = self._parallel
        if compiled:
            self.module = Compiled(self.module, compiled, "train.compile")

    def sync_gradients(self, last: bool) -> AbstractContextManager[None]:
        """Return the context of a micro-batch. Ranks reduce gradients in the last one of each step only."""
        if self._parallel is not None and not last:
            return self._parallel.no_sync()
        return nullcontext()

    def begin_pass(self) -> None:
        """Prepare for the forward pass of a micro-batch; the outputs of earlier passes may be overwritten from here."""
        if isinstance(self.module, Compiled):
            self.module.begin_pass()

    def meets(self, inputs: Iterable[Tensor], *, with_teacher: bool = False) -> bool:
        """Return whether a step with these inputs has one-off costs such as compilation, and remember their shapes.

        The first step of a process does. If the student or the teacher is compiled, so does its first step with each
        combination of shapes. With CUDA graphs, the student's are also recorded anew when the teacher leaves. Without
        compilation, new shapes cost nothing extra; images of many sizes bring new shapes at every step.
        """
        asked = with_teacher and self._teacher_compiled
        shapes = tuple(tensor.shape for tensor in inputs if isinstance(tensor, Tensor))
        cases: set[tuple[object, ...]] = {
            ("student", shapes if self._compiled else (), asked and self._compiled == "reduce-overhead"),
            *([("teacher", shapes)] if asked else []),
        }
        new = not cases <= self._met
        self._met |= cases
        return new
