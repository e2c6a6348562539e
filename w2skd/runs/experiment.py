"""A whole experiment: the teacher, then every arm with every seed."""

from collections.abc import Callable, Sequence

from w2skd.platform.device import open_device
from w2skd.platform.ranks import Ranks, process_group
from w2skd.platform.signals import stop_on_signals
from w2skd.recipe.arms import STUDENT_ARMS, TEACHER, Arm
from w2skd.recipe.schema import Recipe
from w2skd.records.rundir import find_teacher, run_path
from w2skd.runs.arm import train_arm
from w2skd.runs.options import RunOptions


def run_experiment(
    recipe: Recipe, seeds: Sequence[int], options: RunOptions, ranks: Ranks, announce: Callable[[str], None]
) -> None:
    """Train every run that the experiment still lacks: finished runs are skipped, interrupted ones resume.

    For each seed the arms run back to back, alternating which goes first, so that a drift of the machine's speed
    affects both alike.

    Args:
        recipe: of the experiment; its own seed is the teacher's.
        seeds: of the student's runs.
        options: of every run.
        ranks: this process among its peers.
        announce: called with a line before each run.

    Raises:
        UserError: the first failure of a run. The same call continues from there.
    """
    own_teacher = recipe.teacher.checkpoint is None
    runs: list[tuple[Arm, int]] = [(TEACHER, recipe.seed)] if own_teacher else []
    for number, seed in enumerate(seeds):
        arms: tuple[Arm, ...] = STUDENT_ARMS if number % 2 == 0 else STUDENT_ARMS[::-1]
        runs += [(arm, seed) for arm in arms]
    if not own_teacher:
        find_teacher(recipe, options.out)
    # One process group and one signal handler for all runs, since a signal may arrive between two of them.
    with process_group(ranks, open_device(options.device, ranks)), stop_on_signals() as stop:
        if not own_teacher:
            # A teacher that cannot be loaded must fail now, not after hours of reference runs.
            teacher, open_weights = recipe.teacher, recipe.task_type().open_weights
            ranks.on_all(lambda: open_weights(find_teacher(recipe, options.out), teacher.model, teacher.weights))
        for number, (arm, seed) in enumerate(runs, start=1):
            if ranks.any(stop()):
                raise stop.error(f"before run {number} of {len(runs)}")
            announce(f"[{number}/{len(runs)}] {run_path(options.out, arm, seed)}")
            train_arm(recipe.model_copy(update={"seed": seed}), arm, options, ranks)
