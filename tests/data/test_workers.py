"""Data workers that finish, fail, die, hang and are closed."""

import errno
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from w2skd.data import workers
from w2skd.data.paths import PathList, TextList
from w2skd.data.workers import Workers, start_method
from w2skd.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@dataclass(frozen=True)
class Act:
    """Answers a number with a tensor of it, except for one number, to which something happens."""

    what: str = ""
    at: int = -1

    def __call__(self, number: int) -> Tensor | DataError:
        if number == self.at:
            match self.what:
                case "refuse":
                    return DataError(f"{number}.jpg: not an image")
                case "raise":
                    raise RuntimeError("a bug")
                case "hang":
                    time.sleep(1000)
                case "exit":
                    os._exit(3)
                case name:
                    os.kill(os.getpid(), signal.Signals[name])
        return torch.tensor([number, os.getpid(), torch.get_num_threads()])


@dataclass(frozen=True)
class Parts:
    """An object of tensors."""

    some: Tensor
    others: tuple[Tensor, ...]
    word: str = "plain"

    def pin_memory(self) -> "Parts":
        return Parts(self.some, self.others, "pinned")


def parts_of(number: int) -> Parts | DataError:
    return Parts(torch.full((number,), 3), (torch.tensor(number), torch.zeros(0, 4)))


def growth_by_collection(_: int) -> Tensor:
    """Return the growth of a worker's private memory by a full garbage collection, in KB."""

    def private_kb() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))

    before = private_kb()
    gc.collect()
    return torch.tensor(private_kb() - before)


class Numbers:
    """0, 1, 2 ... without end."""

    def __iter__(self) -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1


def start(act: Act, workers: int, timeout_s: float = 60.0):
    return Workers(workers, timeout_s).map(act, Numbers())


def numbers(results, count: int) -> list[int]:
    return [int(next(results)[0]) for _ in range(count)]


def drain(results) -> None:
    """Take all; one that dies takes along what it has made but not yet handed over."""
    for _ in results:
        pass


def no_children() -> bool:
    return multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_the_order_of_requests(workers: int):
    results = start(Act(), workers)
    assert numbers(results, 20) == list(range(20))
    results.close()
    assert no_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_finite_row_ends(workers: int):
    results = Workers(workers).map(Act(), [5, 6, 7])
    assert [int(result[0]) for result in results] == [5, 6, 7]
    assert no_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_objects_of_tensors_cross_whole(workers: int):
    made = list(Workers(workers).map(parts_of, [2, 0, 5]))
    assert [(part.some.tolist(), int(part.others[0]), part.others[1].shape, part.word) for part in made] == [
        ([3] * number, number, (0, 4), "plain") for number in (2, 0, 5)
    ]


def test_what_is_made_here_is_pinned_by_its_own_method():
    made = next(Workers(0).map(parts_of, [1], pin_memory=True))
    assert made.word == "pinned"


def test_workers_have_one_thread_and_are_not_this_process():
    results = start(Act(), 2)
    seen = [next(results) for _ in range(4)]
    assert {int(result[2]) for result in seen} == {1}
    pids = {int(result[1]) for result in seen}
    assert len(pids) == 2
    assert os.getpid() not in pids
    results.close()


def test_nothing_starts_before_the_first_result_is_asked_for():
    results = start(Act(), 1)
    assert no_children()
    results.close()


def test_generator_and_signal_handlers_of_this_process_are_left_alone():
    state, handler = torch.get_rng_state(), signal.getsignal(signal.SIGCHLD)
    results = start(Act(), 1)
    next(results)
    assert signal.getsignal(signal.SIGCHLD) is handler
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    results.close()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_error_that_the_work_foresaw_arrives_as_it_is(workers: int):
    results = start(Act("refuse", 3), workers)
    assert numbers(results, 3) == [0, 1, 2]
    with pytest.raises(DataError) as caught:
        next(results)
    assert caught.value.args == ("3.jpg: not an image",)
    assert no_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_keeps_its_type_and_its_traceback(workers: int):
    results = start(Act("raise", 1), workers)
    next(results)
    with pytest.raises(RuntimeError, match="a bug"):
        next(results)
    assert no_children()


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("SIGKILL", "was killed by SIGKILL; most likely the system ran out of memory; set fewer data.workers"),
        ("SIGBUS", r"was killed by SIGBUS; most likely shared memory \(/dev/shm\) is full"),
        ("exit", "ended with exit code 3"),
    ],
)
def test_a_worker_that_ends_is_reported_in_one_line(what: str, reason: str):
    results = start(Act(what, 2), 2)
    with pytest.raises(DataError, match=rf"^data\.workers: a data worker \(pid \d+\) {reason}") as caught:
        drain(results)
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None
    assert no_children()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # DataLoader's own, half built
def test_no_room_for_workers_is_reported_and_those_that_started_end(monkeypatch: pytest.MonkeyPatch):
    process = type(multiprocessing.get_context(start_method())).Process
    begin = process.start

    def start_one(self: Any) -> None:
        if multiprocessing.active_children():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        begin(self)

    monkeypatch.setattr(process, "start", start_one)
    with pytest.raises(DataError, match=r"^data\.workers: 3 cannot be started: Resource .* unavailable; set fewer$"):
        next(start(Act(), 3))
    deadline = time.monotonic() + 300
    while not no_children():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_worker_that_dies_while_idle_is_reported():
    results = start(Act(), 1)
    pid = int(next(results)[1])
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(DataError, match=f"pid {pid}.* SIGKILL"):
        drain(results)


