"""`FrozenTeacher`, which holds and calls a teacher during distillation."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NoReturn, Protocol

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "tf32", "bf16", "fp16"]

DTYPES: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision -> dtype of autocast. Others compute in float32; torch's global settings determine if TF32 is allowed."""


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context of forward passes in a precision. Weights stay in float32."""
    return torch.autocast(device.type, DTYPES.get(precision), enabled=precision in DTYPES)


class TeacherClock(Protocol):
    """A clock that measures the time of teacher calls, such as `w2skd.training.clock.Clock`."""

    @property
    def current(self) -> str | None:
        """The running segment, or None outside of all segments."""

    def segment(self, name: Literal["teacher"]) -> AbstractContextManager[None]:
        """Count the time inside the block towards `name`."""

    def move(self, source: Any, target: Literal["teacher"], seconds: float) -> None:
        """Move seconds from one segment to another."""


class FrozenTeacher:
    """A model for inference only: in eval mode, without gradients, in its own precision and memory format.

    It is not an `nn.Module`, so as an attribute of one it never enters an optimizer, `DistributedDataParallel`, a
    weight average or a state dict. The model is moved and frozen in place.

    Args:
        model: the teacher.
        device: device to run on.
        precision: ``bf16`` or ``fp16`` autocast, or float32. ``fp32`` and ``tf32`` are the same here, because torch
            allows TF32 for the whole process. The caller's autocast has no effect.
        channels_last: whether weights and 4-d inputs use the channels-last memory format.
        compiled: the compiled model, such as ``torch.compile(model)``; None calls the model itself.
        clock: counts the time of every call in the segment ``teacher``. On CUDA, events measure the calls; `settle`
            then moves their time from the segment of the caller.

    Attributes:
        model: the frozen module, for evaluation.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device | str,
        precision: Precision = "fp32",
        channels_last: bool = False,
        compiled: Callable[..., Any] | None = None,
        clock: TeacherClock | None = None,
    ):
        self.model = model.to(device).eval().requires_grad_(False)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self._device = torch.device(device)
        self._precision = precision
        self._channels_last = channels_last
        self._compiled = compiled
        self._clock = clock
        self._submodules = list(model.modules())
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event, str | None]] = []

    def __call__(self, *inputs: Any) -> Any:
        """Return the model's output: a tensor, or tensors in nested dicts, lists and (named) tuples.

        They have the dtype of the model's output, and a loss may save them for its backward pass.
        """
        assert not any(module.training for module in self._submodules), "the teacher is in train mode"
        if self._channels_last:
            inputs = _map_tensors(_to_channels_last, inputs)
        with self._timed():
            with torch.inference_mode(), autocast(self._device, self._precision):
                outputs = (self._compiled or self.model)(*inputs)
            # Losses that save a teacher's tensor for backward (MSE, smooth L1) refuse inference tensors. Only a clone
            # made outside of inference mode is an ordinary tensor.
            return _map_tensors(torch.clone, outputs)

    @property
    def is_compiled(self) -> bool:
        """Whether calls use a compiled model, so that the first one with each input shape takes long."""
        return self._compiled is not None

    def eval(self) -> "FrozenTeacher":
        """Return the teacher itself, which is always in eval mode."""
        return self

    def train(self, mode: bool = True) -> NoReturn:
        """Raise an error: the mode of a teacher must not change.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a FrozenTeacher has no train mode")

    def settle(self) -> None:
        """Move the time of the CUDA calls since the last `settle` to the segment ``teacher``.

        Synchronises with the last call. Call it where a row is logged, and before dropping the teacher.
        """
        if self._clock is None or not self._events:
            return
        self._events[-1][1].synchronize()
        for start, end, segment in self._events:
            if segment is not None:
                self._clock.move(segment, "teacher", start.elapsed_time(end) / 1000)
        self._events.clear()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        if self._clock is None or (self.is_compiled and self._clock.current == "compile"):
            yield  # compilation is a one-off cost and stays in its own segment
        elif self._device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            yield
            end.record()
            self._events.append((start, end, self._clock.current))
        else:
            with self._clock.segment("teacher"):
                yield


def state_fingerprint(model: nn.Module | Mapping[str, Any]) -> str:
    """Return the SHA-256 of the tensors in a module's state or a state dict, in hex.

    It covers names, dtypes, shapes and values, but neither device nor memory format.
    """
    digest = hashlib.sha256()
    state = model.state_dict() if isinstance(model, nn.Module) else model
    for name, tensor in sorted(state.items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _to_channels_last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply `function` to every tensor in nested dicts, lists and tuples."""
    match tree:
        case Tensor():
            return function(tree)
        case dict():
            return type(tree)((key, _map_tensors(function, value)) for key, value in tree.items())
        case tuple() if hasattr(tree, "_fields"):
            return type(tree)(*(_map_tensors(function, value) for value in tree))
        case list() | tuple():
            return type(tree)(_map_tensors(function, value) for value in tree)
        case _:
            return tree
