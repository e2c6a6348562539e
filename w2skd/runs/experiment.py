"""A whole experiment: the teachers, then every arm with every seed and length."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from w2skd.errors import UsageError, suggest
from w2skd.platform.device import open_device
from w2skd.platform.ranks import Ranks, process_group
from w2skd.platform.signals import stop_on_signals
from w2skd.recipe.arms import TEACHER, Arm
from w2skd.recipe.schema import Recipe
from w2skd.records.names import RunName
from w2skd.records.rundir import find_teacher
from w2skd.runs.arm import train_arm
from w2skd.runs.options import RunOptions


@dataclass(frozen=True)
class Plan:
    """Which runs an experiment consists of.

    Attributes:
        seeds: of the student's runs.
        arms: arms to train; empty for all of the recipe's.
        teacher_seeds: seeds of several teachers, which are assigned to the student's seeds in turn: with teachers 0, 1
            and 2, student seeds 0, 3 and 6 have teacher 0. Empty for a single teacher with the recipe's seed.
    """

    seeds: Sequence[int]
    arms: Sequence[Arm] = ()
    teacher_seeds: Sequence[int] = ()


@dataclass(frozen=True)
class Job:
    """One run of an experiment.

    Attributes:
        name: which run.
        recipe: of the experiment, with the seed of this run.
        options: of this run.
        needs: runs that must be finished before it starts.
    """

    name: RunName
    recipe: Recipe
    options: RunOptions
    needs: tuple[RunName, ...] = ()


def plan_jobs(recipe: Recipe, plan: Plan, options: RunOptions) -> list[Job]:
    """Return the runs of an experiment in the order in which one process trains them.

    For each seed the arms run back to back, and which goes first alternates, so that a drift of the machine's speed
    affects all alike. The longest run comes before the shorter ones, which may branch off it.

    Raises:
        UsageError: an arm is unknown, or several teachers are asked for although the recipe names a checkpoint.
    """
    for arm in plan.arms:
        if arm not in recipe.arms:
            raise UsageError(f"unknown arm {arm}{suggest(arm, recipe.arms)}; known: {', '.join(recipe.arms)}")
    arms = [arm for arm in recipe.arms if not plan.arms or arm in plan.arms]
    own_teacher = recipe.teacher.checkpoint is None
    if plan.teacher_seeds and not own_teacher:
        raise UsageError(f"--teacher-seeds: the recipe has one teacher, {recipe.teacher.checkpoint}")
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
    """Train every run that the experiment still lacks: finished runs are skipped, interrupted ones resume.

    Args:
        recipe: of the experiment; its own seed is that of a single teacher.
        plan: which runs.
        options: of every run.
        ranks: this process among its peers.
        announce: called with a line before each run.

    Raises:
        UserError: the first failure of a run. The same call continues from there.
    """
    jobs = plan_jobs(recipe, plan, options)
    own_teacher = recipe.teacher.checkpoint is None
    if not own_teacher:
        find_teacher(recipe, options.out)
    # One process group and one signal handler for all runs, since a signal may arrive between two of them.
    with process_group(ranks, open_device(options.device, ranks)), stop_on_signals() as stop:
        if not own_teacher:
            # A teacher that cannot be loaded must fail now, not after hours of reference runs.
            teacher, open_weights = recipe.teacher, recipe.task_type().open_weights
            ranks.on_all(lambda: open_weights(find_teacher(recipe, options.out), teacher.model, teacher.weights))
        for number, job in enumerate(jobs, start=1):
            if ranks.any(stop()):
                raise stop.error(f"before run {number} of {len(jobs)}")
            announce(f"[{number}/{len(jobs)}] {job.name.within(options.out)}")
            train_arm(job.recipe, job.name.arm, job.options, ranks)
