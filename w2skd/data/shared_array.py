"""Arrays that all data workers share, instead of a copy per worker."""

from collections.abc import Callable
from multiprocessing.context import get_spawning_popen
from multiprocessing.heap import BufferWrapper
from typing import Any

import numpy as np
from numpy.typing import NDArray


class SharedArray:
    """A read-only array that data workers map into their memory.

    Forked workers share the memory of their parent, and never write to these pages, because the elements of an array
    have no reference counts. Workers of a forkserver receive pickled objects: pickling for the first worker moves the
    array to shared memory, and all workers attach to it. Other pickles contain the values.

    Args:
        values: one-dimensional; not copied.
    """

    def __init__(self, values: NDArray[Any]):
        self._block: BufferWrapper | None = None
        self._set(values)

    def __len__(self) -> int:
        return len(self.values)

    def __reduce__(self) -> tuple[Callable[..., "SharedArray"], tuple[Any, ...]]:
        """Pickle a handle of the shared memory for a process that is being started, else the values."""
        if get_spawning_popen() is None:
            return SharedArray, (self.values,)
        if self._block is None:
            values = self.values
            # Unlike torch's shared memory, this falls back to a temporary file if /dev/shm is too small.
            self._block = BufferWrapper(max(1, values.nbytes))
            shared = np.frombuffer(self._block.create_memoryview(), values.dtype, len(values))
            shared[:] = values
            self._set(shared)
        return _attach, (self._block, self.values.dtype.str, len(self.values))

    def _set(self, values: NDArray[Any]) -> None:
        self.values = values.view()
        self.values.flags.writeable = False
        # A memoryview returns single elements as Python numbers several times faster than the array.
        self.view = self.values.data


def _attach(block: BufferWrapper, dtype: str, count: int) -> SharedArray:
    array = SharedArray(np.frombuffer(block.create_memoryview(), dtype, count))
    array._block = block
    return array
