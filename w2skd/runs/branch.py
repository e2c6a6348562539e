"""Shorter schedules that branch off a longer run, the trunk, at the step where their cooldown begins.

Both take the same steps before that point, so a branch costs only its cooldown. Its records start with the trunk's.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2skd.errors import CheckpointError
from w2skd.platform.files import writing
from w2skd.recipe.arms import TEACHER, Arm
from w2skd.recipe.schema import Recipe
from w2skd.recipe.trunk import branch_step
from w2skd.records.rundir import RunDir
from w2skd.training.checkpoint import link_checkpoint, load_checkpoint


def branch_steps(recipe: Recipe, arm: Arm, steps_per_epoch: int) -> frozenset[int]:
    """Return the steps at which the shorter lengths of a recipe branch off its longest run.

    Args:
        recipe: the recipe of the arm; see `Recipe.for_arm`.
        arm: one of the recipe's arms, or `TEACHER`, which has no branches.
        steps_per_epoch: optimizer steps per epoch.
    """
    if arm == TEACHER or not recipe.has_trunk:
        return frozenset()
    shorter = [length for length in recipe.lengths if length < 1.0]
    return frozenset(branch_step(recipe.train.scaled(length), steps_per_epoch) for length in shorter)


def keep_for_branch(checkpoints: Path, step: int) -> None:
    """Keep the newest checkpoint of a trunk, which was written at the given step, for a branch."""
    link_checkpoint(checkpoints / "last.pt", _kept(checkpoints, step))


def load_trunk(trunk: RunDir, recipe: Recipe, steps_per_epoch: int) -> dict[str, Any] | None:
    """Return the trunk's checkpoint at which a branch begins; None if the branch begins at step 0.

    Args:
        trunk: a finished run of the full length.
        recipe: the recipe of the branch.
        steps_per_epoch: optimizer steps per epoch.

    Raises:
        CheckpointError: the trunk did not keep the checkpoint.
    """
    step = branch_step(recipe.train, steps_per_epoch)
    if step <= 0:
        return None
    path = _kept(trunk.checkpoints, step)
    if not path.exists():
        raise CheckpointError(
            f"{trunk.path}: has no checkpoint of step {step:,}, where the shorter run branches off; "
            "train it again with all lengths in the recipe and --overwrite"
        )
    return load_checkpoint(path)


def copy_records(trunk: RunDir, run: RunDir, checkpoint: Mapping[str, Any]) -> None:
    """Copy the trunk's rows up to the checkpoint into the branch."""
    with writing(run.metrics_path), trunk.metrics_path.open("rb") as source, run.metrics_path.open("wb") as target:
        shutil.copyfileobj(source, target)
        target.truncate(checkpoint["metrics_offset"])


def _kept(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"branch_{step:08d}.pt"
