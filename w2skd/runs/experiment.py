"""A whole experiment: the teachers, then every arm with every seed and length."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from w2skd.errors import LeaseLost, RunDirError, RunHeld, UsageError, suggest
from w2skd.platform.device import open_device
from w2skd.platform.lease import Watch, is_held
from w2skd.platform.ranks import Ranks, process_group
from w2skd.platform.signals import StopRequest, stop_on_signals
from w2skd.recipe.arms import TEACHER, Arm
from w2skd.recipe.schema import Recipe
from w2skd.records.names import RunName
from w2skd.records.rundir import RunDir, find_teacher
from w2skd.runs.arm import train_arm
from w2skd.runs.options import RunOptions

POLL_S = 1.0
"""Pause between two searches for a free run."""


@dataclass(frozen=True)
class Plan:
    """The runs of an experiment.

    Attributes:
        seeds: seeds of the student's runs.
        arms: arms to train; empty for all arms of the recipe.
        teacher_seeds: seeds of several teachers, which are assigned to the student's seeds in turn: with teachers 0, 1
            and 2, the first, fourth and seventh student seed have teacher 0. Empty for a single teacher with the
            recipe's seed.
    """

    seeds: Sequence[int]
    arms: Sequence[Arm] = ()
    teacher_seeds: Sequence[int] = ()


@dataclass(frozen=True)
class Job:
    """One run of an experiment.

    Attributes:
        name: name of the run.
        recipe: the experiment's recipe, with the seed of this run.
        options: options of this run.
        needs: runs that must finish before this one starts.
    """

    name: RunName
    recipe: Recipe
    options: RunOptions
    needs: tuple[RunName, ...] = ()


def plan_jobs(recipe: Recipe, plan: Plan, options: RunOptions) -> list[Job]:
    """Return the runs of an experiment in the order in which one process trains them.

    For each seed the arms run back to back, alternating which goes first, so that drift of the machine's speed affects
    all arms alike. The longest run comes before the shorter ones, which may branch off it.

    Raises:
        UsageError: an arm is unknown, or `teacher_seeds` is set although the recipe names a teacher checkpoint.
    """
    for arm in plan.arms:
        if arm not in recipe.arms:
            raise UsageError(f"unknown arm {arm}{suggest(arm, recipe.arms)}; known: {', '.join(recipe.arms)}")
    arms = [arm for arm in recipe.arms if not plan.arms or arm in plan.arms]
    own_teacher = recipe.teacher.checkpoint is None
    if plan.teacher_seeds and not own_teacher:
        known = recipe.teacher.checkpoint
        raise UsageError(f"--teacher-seeds: the recipe has a teacher checkpoint ({known}); use one of the two")
    teachers: Sequence[int | None] = plan.teacher_seeds or (None,)
    jobs = []
    if own_teacher and any(recipe.helps(arm) for arm in arms):
        for seed in teachers:
            own = recipe if seed is None else recipe.model_copy(update={"seed": seed})
            jobs.append(Job(RunName(TEACHER, seed), own, replace(options, teacher_seed=seed)))
    for number, seed in enumerate(plan.seeds):
        first = number % len(arms)
        teacher = teachers[number % len(teachers)]
        for arm in (*arms[first:], *arms[:first]):
            taught = (RunName(TEACHER, teacher),) if own_teacher and recipe.helps(arm) else ()
            for length in sorted(recipe.lengths, reverse=True):
                branches = recipe.for_arm(arm).has_trunk and length != 1.0
                jobs.append(
                    Job(
                        RunName(arm, seed, length),
                        recipe.model_copy(update={"seed": seed}),
                        replace(options, teacher_seed=teacher, length=length),
                        (*taught, *([RunName(arm, seed)] if branches else [])),
                    )
                )
    return jobs


def run_experiment(
    recipe: Recipe, plan: Plan, options: RunOptions, ranks: Ranks, announce: Callable[[str], None]
) -> None:
    """Train all runs of an experiment. Finished runs are skipped, and interrupted runs resume.

    Several processes may call this at the same time. Each process takes the next run that no process holds and whose
    needs are finished, and takes over the runs of processes that ended or stopped responding. All of them return when
    the experiment is complete.

    Args:
        recipe: the experiment's recipe. Its seed is the seed of a single teacher.
        plan: the runs to train.
        options: options of every run.
        ranks: this process among its peers.
        announce: called with a line before each run, and when the process waits for others.

    Raises:
        UserError: a run failed. Calling again continues from there.
    """
    options = replace(options, watch=options.watch or Watch())
    jobs = plan_jobs(recipe, plan, options)
    own_teacher = recipe.teacher.checkpoint is None
    if not own_teacher:
        find_teacher(recipe, options.out)
    # One process group and one signal handler for all runs, because a signal may arrive between two runs.
    with process_group(ranks, open_device(options.device, ranks)), stop_on_signals() as stop:
        if not own_teacher:
            # A teacher that cannot be loaded must fail at startup, not after hours of reference runs.
            teacher, open_weights = recipe.teacher, recipe.task_type().open_weights
            ranks.on_all(lambda: open_weights(find_teacher(recipe, options.out), teacher.model, teacher.weights))
        _Worker(jobs, options.out, ranks, stop, announce).work()


class _Worker:
    """One of possibly several processes that train the runs of an experiment.

    Args:
        jobs: all runs, in order of preference.
        out: directory of the experiment.
        ranks: this process among its peers, which train one run at a time together.
        stop: the signals received so far.
        announce: called with a line before each run, and when the process waits for others.
    """

    def __init__(
        self, jobs: Sequence[Job], out: Path, ranks: Ranks, stop: StopRequest, announce: Callable[[str], None]
    ):
        self._left = list(enumerate(jobs, start=1))
        self._count = len(jobs)
        self._out = out
        self._ranks = ranks
        self._stop = stop
        self._announce = announce
        self._failed_before = {job.name for job in jobs if self._state(job.name) == "failed"}

    def work(self) -> None:
        """Train runs until all are finished."""
        waiting = False
        while self._left:
            if self._train_free_ones():
                waiting = False
            elif self._left:
                if not waiting:
                    held = ", ".join(str(job.name) for _, job in self._left)
                    self._announce(f"waiting for other processes: {held}")
                waiting = True
                self._check_signals()
                time.sleep(POLL_S)

    def _train_free_ones(self) -> bool:
        """Train every run that is free when its turn comes; return whether at least one was."""
        any_free = False
        for number, job in list(self._left):
            self._check_signals()
            if not self._ranks.on_main(partial(self._is_ready, job)):
                continue
            self._announce(f"[{number}/{self._count}] {job.name.within(self._out)}")
            try:
                train_arm(job.recipe, job.name.arm, job.options, self._ranks)
            except RunHeld:
                continue
            except LeaseLost as error:
                self._announce(str(error))
                continue
            any_free = True
            self._left.remove((number, job))
        return any_free

    def _is_ready(self, job: Job) -> bool:
        """Return whether a run's needs are finished and no other process holds it.

        Raises:
            RunDirError: the run failed in another process, which reported the reason.
        """
        assert job.options.watch is not None
        if any(self._state(name) != "finished" for name in job.needs):
            return False
        if is_held(job.name.within(self._out), job.options.watch):
            return False
        if self._state(job.name) == "failed" and job.name not in self._failed_before:
            raise RunDirError(f"{job.name.within(self._out)}: failed in another process; repeat the command to retry")
        return True

    def _check_signals(self) -> None:
        if self._ranks.any(self._stop()):
            raise self._stop.error(f"before run {self._left[0][0]} of {self._count}")

    def _state(self, name: RunName) -> str | None:
        with suppress(RunDirError):
            return RunDir(name.within(self._out)).status().get("state")
        return None
