"""`FrozenTeacher`: the one way a teacher is held and called."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NoReturn, Protocol

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision -> autocast's dtype; every other precision computes in float32."""


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context of forward passes in a precision; weights stay in float32."""
    return torch.autocast(device.type, DTYPES.get(precision), enabled=precision in DTYPES)


class TeacherClock(Protocol):
    """Counts the seconds of a teacher's calls; `w2skd.training.clock.Clock` does."""

    @property
    def current(self) -> str | None:
        """The segment that time counts towards at the moment."""
        ...

    def segment(self, name: Literal["teacher"]) -> AbstractContextManager[None]:
        """Count the time inside the block towards `name`."""
        ...

    def move(self, source: Any, target: Literal["teacher"], seconds: float) -> None:
        """Reassign seconds from one segment to another."""
        ...


class FrozenTeacher:
    """A model that only ever answers: in eval mode, without gradients, in its own precision and memory format.

    It is no `nn.Module`, so that it cannot slip into an optimizer, a `DistributedDataParallel`, an average of weights
    or a state dict by being somebody's attribute. The model it is given is moved and frozen in place.

    Args:
        model: the teacher.
        device: where it runs.
        precision: ``fp32``, or ``bf16`` or ``fp16`` autocast; whatever autocast the caller is in does not count.
        channels_last: memory format of the weights, and of 4-d inputs.
        clock: told the seconds of every call, as segment ``teacher``. Calls on a CUDA device are timed by events and
            reach it at `settle`, taken from the segment in which they were made.

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
        clock: TeacherClock | None = None,
    ):
        self.model = model.to(device).eval().requires_grad_(False)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self._device = torch.device(device)
        self._precision = precision
        self._channels_last = channels_last
        self._clock = clock
        self._submodules = list(model.modules())
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event, str | None]] = []

    def __call__(self, *inputs: Any) -> Any:
        """Answer with the model's own output: tensors, alone or in dicts, lists and (named) tuples.

        The tensors are ordinary ones, in the dtype in which the model gave them, and may be saved for a backward.
        """
        assert not any(module.training for module in self._submodules), "somebody set the teacher to train mode"
        if self._channels_last:
            inputs = _map_tensors(_to_channels_last, inputs)
        with self._timed():
            with torch.inference_mode(), autocast(self._device, self._precision):
                outputs = self.model(*inputs)
            # Losses that save a teacher's tensor for their backward (MSE, smooth L1) refuse inference tensors, and only
            # a clone made out here is none.
            return _map_tensors(torch.clone, outputs)

    def eval(self) -> "FrozenTeacher":
        """Return itself: it always is."""
        return self

    def train(self, mode: bool = True) -> NoReturn:
        """Refuse, in either mode.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a teacher is frozen: it has no train mode")

    def settle(self) -> None:
        """Move the time of the CUDA calls since the last settling to segment ``teacher``.

        Waits for the last call, so its place is where a row is logged, and before the teacher is dropped.
        """
        if self._clock is None or not self._events:
            return
        self._events[-1][1].synchronize()
        for start, end, segment in self._events:
            if segment is not None:
                self._clock.move(segment, "teacher", start.elapsed_time(end) / 1000)
        self._events.clear()

    def fingerprint(self) -> str:
        """See `state_fingerprint`."""
        return state_fingerprint(self.model)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        if self._clock is None:
            yield
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
    """SHA-256 over names, dtypes, shapes and bytes of a module's state, or of a state dict, in hex.

    Neither device nor memory format count, nor does state that is no tensor.
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
    """Apply `function` to every tensor in nested dicts, lists and tuples; the rest stays."""
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
