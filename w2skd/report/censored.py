"""Medians over runs of which some never reached the level: they count as later than everything.

A crossing that did not happen lies somewhere after the run's last validation. The median over all seeds then has
bounds, which coincide where the missing crossings do not decide it.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from w2skd.recipe.arms import Arm
from w2skd.report.contract import Spread, ThresholdReport
from w2skd.report.crossing import Position


class Bounds(NamedTuple):
    """What is known about a number: it lies between `low` and `high`, which may be infinite."""

    low: float
    high: float


def crossing_bounds(crossed: Position | None, last: Position | None, attribute: str) -> Bounds | None:
    """Return where a run crossed a level, or after what; None if the attribute is not recorded there.

    Args:
        crossed: the crossing; None without one.
        last: the run's last validation, for runs without a crossing; None without one.
        attribute: of `Position`.
    """
    place = crossed or last
    value = 0.0 if place is None else getattr(place, attribute)
    return None if value is None else Bounds(value, value if crossed else math.inf)


def median_crossing(threshold: ThresholdReport, arm: Arm, attribute: str, seeds: Iterable[int]) -> Bounds | None:
    """Return the median crossing of an arm over some seeds; None if the attribute is not recorded."""
    first, late = threshold.first[arm], threshold.not_reached.get(arm, {})
    found = [crossing_bounds(first[seed], late.get(seed), attribute) for seed in seeds]
    return None if not found or None in found else median_bounds(one for one in found if one is not None)


def ratio_bounds(theirs: Bounds | None, ours: Bounds | None, extra: float = 0.0) -> Bounds | None:
    """Return bounds of theirs / (ours + extra); None if one of them is not recorded."""
    if theirs is None or ours is None:
        return None
    low = theirs.low / (ours.high + extra) if ours.high + extra > 0 else math.inf
    high = theirs.high / (ours.low + extra) if ours.low + extra > 0 else math.inf
    return Bounds(low, high)


def median_bounds(bounds: Iterable[Bounds]) -> Bounds:
    """Return bounds of the median of numbers with bounds."""
    lows, highs = zip(*bounds, strict=True)
    return Bounds(statistics.median(lows), statistics.median(highs))


def spread(bounds: Sequence[Bounds], ratios: Mapping[int, float]) -> Spread | None:
    """Summarise a ratio over seeds.

    Args:
        bounds: of every seed.
        ratios: of the seeds for which both arms crossed.

    Returns:
        None without seeds.
    """
    if not bounds:
        return None
    low, high = (round(value, 6) if math.isfinite(value) else value for value in median_bounds(bounds))
    return Spread(
        median=low if low == high else None,
        min=min(ratios.values(), default=None),
        max=max(ratios.values(), default=None),
        seeds=len(ratios),
        low=low,
        high=high if math.isfinite(high) else None,
    )
