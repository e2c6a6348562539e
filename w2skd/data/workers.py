"""Work done ahead of time in processes of their own, whose failures become one line in the process that waits for them.

The processes are those of torch's `DataLoader`, which is asked for whole batches only. What it leaves open is added:
an error that the work foresaw crosses as it is; a process that was killed is missed within a second, one that hangs
within a time-out; signals to a whole process group leave them alone, since the main process decides when to end.
"""

import atexit
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from multiprocessing.connection import wait
from threading import Timer, current_thread, main_thread
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from w2skd.errors import DataError


class Pinnable(Protocol):
    """What work makes: a tensor, or an object of tensors. Picklable; its tensors then cross in shared memory."""

    def pin_memory(self) -> Self:
        """A copy in page-locked memory, as CUDA copies it fastest."""
        ...


Request = TypeVar("Request")
Made = TypeVar("Made", bound=Pinnable)

_MOST_WORKERS = 8

_PREFETCH = 2
"""Batches that a worker has ready or in the making, so that one slow example is not waited for."""

_LOOK_EVERY_S = 0.5
"""So often the workers are looked after while a batch is awaited."""

_GRACE_S = 1.0
"""So long a worker may take to end, then it is killed."""

_LEFT_TO_THE_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

_REASONS = {
    signal.SIGKILL: "most likely the system ran out of memory; set fewer data.workers",
    signal.SIGBUS: "most likely shared memory (/dev/shm) is full; set fewer data.workers, or give it more room",
}


def default_workers() -> int:
    """One process a core, shared among this machine's ranks; at least 1 and at most 8 a rank."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def in_workers(
    work: Callable[[Request], Made | DataError],
    requests: Iterable[Request],
    *,
    workers: int,
    timeout_s: float,
    pin_memory: bool = False,
) -> Generator[Made, None, None]:
    """Yield what `work` makes of every request, in their order. Closing the generator ends the workers.

    Args:
        work: picklable; errors that it foresees are returned, not raised.
        requests: picklable each; taken some batches ahead, also without end. Must start afresh at every `iter`.
        workers: processes; 0 works here, when a result is asked for.
        timeout_s: how long one result may be awaited.
        pin_memory: hand out what is made in page-locked memory.

    Raises:
        DataError: the work returned one, a worker was killed or hangs, or none can be started.
    """
    results = _in_processes(work, requests, workers, timeout_s, pin_memory) if workers else _here(work, requests)
    with closing(results):
        for result in results:
            if isinstance(result, DataError):
                raise result
            yield result.pin_memory() if pin_memory and not workers else result


def _here(
    work: Callable[[Request], Made | DataError], requests: Iterable[Request]
) -> Generator[Made | DataError, None, None]:
    for request in requests:
        yield work(request)


def _in_processes(
    work: Callable[[Request], Made | DataError],
    requests: Iterable[Request],
    workers: int,
    timeout_s: float,
    pin_memory: bool,
) -> Generator[Made | DataError, None, None]:
    loader = DataLoader(
        _Work(work),
        batch_size=None,
        sampler=requests,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=_PREFETCH,
        timeout=min(_LOOK_EVERY_S, timeout_s),
        worker_init_fn=_begin,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else it moves the global one
    )
    crew: _Crew[Made] = _Crew(loader, timeout_s)
    try:
        while (result := crew.take()) is not None:
            yield result
    finally:
        crew.end()


class _Crew(Generic[Made]):
    """The workers of one loader.

    Args:
        loader: whose workers are started here.
        timeout_s: how long `take` may wait.

    Raises:
        DataError: the system has no room for them.
    """

    def __init__(self, loader: "DataLoader[Any]", timeout_s: float):
        self._timeout_s = timeout_s
        others = set(multiprocessing.active_children())
        results: Iterator[Made | DataError] | None = None
        try:
            results = _start(loader)
        except OSError as error:
            why = error.strerror or str(error)
            raise DataError(f"data.workers: {loader.num_workers} cannot be started: {why}; set fewer") from None
        finally:
            started = set(multiprocessing.active_children()) - others
            self._processes = sorted(started, key=lambda process: process.pid or 0)
            if results is None:
                self.kill()  # before the loader, as its last remains vanish, waits for them
        self._results = results
        # Python waits at its exit for children, whom it asks to end by a signal that these do not hear.
        atexit.register(self.kill)

    def take(self) -> Made | DataError | None:
        """Wait for the next result; None behind the last."""
        until = time.monotonic() + self._timeout_s
        while True:
            try:
                return next(self._results, None)
            except (RuntimeError, OSError, EOFError) as error:
                if not str(error).startswith("DataLoader timed out") and not self._lost():
                    raise
            # Here and not above, where the error would keep alive all that it has passed through.
            if died := [process for process in self._processes if process.exitcode is not None]:
                raise DataError(f"data.workers: {_how_it_ended(died[0])}")
            if time.monotonic() >= until:
                self.kill()
                raise DataError(
                    f"data.worker_timeout_s: no batch came for {self._timeout_s:g} s; the data workers (pid "
                    f"{', '.join(str(process.pid) for process in self._processes)}) were killed; raise it if the "
                    "storage is only slow, else see whether the files can be read"
                )

    def end(self) -> None:
        """Ask the workers to end and see to it that they do."""
        killer = None
        if any(process.is_alive() for process in self._processes):
            killer = Timer(_GRACE_S, self.kill)
            killer.start()
        del self._results  # the last reference as a rule: they are asked here, and awaited
        for process in self._processes:
            process.join()
        if killer is not None:
            killer.cancel()
        atexit.unregister(self.kill)

    def kill(self) -> None:
        """Leave no worker alive. Nobody is awaited."""
        for process in self._processes:
            process.kill()

    def _lost(self) -> bool:
        """Whether a worker has ended; one whose connection broke may need a moment for it."""
        if not wait([process.sentinel for process in self._processes], _LOOK_EVERY_S):
            return False
        for process in self._processes:
            process.join(_LOOK_EVERY_S / len(self._processes))  # its exit code comes a little later than its end
        return True


def _start(loader: "DataLoader[Any]") -> "Iterator[Any]":
    """Start the workers, with nothing of it left in the main process's ways with signals."""
    if current_thread() is not main_thread():
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    # Workers inherit the mask, so that no signal finds one that does not yet ignore it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_PARENT)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # The loader's own handler would raise wherever the main process happens to be when a worker dies.
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)


def _begin(worker: int) -> None:
    """In a worker, before anything else. The loader has set it to one thread and watches over its parent."""
    for number in _LEFT_TO_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEFT_TO_THE_PARENT)


def _how_it_ended(process: multiprocessing.process.BaseProcess) -> str:
    code = process.exitcode
    assert code is not None
    if code >= 0:
        return f"a data worker (pid {process.pid}) ended with exit code {code}; data.workers: 0 shows why"
    number = signal.Signals(-code)
    reason = _REASONS.get(number, "data.workers: 0 shows where")
    return f"a data worker (pid {process.pid}) was killed by {number.name}; {reason}"


class _Work(Dataset[Made | DataError]):
    """What the loader takes for a data set, with requests for indices."""

    def __init__(self, work: Callable[[Any], Made | DataError]):
        self._work = work

    def __getitem__(self, request: Any) -> Made | DataError:
        return self._work(request)


def _as_it_is(result: Any) -> Any:
    return result
