"""Data workers: processes that prepare batches ahead of time and report their failures as one-line errors.

The processes come from torch's `DataLoader`, which fetches whole batches only. This module adds what it lacks: a
`DataError` crosses to the main process unchanged; a killed worker is noticed within a second, a hanging worker within
a timeout; and signals to the process group do not reach the workers, because the main process decides when to stop.
"""

import atexit
import gc
import multiprocessing
import multiprocessing.context
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.connection import wait
from threading import Thread, Timer, current_thread, main_thread
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from w2skd.errors import DataError


class HostBatch(Protocol):
    """A tensor, or an object of tensors. Picklable; its tensors reach the main process through shared memory."""

    def pin_memory(self) -> Self:
        """Return a copy in page-locked memory, which CUDA copies fastest."""
        ...

    def to(self, device: torch.device, *, non_blocking: bool) -> Self:
        """Return a copy on a device. Tensors that only the host uses stay on the host."""
        ...

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of the tensors until a CUDA stream has done its work, see `Tensor.record_stream`."""
        ...


Request = TypeVar("Request")
Made = TypeVar("Made", bound=HostBatch)

_MAX_WORKERS = 8

_PREFETCH = 2
"""Batches that a worker prepares ahead, so that one slow example does not stall training."""

_CHECK_EVERY_S = 0.5
"""Interval at which the workers are checked while a batch is awaited."""

_GRACE_S = 1.0
"""Time that a worker may take to end before it is killed."""

MAIN_PROCESS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals to the process group that only the main process handles."""

_CAUSES = {
    signal.SIGKILL: "most likely the system ran out of memory; set fewer data.workers",
    signal.SIGBUS: "most likely shared memory (/dev/shm) is full; set fewer data.workers or enlarge it",
}


