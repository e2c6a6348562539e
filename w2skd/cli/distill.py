"""``w2skd distill``."""

from typing import Annotated

import typer

from w2skd.cli.options import RecipeFlags, Teacher, TrainFlags, WeightsKey
from w2skd.cli.training import train
from w2skd.errors import UsageError
from w2skd.recipe.arms import HELPED, REFERENCE


def distill(
    *,
    recipe: RecipeFlags,
    teacher: Teacher = None,
    weights: WeightsKey = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", metavar="", help="Train the same way without a teacher.")
    ] = False,
    flags: TrainFlags,
) -> None:
    """Train the student with the teacher's help early on; report when each threshold was crossed."""
    if baseline and teacher is not None:
        raise UsageError("--baseline trains without a teacher: leave out --teacher")
    resolved = recipe.resolve(seed=flags.seed, teacher=teacher, weights=weights)
    train(resolved, REFERENCE if baseline else HELPED, recipe.experiment(resolved), flags)
