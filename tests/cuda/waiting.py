"""Detection of operations for which the host waits for its device.

On a GPU, torch's debug mode reports them. On the CPU, a rehearsal looks for operations that would wait on a GPU: a
tensor becomes a number or a condition, or the shape of a result depends on values. A rehearsal cannot find copies
between devices.
"""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_TORCH = f"{Path(torch.__file__).parent}/"
_BACKWARD = f"{_TORCH}autograd/graph.py"
_ATEN = torch.ops.aten
_WAITS = {_ATEN._local_scalar_dense, _ATEN.nonzero, _ATEN.masked_select, _ATEN.equal, _ATEN._unique2}
_INDEXES = {_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_}


@contextmanager
def no_waiting(device: torch.device, but: Sequence[Tensor] = ()) -> Iterator[None]:
    """Raise an error where the host waits for the device.

    Args:
        device: the device.
        but: tensors that are on the CPU even when training on a GPU, such as counters; they are ignored.
    """
    if device.type == "cpu":
        with _Watch(but, refuse=True):
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def listed_waits(device: torch.device, but: Sequence[Tensor] = ()) -> Iterator[list[str]]:
    """List the files whose calls wait for the device. The list is complete when the block ends."""
    found: list[str] = []
    if device.type == "cpu":
        with _Watch(but, refuse=False) as watch:
            yield found
        found += watch.places
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found += [f"{each.filename}:{each.lineno}" for each in caught if "synchronizing CUDA" in str(each.message)]


class _Watch(TorchDispatchMode):
    def __init__(self, but: Sequence[Tensor], *, refuse: bool):
        super().__init__()
        self.places: list[str] = []
        self._but = {tensor.data_ptr() for tensor in but}
        self._refuse = refuse

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._waits(func.overloadpacket, args):
            self.places.append(f"{_caller()} ({func})")
            assert not self._refuse, f"the host waits for the device in {self.places[-1]}"
        return func(*args, **(kwargs or {}))

    def _waits(self, operation: Any, args: Any) -> bool:
        if operation in _INDEXES:
            indices = [each for each in args[1] if each is not None]
            fills = len(args) > 2 and args[2].ndim == 0 and len(indices) == 1  # `tensor[mask] = number`: no counting
            return not fills and any(each.dtype in (torch.bool, torch.uint8) for each in indices)
        return operation in _WAITS and args[0].data_ptr() not in self._but


def _caller() -> str:
    """Return the nearest line outside of torch, or that of torch's backward pass."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file == _BACKWARD or not file.startswith((_TORCH, __file__)):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return "unknown"