@dataclass(frozen=True)
class Workers:
    """The data workers of one rank.

    Attributes:
        count: processes; 0 works in the main process.
        timeout_s: maximum time to wait for one result.
    """

    count: int
    timeout_s: float = 300.0

    @classmethod
    def of(cls, count: int | None, timeout_s: float) -> Self:
        """Return the workers of a recipe's ``data`` section.

        Args:
            count: ``data.workers``; None divides the machine's cores among its ranks, 1 to 8 workers per rank.
            timeout_s: ``data.worker_timeout_s``.
        """
        if count is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            count = max(1, min(_MAX_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
        return cls(count, timeout_s)

    def at_most(self, count: int) -> "Workers":
        """Return no more than `count` workers."""
        return replace(self, count=min(self.count, count))

    def map(
        self, work: Callable[[Request], Made | DataError], requests: Iterable[Request], *, pin_memory: bool = False
    ) -> Generator[Made, None, None]:
        """Yield the result of `work` for each request, in order. Closing the generator ends the workers.

        Args:
            work: picklable function; it returns a `DataError` instead of raising it.
            requests: picklable; consumed some batches ahead; may be endless. Each `iter` must start at the first.
            pin_memory: return results in page-locked memory.

        Raises:
            DataError: `work` returned one, a worker was killed or hangs, or workers cannot be started.
        """
        results = self._in_processes(work, requests, pin_memory) if self.count else (work(each) for each in requests)
        with closing(results):
            for result in results:
                if isinstance(result, DataError):
                    raise result
                yield result.pin_memory() if pin_memory and not self.count else result

    def _in_processes(
        self, work: Callable[[Request], Made | DataError], requests: Iterable[Request], pin_memory: bool
    ) -> Generator[Made | DataError, None, None]:
        loader = DataLoader(
            _Work(work),
            batch_size=None,
            sampler=requests,
            collate_fn=_unchanged,
            num_workers=self.count,
            prefetch_factor=_PREFETCH,
            timeout=min(_CHECK_EVERY_S, self.timeout_s),
            worker_init_fn=_begin,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # by default it would draw from the global one
            multiprocessing_context=_context(),
        )
        pool: _Pool[Made] = _Pool(loader, self.timeout_s)
        try:
            while (result := pool.next()) is not None:
                yield result
        finally:
            pool.end()


class _Pool(Generic[Made]):
    """The processes of one loader.

    Args:
        loader: the loader whose workers to start.
        timeout_s: maximum time that `next` waits.

    Raises:
        DataError: the workers cannot be started.
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
                self.kill()  # first, because the loader waits for them when it is collected
        self._results = results
        # At exit Python sends its children SIGTERM, which these ignore, and waits for them.
        atexit.register(self.kill)

    def next(self) -> Made | DataError | None:
        """Wait for the next result; None after the last."""
        until = time.monotonic() + self._timeout_s
        while True:
            try:
                return next(self._results, None)
            except (RuntimeError, OSError, EOFError) as error:
                if not str(error).startswith("DataLoader timed out") and not self._lost():
                    raise
            # Outside the except block, whose error would keep its whole traceback alive.
            if died := [process for process in self._processes if process.exitcode is not None]:
                raise DataError(f"data.workers: {_exit_reason(died[0])}")
            if time.monotonic() >= until:
                self.kill()
                raise DataError(
                    f"data.worker_timeout_s: no batch within {self._timeout_s:g} s; killed the data workers (pid "
                    f"{', '.join(str(process.pid) for process in self._processes)}). Increase the timeout if the "
                    "storage is slow; otherwise check that the files can be read"
                )

    def end(self) -> None:
        """Ask the workers to end; kill them if they have not ended after a second."""
        killer = None
        if any(process.is_alive() for process in self._processes):
            killer = Timer(_GRACE_S, self.kill)
            killer.start()
        del self._results  # usually the last reference: asks the workers to end and waits for them
        for process in self._processes:
            process.join()
        if killer is not None:
            killer.cancel()
        atexit.unregister(self.kill)

    def kill(self) -> None:
        """Kill all workers without waiting for them."""
        for process in self._processes:
            process.kill()

    def _lost(self) -> bool:
        """Return whether a worker has ended, after a short wait, since its connection breaks before it ends."""
        if not wait([process.sentinel for process in self._processes], _CHECK_EVERY_S):
            return False
        for process in self._processes:
            process.join(_CHECK_EVERY_S / len(self._processes))  # the exit code arrives a little after the end
        return True


def start_method() -> str:
    """Return how workers are started: ``fork`` before Python 3.12, else ``forkserver``.

    The main process has threads, as torch computes in some, and a fork while one of them holds a lock may hang. Python
    3.12 warns of it. A server, which has a single thread, costs the seconds in which it loads torch once.
    """
    return "forkserver" if sys.version_info >= (3, 12) else "fork"


def prepare_workers() -> None:
    """Start loading what workers need, where that takes time, so that they start at once when they are needed."""
    if start_method() == "forkserver":
        _context()
        forkserver.ensure_running()


def _context() -> multiprocessing.context.BaseContext:
    context = multiprocessing.get_context(start_method())
    if start_method() == "forkserver":
        forkserver.set_forkserver_preload(["w2skd.data.worker_server"])
    return context


def _start(loader: "DataLoader[Any]") -> "Iterator[Any]":
    """Start the workers and leave the signal handlers of the main process unchanged."""
    if current_thread() is not main_thread():
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    # Workers inherit the mask, which protects them until they ignore the signals.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, MAIN_PROCESS_SIGNALS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # The loader's own handler would raise at an arbitrary place of the main process when a worker dies.
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)


def _begin(worker: int) -> None:
    """Initialise a worker. The loader has already set it to one thread."""
    for number in MAIN_PROCESS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, MAIN_PROCESS_SIGNALS)
    Thread(target=_end_with_main_process, daemon=True).start()
    # A garbage collection writes to every object that it visits, which would copy all memory shared with the parent.
    gc.freeze()


def _end_with_main_process() -> None:
    """End this worker when the main process is killed.

    torch's own check compares the pid of the parent. With a forkserver that is the server, which lives as long as its
    workers.
    """
    main = multiprocessing.parent_process()
    assert main is not None
    main.join()
    os._exit(1)


def _exit_reason(process: multiprocessing.process.BaseProcess) -> str:
    code = process.exitcode
    assert code is not None
    if code >= 0:
        return f"a data worker (pid {process.pid}) ended with exit code {code}; set data.workers: 0 to see why"
    number = signal.Signals(-code)
    cause = _CAUSES.get(number, "set data.workers: 0 to see where")
    return f"a data worker (pid {process.pid}) was killed by {number.name}; {cause}"


class _Work(Dataset[Made | DataError]):
    """A map-style data set whose indices are requests."""

    def __init__(self, work: Callable[[Any], Made | DataError]):
        self._work = work

    def __getitem__(self, request: Any) -> Made | DataError:
        return self._work(request)


def _unchanged(result: Any) -> Any:
    return result
