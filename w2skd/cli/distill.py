"""``w2skd distill``."""

from typing import Annotated

import typer

from w2skd.cli.options import RecipeFlags, Teacher, TrainFlags, WeightsKey
from w2skd.cli.training import train
from w2skd.errors import UsageError, suggest
from w2skd.recipe.arms import Arm
from w2skd.recipe.schema import Recipe


def distill(
    *,
    recipe: RecipeFlags,
    teacher: Teacher = None,
    weights: WeightsKey = None,
    arm: Annotated[
        str | None,
        typer.Option("--arm", metavar="NAME", help="Arm to train; default: the first one that a teacher helps."),
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", metavar="", help="Train the reference, the recipe's first arm.")
    ] = False,
    flags: TrainFlags,
) -> None:
    """Train the student with the teacher's help, or any other arm; report when each threshold was crossed."""
    resolved = recipe.resolve(seed=flags.seed, teacher=teacher, weights=weights)
    chosen = _choose(resolved, arm, baseline)
    if teacher is not None and not resolved.helps(chosen):
        option = "--baseline" if baseline else f"--arm {chosen}"
        raise UsageError(f"{option} trains without a teacher: leave out --teacher")
    if flags.length not in resolved.lengths:
        known = ", ".join(f"{length:g}" for length in resolved.lengths)
        raise UsageError(f"--length {flags.length:g}: not one of the recipe's lengths ({known})")
    train(resolved, chosen, recipe.experiment(resolved), flags)


def _choose(recipe: Recipe, arm: str | None, baseline: bool) -> Arm:
    if baseline and arm is not None:
        raise UsageError(f"--baseline means --arm {recipe.reference}: use one of the two")
    if baseline:
        return recipe.reference
    if arm is None:
        return next((name for name in recipe.arms if recipe.helps(name)), recipe.reference)
    if arm not in recipe.arms:
        raise UsageError(f"--arm {arm}: unknown{suggest(arm, recipe.arms)}; known: {', '.join(recipe.arms)}")
    return arm
