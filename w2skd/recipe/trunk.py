"""The trunk: the longest of several runs that share all steps before their cooldowns."""

from collections.abc import Iterator

from w2skd.recipe.arms import ArmSection
from w2skd.recipe.duration import Duration
from w2skd.recipe.schema import Recipe
from w2skd.recipe.train import TrainSection, WsdSection


def trunk_problems(recipe: Recipe, arm: ArmSection) -> Iterator[str]:
    """Yield the settings of an arm that differ between the trunk and its branches before the cooldown, one line each.

    Args:
        recipe: the recipe with the arm's changes.
        arm: the arm's section.
    """
    if len(recipe.lengths) == 1 or not recipe.has_trunk:
        return
    durations: dict[str, Duration | None] = {
        "train.ema.half_life": recipe.train.ema.half_life if recipe.train.ema else None,
    }
    if "distill" in arm.help:
        section = recipe.distill
        durations |= {"warmup": section.warmup, "hold": section.hold, "decay": section.decay}
    for key, duration in durations.items():
        if duration is not None and duration.unit == "run" and duration.amount > 0:
            name = key if "." in key else f"distill.{key}"
            yield f"{name}: {duration} differs between lengths, which share steps; use epochs or steps, such as 2ep"


def branch_step(train: TrainSection, steps_per_epoch: int) -> int:
    """Return the step at which a run's cooldown begins, where the run branches off the trunk."""
    assert isinstance(train.lr_schedule, WsdSection), train.lr_schedule
    total = train.total_steps(steps_per_epoch)
    return total - train.lr_schedule.cooldown.steps(steps_per_epoch, total)
