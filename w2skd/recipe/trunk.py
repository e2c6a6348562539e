"""Runs of several lengths that share the steps before their cooldowns: the longest is the trunk of the others."""

from collections.abc import Iterator

from w2skd.recipe.arms import ArmSection
from w2skd.recipe.duration import Duration
from w2skd.recipe.schema import Recipe
from w2skd.recipe.train import TrainSection, WsdSection


def trunk_problems(recipe: Recipe, arm: ArmSection) -> Iterator[str]:
    """Yield the settings of an arm that would differ between the trunk and its branches before the cooldown.

    Args:
        recipe: of the arm, with its changes.
        arm: its section.
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
            yield f"{name}: {duration} differs between lengths, which share a trunk; use epochs or steps, such as 2ep"


def branch_step(train: TrainSection, steps_per_epoch: int) -> int:
    """Return the number of steps before the cooldown of a run with this section, where it leaves the trunk."""
    assert isinstance(train.lr_schedule, WsdSection), train.lr_schedule
    total = train.total_steps(steps_per_epoch)
    return total - train.lr_schedule.cooldown.steps(steps_per_epoch, total)
