import multiprocessing
import pickle
from multiprocessing.connection import Connection

import numpy as np
import pytest

from w2skd.data.shared_array import SharedArray


@pytest.mark.parametrize("values", [[], [3, 1, 2]])
def test_values_survive_pickling(values: list[int]) -> None:
    array = pickle.loads(pickle.dumps(SharedArray(np.array(values, dtype=np.int64))))
    assert array.values.dtype == np.int64
    assert len(array) == len(values)
    assert array.values.tolist() == array.view.tolist() == values


def test_it_is_read_only() -> None:
    array = SharedArray(np.arange(3))
    with pytest.raises(ValueError, match="read-only"):
        array.values[0] = 7
    with pytest.raises(TypeError, match="read-only"):
        array.view[0] = 7


def answer(array: SharedArray, pipe: Connection) -> None:
    """Send the values twice, the second time after the other process has reported that it changed them."""
    pipe.send(array.values.tolist())
    pipe.recv()
    pipe.send(array.values.tolist())


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_processes_started_by_a_server_map_the_same_memory(dtype: type) -> None:
    array = SharedArray(np.array([3, 1, 2], dtype=dtype))
    context = multiprocessing.get_context("forkserver")
    pipes, processes = [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        pipes.append(ours)
        processes.append(context.Process(target=answer, args=(array, theirs)))
        processes[-1].start()
    assert [pipe.recv() for pipe in pipes] == [[3, 1, 2]] * 2
    # Writes to the shared block directly, to check that all three processes use the same memory.
    np.frombuffer(array._block.create_memoryview(), dtype, 3)[:] = [7, 8, 9]
    for pipe in pipes:
        pipe.send(None)
    assert [pipe.recv() for pipe in pipes] == [[7, 8, 9]] * 2
    assert array.values.tolist() == [7, 8, 9]
    for process in processes:
        process.join()
        assert process.exitcode == 0


def test_an_empty_array_reaches_a_server_process() -> None:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=answer, args=(SharedArray(np.array([], dtype=np.int64)), theirs))
    process.start()
    ours.send(None)
    assert ours.recv() == []
    process.join()
