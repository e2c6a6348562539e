"""The whole experiment: teacher, then baseline and accelerated arm seed by seed, then the report."""

from collections.abc import Callable, Sequence

from w2skd.platform.device import open_device
from w2skd.platform.ranks import Ranks, process_group
from w2skd.platform.signals import stop_on_signals
from w2skd.recipe.arms import Arm
from w2skd.recipe.schema import Recipe
from w2skd.records.rundir import find_teacher, run_path
from w2skd.runs.arm import train_arm
from w2skd.runs.options import RunOptions
from w2skd.weights.pretrained import open_weights


def compare(
    recipe: Recipe, seeds: Sequence[int], options: RunOptions, ranks: Ranks, announce: Callable[[str], None]
) -> None:
    """Run everything that the experiment still lacks; what is finished is skipped, what was cut off goes on.

    The arms of a seed follow each other and take turns in going first, so that a machine whose speed drifts, or
    warms up, treats them alike.

    Raises:
        UserError: the first run that fails; the same call goes on from there.
    """
    runs: list[tuple[Arm, int]] = [] if recipe.teacher.checkpoint is not None else [("teacher", recipe.seed)]
    for number, seed in enumerate(seeds):
        pair: list[tuple[Arm, int]] = [("baseline", seed), ("w2s", seed)]
        runs += pair if number % 2 == 0 else reversed(pair)
    if recipe.teacher.checkpoint is not None:
        find_teacher(recipe, options.out)
    # One process group and one ear for signals around all runs: a stop may come between two of them.
    with process_group(ranks, open_device(options.device, ranks)), stop_on_signals() as stop:
        if recipe.teacher.checkpoint is not None:
            # Nobody wants to hear after days of baselines that the teacher can't be had; published weights come now.
            ranks.on_all(lambda: open_weights(find_teacher(recipe, options.out), recipe.teacher.model))
        for number, (arm, seed) in enumerate(runs, start=1):
            if ranks.any(stop()):
                raise stop.error(f"before run {number} of {len(runs)}")
            announce(f"[{number}/{len(runs)}] {run_path(options.out, arm, seed)}")
            train_arm(recipe.model_copy(update={"seed": seed}), arm, options, ranks)
