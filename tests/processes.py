"""Ranks as real processes, like torchrun but without its slow start.

The processes are forked from a server that has loaded torch once and computed nothing, so a launch takes milliseconds.
As with torchrun, the store in which the ranks find each other is kept by their parent, on a port that the system picks:
no rank can miss it, no other process can take it, and a process joins a group once.
"""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.distributed import TCPStore

from w2skd.platform.ranks import Ranks, ranks_from_environment

_FORK = multiprocessing.get_context("forkserver")
_FORK.set_forkserver_preload(["torch", "w2skd.runs.experiment", "w2skd.runs.score", "pytest"])


@dataclass(frozen=True)
class Outcome:
    """The result of one rank.

    Attributes:
        value: what its work returned.
        error: what its work raised instead.
        exit_code: of the process; None if it had to be killed, since it hung.
        seconds: from the launch to its answer.
    """

    value: Any = None
    error: BaseException | None = None
    exit_code: int | None = None
    seconds: float = 0.0


def run_ranks(work: Callable[..., Any], *arguments: Any, world: int = 2, timeout_s: float = 300.0) -> list[Outcome]:
    """Call ``work(ranks, *arguments)`` in `world` processes; `work` is a function of a module."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))
    began, processes, ends = time.monotonic(), [], []
    for rank in range(world):
        ours, theirs = _FORK.Pipe(duplex=False)
        process = _FORK.Process(target=_serve, args=(theirs, rank, world, store.port, work, arguments), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        ends.append(ours)
    outcomes = []
    for process, end in zip(processes, ends, strict=True):
        value, error, seconds = None, None, time.monotonic() - began
        try:
            if end.poll(max(0.0, began + timeout_s - time.monotonic())):
                value, error = end.recv()
                seconds = time.monotonic() - began
        except EOFError:
            error = RuntimeError("the process ended without an answer")
        process.join(max(0.0, began + timeout_s - time.monotonic()))
        outcomes.append(Outcome(value, error, process.exitcode, seconds))
        if process.is_alive():
            process.kill()
            process.join()
    return outcomes


def values(outcomes: list[Outcome]) -> list[Any]:
    """Return the value of each rank; raise the first error of a rank."""
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
        assert outcome.exit_code == 0, outcomes
    return [outcome.value for outcome in outcomes]


def _serve(end: Connection, rank: int, world: int, port: int, work: Callable[..., Any], arguments: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    torch.set_num_threads(1)
    # The server of data workers, which may be the same process, blocks signals.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))
    ranks = ranks_from_environment()
    assert ranks == Ranks(rank, world, rank)
    try:
        end.send((work(ranks, *arguments), None))
    except BaseException as error:
        error.add_note(f"in rank {rank}:\n{traceback.format_exc()}")
        end.send((None, error))