def test_a_worker_that_hangs_is_reported_and_killed():
    results = start(Act("hang", 2), 2, timeout_s=0.3)
    pids = {int(next(results)[1]) for _ in range(2)}
    began = time.monotonic()
    with pytest.raises(DataError, match=r"^data\.worker_timeout_s: no batch within 0\.3 s; .*killed") as caught:
        next(results)
    assert time.monotonic() - began < 300
    assert all(str(pid) in str(caught.value) for pid in pids)
    assert "\n" not in str(caught.value)
    assert no_children()


def test_closing_does_not_wait_for_one_that_hangs():
    results = start(Act("hang", 1), 1)
    next(results)
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 300
    assert no_children()


def test_dropping_the_generator_ends_the_workers():
    results = start(Act(), 2)
    next(results)
    assert len(multiprocessing.active_children()) == 2
    del results
    gc.collect()
    assert no_children()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_signals_to_the_process_group_do_not_stop_workers(name: str):
    results = start(Act(), 1)
    pid = int(next(results)[1])
    os.kill(pid, signal.Signals[name])
    assert {int(next(results)[1]) for _ in range(6)} == {pid}
    results.close()


def test_a_program_that_just_ends_leaves_no_worker_and_does_not_wait(tmp_path: Path):
    script = tmp_path / "ends.py"
    script.write_text(
        "from test_workers import Act, start, next_pid\n"
        "if __name__ == '__main__':\n"
        "    results = start(Act('hang', 1), 1)\n"
        "    print(next_pid(results), flush=True)\n"
        "    kept = [results]\n"
        "    raise SystemExit(7)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=600, env=environment)
    assert (done.returncode, done.stderr) == (7, "")
    assert not alive(int(done.stdout))


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_end_when_the_main_process_is_killed(method: str, tmp_path: Path):
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal\n"
        "from test_workers import Act, next_pid, start, workers\n"
        "if __name__ == '__main__':\n"
        f"    workers.start_method = lambda: {method!r}\n"
        "    results = start(Act(), 2)\n"
        "    print(next_pid(results), next_pid(results), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, timeout=600, env=environment)
    assert done.returncode == -signal.SIGKILL
    until = time.monotonic() + 120  # torch checks the parent of forked workers every five seconds
    while any(map(alive, map(int, done.stdout.split()))) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, map(int, done.stdout.split())))


def next_pid(results) -> int:
    return int(next(results)[1])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_both_ways_to_start_workers_give_the_same(method: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "start_method", lambda: method)
    workers.prepare_workers()
    results = start(Act("refuse", 2), 1)
    assert numbers(results, 2) == [0, 1]
    with pytest.raises(DataError, match=r"^2\.jpg: not an image$"):
        next(results)
    results = start(Act(), 2)
    assert {int(row[2]) for row in (next(results), next(results))} == {1}, "one thread each"
    pids = [int(next(results)[1]) for _ in range(2)]
    for number in workers.MAIN_PROCESS_SIGNALS:
        for pid in pids:
            os.kill(pid, number)  # as a signal to the process group would
    assert numbers(results, 3)
    results.close()
    assert no_children()


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_garbage_collection_does_not_copy_the_memory_of_the_parent(method: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "start_method", lambda: method)
    objects = [[number] for number in range(200_000)]  # 16 MB
    assert [int(kb) < 8_000 for kb in Workers(1).map(growth_by_collection, [0, 1])] == [True, True]
    assert len(objects) == 200_000


class NamesOf:
    """Returns the bytes of the path with a given number."""

    def __init__(self, paths: PathList):
        self._paths = paths

    def __call__(self, number: int) -> Tensor:
        return torch.tensor(list(os.fsencode(self._paths[number])))


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_paths_reach_workers(method: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "start_method", lambda: method)
    paths = PathList.below(Path("/data/train"), TextList(["a/1.png", "b/\udcff.png", "c/\u00e9.png"]))
    for _ in range(2):  # the paths move to shared memory for the first workers only
        results = Workers(2).map(NamesOf(paths), [2, 0, 1])
        names = [os.fsdecode(bytes(name.tolist())) for name in results]
        assert names == ["/data/train/c/\u00e9.png", "/data/train/a/1.png", "/data/train/b/\udcff.png"]
    assert paths[1] == Path("/data/train/b/\udcff.png")


def test_workers_start_from_a_process_of_one_thread_where_forking_threads_is_unsafe():
    assert workers.start_method() == ("forkserver" if sys.version_info >= (3, 12) else "fork")


def test_errors_cross_processes_whole():
    error = pickle.loads(pickle.dumps(DataError("a.jpg: not an image")))
    assert (type(error), str(error)) == (DataError, "a.jpg: not an image")


@pytest.mark.parametrize(("cores", "ranks", "workers"), [(2, 1, 2), (64, 1, 8), (64, 8, 8), (16, 8, 2), (4, 8, 1)])
def test_by_default_the_ranks_of_a_machine_share_its_cores(
    cores: int, ranks: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert Workers.of(None, 5.0) == Workers(workers, 5.0)
    assert Workers.of(0, 5.0) == Workers(0, 5.0)
