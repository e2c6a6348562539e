"""Summarise a run after training: where it crossed its thresholds, next to the reference run of the same seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from w2skd.recipe.arms import TEACHER, Arm
from w2skd.recipe.evaluation import Metric
from w2skd.recipe.load import RecipeTypes
from w2skd.recipe.threshold import Threshold
from w2skd.records.rundir import RunRecord, readable_runs
from w2skd.report import units
from w2skd.report.crossing import (
    Position,
    Score,
    SwitchOff,
    best,
    distillation_off,
    final,
    first_crossing,
    grid_bounds,
    last_validation,
    position,
    spacing,
    teacher_level,
)
from w2skd.report.experiment import Experiment, Level, gap, label, median_range, resolve_all, teacher_levels
from w2skd.report.honesty import breaking_differences
from w2skd.report.scoring import scored_alike
from w2skd.report.verdict import note


@dataclass(frozen=True)
class SummaryLine:
    """One threshold.

    Attributes:
        name: as written in the recipe.
        value: the level; None if it could not be resolved, as `reason` explains.
        reached: the run's first crossing; None if not reached.
        theirs: the crossing of the reference run with the same seed; None if not reached or without such a run.
        speedup: reference / run in the experiment's unit; None unless both crossed.
        interval: bounds of the speed-up in epochs, since a crossing lies anywhere between two validations.
    """

    name: str
    value: float | None
    reason: str | None
    reached: Position | None
    theirs: Position | None
    speedup: float | None
    interval: tuple[float, float | None] | None = None


@dataclass(frozen=True)
class CrossingSummary:
    """A run and the thresholds of its recipe.

    Attributes:
        run: its path in the experiment, such as ``w2s/seed0``.
        distills: whether the run is distilled from a teacher.
        last: position of its last validation.
        reference: name of the reference arm.
        reference_run: path of the reference run with the same seed and length; None if there is none, or if this is a
            reference run.
        reference_last: the last validation of that run.
        lines: one per threshold; empty for a teacher.
        left_out: other runs of the experiment that are not comparable, and why.
    """

    run: str
    arm: Arm
    seed: int
    distills: bool
    metric: Metric
    unit: Literal["epoch", "step"]
    best: Score | None
    final: Score | None
    last: Position | None
    teacher_level: float | None
    distillation_off: SwitchOff | None
    reference: Arm
    reference_run: str | None
    reference_last: Position | None
    lines: tuple[SummaryLine, ...]
    left_out: tuple[str, ...]


def crossing_summary(run: RunRecord, experiment: Path | None, types: RecipeTypes) -> CrossingSummary:
    """Summarise where a run crossed the thresholds of its recipe.

    Args:
        run: read after it ended, successfully or not.
        experiment: folder of the other runs; those that are unreadable or scored differently are excluded. None uses
            this run only.
        types: value of ``task`` -> type of the recipe.
    """
    siblings, others = scored_alike(run, [] if experiment is None else readable_runs(experiment, types))
    family = Experiment((run, *(other for other in siblings if label(other) != label(run))))
    theirs = family.reference_of(run)
    broken = list(breaking_differences((theirs, run))) if theirs else []
    levels = [] if run.arm == TEACHER else resolve_all(run.recipe.report.thresholds, family)
    last, reference_last = last_validation(run.rows), last_validation(theirs.rows) if theirs else None
    return CrossingSummary(
        run=label(run),
        arm=run.arm,
        seed=run.seed,
        distills=run.helped("distill"),
        metric=family.metric,
        unit=family.unit,
        best=best(run.rows, family.metric),
        final=final(run.rows, family.metric),
        last=position(last) if last else None,
        teacher_level=teacher_level(run.rows, family.metric),
        distillation_off=distillation_off(run.rows),
        reference=family.reference,
        reference_run=label(theirs) if theirs and not broken else None,
        reference_last=position(reference_last) if reference_last else None,
        lines=tuple(_line(level, run, None if broken else theirs, family) for level in levels),
        left_out=(
            *(f"{label(other)}, which is scored differently: {what}" for other, what in others),
            *(f"{label(theirs)}: {line}" for line in broken if theirs),
        ),
    )


def teacher_gaps(run: RunRecord, experiment: Path, thresholds: Sequence[Threshold], types: RecipeTypes) -> list[str]:
    """Return one line per target whose level is known: the gap between teacher and target, and its expected effect."""
    siblings, _ = scored_alike(run, readable_runs(experiment, types))
    family = Experiment((run, *(other for other in siblings if label(other) != label(run))))
    levels = teacher_levels(family)
    lines = []
    for level in resolve_all(thresholds, family):
        if level.value is None or not levels or level.threshold.of == "teacher":
            continue
        distance = gap(median_range(list(levels.values()))[0], level.value, family.metric)
        if distance is None:
            continue
        target = units.threshold(level.threshold.name, level.value, family.metric)
        side = "weaker" if distance < 0 else "better"
        lines.append(note(distance) or f"the teacher is {units.share(abs(distance))} {side} than the target")
        lines[-1] = f"target {target}: {lines[-1]}"
    return lines


def _line(level: Level, run: RunRecord, reference: RunRecord | None, family: Experiment) -> SummaryLine:
    reached, theirs = (_crossing(level, record, family) for record in (run, reference))
    speedup, interval = None, None
    if reached and theirs and reference:
        their_length, our_length = (getattr(place, family.unit) for place in (theirs, reached))
        speedup = round(their_length / our_length, 6) if our_length > 0 else None
        grids = [spacing(record.rows, place.step) for record, place in ((reference, theirs), (run, reached))]
        interval = grid_bounds(theirs, reached, *grids)
    return SummaryLine(level.threshold.name, level.value, level.reason, reached, theirs, speedup, interval)


def _crossing(level: Level, run: RunRecord | None, family: Experiment) -> Position | None:
    if run is None or level.value is None:
        return None
    return first_crossing(run.rows, family.metric, level.value)
