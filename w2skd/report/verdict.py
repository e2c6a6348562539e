"""Verdicts and warnings for a threshold's numbers."""

from collections.abc import Mapping, Sequence
from typing import Literal

from w2skd.recipe.arms import Arm
from w2skd.recipe.evaluation import Metric
from w2skd.report import units
from w2skd.report.contract import Comparison, Crossings, Spread, ThresholdReport, pair
from w2skd.report.crossing import Position, shown
from w2skd.report.experiment import Level

WORKING_BAND = 0.15
"""Teachers up to this much weaker than the target helped in the published runs. An observation, not a law."""


def note(distance: float | None) -> str | None:
    """Return the expected effect of a teacher outside the working band; None inside it."""
    if distance is None:
        return None
    if distance == 0:
        return "the teacher is exactly as good as the target: the upper end of the working band"
    if distance > 0:
        return (
            f"the teacher is {units.share(distance)} better than the target, outside the working band: "
            "it may help little"
        )
    if distance < -WORKING_BAND:
        return (
            f"the teacher is {units.share(-distance)} weaker than the target, outside the working band of "
            f"{WORKING_BAND:.0%}: it may slow training down"
        )
    return None


def summary_line(
    level: Level,
    over_seeds: Mapping[str, Spread | None],
    interval: tuple[float, float | None] | None,
    seeds: Sequence[int],
    missing: Sequence[str],
    about: tuple[Literal["epoch", "step"], Arm],
) -> str:
    """Return the result in one line, including runs that missed the level and the cost of the teacher.

    A ratio whose bounds between validations contain 1 is no speed-up.

    Args:
        level: the threshold.
        over_seeds: speed-up by quantity; ``charged`` is that in seconds including teacher training.
        interval: bounds of the speed-up between validations.
        seeds: seeds in both arms.
        missing: the seeds of which an arm did not reach the level, one text each.
        about: unit of lengths, and name of the reference arm.
    """
    unit, reference = about
    if level.value is None:
        return f"no result: {level.reason}"
    if not seeds:
        return "no speed-up: no seed is in both arms"
    left_out = f"; {'; '.join(missing)}" if missing else ""
    length, seconds = over_seeds[f"{unit}s"], over_seeds["seconds"]
    if length is None or interval is None or interval == (0.0, None):  # no run of either arm crossed
        return f"no speed-up{left_out}"
    count = f"median of {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    result = shown(interval)
    if result == "no difference":
        grid = f"{units.between(interval)} in epochs between validations"
        return f"no difference shown: {units.median(length)} in {unit}s, {grid}; {count}{left_out}"
    ranges = [] if length.seeds < 2 else [f"{units.ratio(length.min)} to {units.ratio(length.max)} over seeds"]
    ranges.append(f"{units.between(interval)} between validations")
    parts = [f"{units.median(length)} in {unit}s ({'; '.join(ranges)})"]
    if seconds:
        parts.append(f"{units.median(seconds)} in training time")
    if charged := over_seeds["charged"]:
        parts.append(f"{units.median(charged)} including teacher training")
    if result == "slower":
        parts.append(f"slower than the {reference}")
    return f"{', '.join(parts)}; {count}{left_out}"


def missing_text(seed: int, arms: tuple[Arm, Arm], first: Crossings, not_reached: Crossings, unit: str) -> str | None:
    """Return which of two arms did not reach the level with this seed; None if both did."""
    late = [arm for arm in arms if seed in not_reached[arm]]
    if not late:
        return None
    lasts = {arm: not_reached[arm][seed] for arm in late}
    texts = [
        f"{arm} did not reach it by {units.place(last, unit)}" if last else f"{arm} has no validation yet"
        for arm, last in lasts.items()
    ]
    other = next((arm for arm in arms if arm not in late), None)
    there = first[other][seed] if other else None
    return f"seed {seed}: {', '.join(texts)}" + (f" ({other} at {units.place(there, unit)})" if there else "")


def not_reached_text(last: Position | None, unit: str) -> str:
    """Return ``not reached by epoch 14``, which stands in tables in place of a crossing."""
    return f"not reached by {units.place(last, unit)}" if last else "not validated yet"


def threshold_warnings(report: ThresholdReport, reference: Arm, metric: Metric) -> list[str]:
    """Return caveats of a threshold: the spacing of validations, runs that missed it, the teacher's strength."""
    title = units.threshold(report.name, report.value, metric)
    lines = []
    if report.value is None:
        lines.append(f"{title}: {report.reason}")
    near_arms: dict[str, list[Arm]] = {}
    for arm, found in report.arms.items():
        failed = [seed for seed in found.seeds if seed in report.not_reached[arm] and report.first[reference][seed]]
        if failed:
            seeds = ", ".join(str(seed) for seed in failed)
            missed = f"{arm} did not reach the target with seed {seeds}, but {reference} did"
            lines.append(f"{title}: {missed}; in medians they count as later than every crossing")
        near = [seed for seed in found.speedup_interval if _within_one_validation(seed, report, reference, arm)]
        if near:
            near_arms.setdefault(_near_text(near, found), []).append(arm)
    for text, arms in near_arms.items():
        who = "both arms" if len(report.arms) == 1 else f"{', '.join(arms)} and {reference}"
        lines.append(f"{title}: {who} {text}")
    if report.note and report.teacher_gap:
        lines.append(f"{title}: {report.note}")
    return lines


def _near_text(near: Sequence[int], found: Comparison) -> str:
    low = min(found.speedup_interval[seed][0] for seed in near)
    highs = [found.speedup_interval[seed][1] for seed in near]
    bounds = [high for high in highs if high is not None]
    bounded = len(bounds) == len(highs)
    between = f"{units.ratio(low)} to {units.ratio(max(bounds))}" if bounded else f"anything above {units.ratio(low)}"
    seeds = ", ".join(str(seed) for seed in near)
    return (
        f"crossed within one validation of each other with seed {seeds}; "
        f"between validations the true speed-up may be {between}"
    )


def _within_one_validation(seed: int, report: ThresholdReport, reference: Arm, arm: Arm) -> bool:
    theirs, ours = pair(seed, report.first, reference, arm)
    widest = max(report.grid[one][seed].steps for one in (reference, arm))
    return abs(theirs.step - ours.step) <= widest
