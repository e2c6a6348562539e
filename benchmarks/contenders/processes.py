"""The CPU time of this process and its descendants, such as data workers. Linux only."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

NANOSECONDS = 1e-9
POLL_S, LONGEST_S, IDLE_SHARE = 0.02, 5.0, 0.02


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its living descendants."""
    return time.process_time() + descendants_cpu_seconds()


def descendants_cpu_seconds() -> float:
    """Return the CPU time of the living descendants of this process, without the process itself."""
    return sum(_busy_ns(pid) for pid in _descendants(os.getpid())) * NANOSECONDS


def wait_until_idle() -> None:
    """Wait until data workers have filled their queues, so that they do not slow down the next contender."""
    began, before = time.perf_counter(), descendants_cpu_seconds()
    while before and time.perf_counter() - began < LONGEST_S:
        time.sleep(POLL_S)
        now = descendants_cpu_seconds()
        if now - before < IDLE_SHARE * POLL_S:
            return
        before = now


def _descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:  # the thread has ended
            continue
        for child in children:
            yield child
            yield from _descendants(child)


def _busy_ns(pid: int) -> int:
    total = 0
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total += int(task.read_text().split()[0])
        except OSError:
            continue
    return total
