"""Several `compare` processes share an experiment. If some are killed or suspended, the result stays the same.

W2SKD_STORM=processes,disturbances makes the storm larger than in CI, such as 4,50.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import RECIPE, assert_same_course, done, recipe_file, status

from w2skd.errors import RunDirError
from w2skd.platform.lease import Watch
from w2skd.platform.ranks import Ranks
from w2skd.platform.signals import StopRequest
from w2skd.recipe.load import load_recipe
from w2skd.records.rundir import RunDir, find_runs
from w2skd.runs.experiment import Plan, _Worker, plan_jobs
from w2skd.runs.options import RunOptions
from w2skd.tasks.catalog import recipe_types

PROCESSES, DISTURBANCES = (int(part) for part in os.environ.get("W2SKD_STORM", "3,6").split(","))
TIMEOUT_S = 2.0

TEXT = (
    RECIPE.replace("lr_schedule: {name: one_cycle}", "lr_schedule: {name: wsd, warmup: 2step, cooldown: 0.4run}")
    + """
arms:
  baseline: {help: none}
  w2s: {help: distill}
  small: {help: none, set: {train.optimizer.lr: 0.005}}
lengths: [0.5, 1.0]
"""
)

PROGRAM = f"""
import sys, time
import w2skd.runs.experiment as experiment
from w2skd.platform.lease import Watch
from w2skd.training.engine import Engine
from w2skd.cli.main import main
experiment.Watch = lambda: Watch({TIMEOUT_S})
experiment.POLL_S = 0.1
original = Engine._take_step
def slow(engine, *args):
    time.sleep(0.02)
    original(engine, *args)
Engine._take_step = slow
main()
"""
"""A worker that takes over runs quickly, and whose steps are slow enough to be interrupted."""


def command(folder: Path, out: Path) -> list[str]:
    recipe = recipe_file(folder, TEXT)
    return [
        "compare",
        "--recipe",
        str(recipe),
        "--seeds",
        "0,1",
        "--teacher-seeds",
        "0,1",
        "--out",
        str(out),
        "--quiet",
    ]


def start(folder: Path, out: Path, log: Path) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with log.open("ab") as file:
        arguments = [sys.executable, "-c", PROGRAM, *command(folder, out)]
        return subprocess.Popen(arguments, stdout=file, stderr=file, env=environment, start_new_session=True)


def test_killed_and_suspended_workers_leave_the_result_of_a_single_one(tmp_path: Path) -> None:
    alone, out, chance = tmp_path / "alone", tmp_path / "together", random.Random(0)
    done(*command(tmp_path, alone))
    workers = [start(tmp_path, out, tmp_path / "log") for _ in range(PROCESSES)]
    suspended: list[tuple[float, subprocess.Popen[bytes]]] = []
    left, end, next_blow = DISTURBANCES, time.monotonic() + 500, time.monotonic() + 5
    codes = []
    try:
        while time.monotonic() < end:
            now = time.monotonic()
            for wake_at, worker in [each for each in suspended if each[0] <= now]:
                worker.send_signal(signal.SIGCONT)
                suspended.remove((wake_at, worker))
            for number, worker in enumerate(workers):
                code = worker.poll()
                if code is not None and code != 0 and left + len(suspended) > 0:
                    codes.append(code)
                    workers[number] = start(tmp_path, out, tmp_path / "log")
            awake = [one for one in workers if one.poll() is None and all(one is not each for _, each in suspended)]
            if left and now >= next_blow and awake:
                victim = chance.choice(awake)
                if chance.random() < 0.5:
                    victim.kill()
                else:
                    victim.send_signal(signal.SIGSTOP)
                    suspended.append((now + chance.choice((0.5, 2.5 * TIMEOUT_S)), victim))
                left -= 1
                next_blow = now + chance.uniform(0.3, 2.5)
            if all(worker.poll() is not None for worker in workers):
                break
            time.sleep(0.05)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGCONT)
                worker.kill()
                worker.wait()
    print(f"{DISTURBANCES - left} of {DISTURBANCES} disturbances, {len(codes)} workers replaced")
    assert left < DISTURBANCES
    said = (tmp_path / "log").read_text(errors="replace")
    assert [worker.returncode for worker in workers if worker.returncode not in (0, -signal.SIGKILL)] == [], said[
        -3000:
    ]
    done(*command(tmp_path, out))  # in case the storm outlived the experiment
    assert find_runs(out) == find_runs(alone)
    for name in find_runs(alone):
        assert status(name.within(out))["state"] == "finished"
        assert_same_course(name.within(out), name.within(alone))
    ours, theirs = (json.loads((folder / "report" / "report.json").read_text()) for folder in (out, alone))
    for threshold, other in zip(ours["thresholds"], theirs["thresholds"], strict=True):
        steps = [
            {
                arm: {seed: place and place["step"] for seed, place in found.items()}
                for arm, found in one["first"].items()
            }
            for one in (threshold, other)
        ]
        assert steps[0] == steps[1]
    assert ours["ends"] == theirs["ends"]


def test_a_run_that_failed_before_is_tried_again(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    done(*command(tmp_path, out), "--arms", "baseline")
    run = out / "baseline" / "seed0"
    (run / "status.json").write_text(json.dumps({**status(run), "state": "failed", "reason": "disk full"}))
    (run / "model.safetensors").unlink()
    done(*command(tmp_path, out), "--arms", "baseline")
    assert status(run)["state"] == "finished"


@pytest.mark.parametrize("arm", ["baseline", "w2s"])
def test_branches_wait_for_their_trunk(arm: str, tmp_path: Path) -> None:
    said = done(*command(tmp_path, tmp_path / "runs"), "--arms", arm).err
    order = [
        line.split()[1].removeprefix(f"{tmp_path / 'runs'}/") for line in said.splitlines() if line.startswith("[")
    ]
    assert order.index(f"{arm}/seed0") < order.index(f"{arm}/length0.5/seed0")


def test_a_run_that_fails_in_another_process_is_not_tried_again(tmp_path: Path) -> None:
    recipe = load_recipe(str(recipe_file(tmp_path, TEXT)), [], recipe_types())
    out = tmp_path / "runs"
    jobs = plan_jobs(recipe, Plan([0], ["baseline"]), RunOptions(out, watch=Watch(TIMEOUT_S)))
    worker = _Worker(jobs, out, Ranks(), StopRequest(), lambda text: None)
    job = jobs[0]
    assert worker._is_ready(job)
    run = RunDir(job.name.within(out))
    run.path.mkdir(parents=True)
    run.set_status("baseline", 0, "failed", reason="disk full")
    with pytest.raises(RunDirError, match="baseline/seed0: failed in another process; repeat the command"):
        worker._is_ready(job)
    assert _Worker(jobs, out, Ranks(), StopRequest(), lambda text: None)._is_ready(job), "failed before it began"
