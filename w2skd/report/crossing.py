"""Find where a run's metric first reaches a level (first@tau), from its rows.

Crossings are observed at validations, so they may be late by up to one validation interval, which `spacing` returns.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from w2skd.recipe.evaluation import Metric
from w2skd.records.rows import EvalRow, EventRow, Row, StepRow, training_seconds
from w2skd.records.rundir import RunRecord


@dataclass(frozen=True, slots=True)
class Position:
    """A position in a run and the cost of reaching it.

    Attributes:
        step: optimizer steps.
        epoch: passes over the training set.
        examples: training examples seen.
        seconds: training time without validations and checkpoints; None if the row has no clock.
        flops: floating-point operations of training; None if the models' FLOPs are not recorded.
    """

    step: int
    epoch: float
    examples: int
    seconds: float | None
    flops: float | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's value and the position of its validation."""

    value: float
    at: Position


@dataclass(frozen=True, slots=True)
class Spacing:
    """Distance between two consecutive validations."""

    steps: int
    epochs: float


@dataclass(frozen=True, slots=True)
class SwitchOff:
    """The end of distillation.

    Attributes:
        reason: ``surpassed`` (the student beat the teacher) or ``ended`` (the schedule ended).
        student: the student's level at that validation; None if the switch did not use one.
        teacher: the teacher's level.
    """

    step: int
    epoch: float | None
    reason: str
    student: float | None
    teacher: float | None


def validations(rows: Iterable[Row]) -> list[EvalRow]:
    """Return the validations of a run, in order."""
    return [row for row in rows if isinstance(row, EvalRow)]


def events(rows: Iterable[Row], name: str) -> list[EventRow]:
    """Return the events with a name, in order."""
    return [row for row in rows if isinstance(row, EventRow) and row.name == name]


def position(row: StepRow | EvalRow) -> Position:
    """Return the position of a row, without FLOPs."""
    seconds = round(training_seconds(row.clock), 6) if row.clock else None
    return Position(row.step, row.epoch, row.examples, seconds)


def first_crossing(rows: Iterable[Row], metric: Metric, level: float) -> Position | None:
    """Return the first validation whose `metric` is at least as good as `level`, or None."""
    assert not math.isnan(level), "no run can be timed against NaN"
    for row in validations(rows):
        if metric.reaches(row.metrics.get(metric.name, math.nan), level):
            return position(row)
    return None


def best(rows: Iterable[Row], metric: Metric) -> Score | None:
    """Return the best finite validation, the earliest of equals; None if there is none."""
    scores = [Score(row.metrics.get(metric.name, math.nan), position(row)) for row in validations(rows)]
    finite = [score for score in scores if math.isfinite(score.value)]
    sign = 1 if metric.higher_is_better else -1
    return max(finite, key=lambda score: sign * score.value, default=None)


def final(rows: Iterable[Row], metric: Metric) -> Score | None:
    """Return the score of the last validation; None if there is none or its metric is not finite."""
    last = last_validation(rows)
    return (
        None
        if last is None or not math.isfinite(last.metrics.get(metric.name, math.nan))
        else Score(last.metrics[metric.name], position(last))
    )


def last_validation(rows: Iterable[Row]) -> EvalRow | None:
    """Return the last validation of a run, or None."""
    return next(reversed(validations(rows)), None)


def last_row(rows: Iterable[Row]) -> StepRow | EvalRow | None:
    """Return the last step or validation row, or None."""
    return next((row for row in reversed(list(rows)) if not isinstance(row, EventRow)), None)


def last_position(rows: Iterable[Row]) -> Position | None:
    """Return the last logged position, or None."""
    row = last_row(rows)
    return None if row is None else position(row)


def spacing(rows: Iterable[Row], step: int) -> Spacing:
    """Return the distance from the previous validation, or the start of the run, to the validation at `step`."""
    before, here = None, None
    for row in validations(rows):
        if row.step == step:
            here = row
            break
        before = row
    assert here is not None, f"no validation at step {step}"
    return Spacing(here.step - (before.step if before else 0), round(here.epoch - (before.epoch if before else 0.0), 6))


def grid_bounds(reference: Position, helped: Position, before: Spacing, after: Spacing) -> tuple[float, float | None]:
    """Return bounds of the speed-up in epochs, (b - gb) / w to b / (w - gw): a crossing follows the last validation.

    Args:
        reference: crossing of the reference, b.
        helped: crossing of the other arm, w.
        before: spacing of the reference's validations there, gb.
        after: spacing of the other arm's, gw.

    Returns:
        The upper bound is None if there is none.
    """
    earliest_reference, earliest_helped = reference.epoch - before.epochs, helped.epoch - after.epochs
    low = earliest_reference / helped.epoch if helped.epoch > 0 else 0.0
    return round(low, 6), round(reference.epoch / earliest_helped, 6) if earliest_helped > 1e-6 else None


def shown(interval: tuple[float, float | None]) -> Literal["faster", "no difference", "slower"]:
    """Return what the bounds of a speed-up show: a ratio whose bounds contain 1 is no speed-up."""
    low, high = interval
    return "faster" if low > 1 else "slower" if high is not None and high < 1 else "no difference"


def distillation_off(rows: Sequence[Row]) -> SwitchOff | None:
    """Return when and why distillation ended; None if it did not end or never began."""
    event = next(iter(events(rows, "distillation_off")), None)
    if event is None:
        return None
    details, row = event.details, last_row(rows)
    epoch = details.get("epoch")
    if epoch is None and row is not None and row.step:
        epoch = round(event.step * row.epoch / row.step, 6)
    return SwitchOff(
        event.step, epoch, str(details.get("reason", "unknown")), details.get("student"), details.get("teacher")
    )


def teacher_level(rows: Iterable[Row], metric: Metric) -> float | None:
    """Return the teacher's metric, as measured at the start of a distilled run; None if not finite or not recorded."""
    event = next(iter(events(rows, "teacher")), None)
    value = event.details.get("metrics", {}).get(metric.name) if event else None
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def forward_flops(environment: Mapping[str, Any], role: str) -> float | None:
    """Return forward FLOPs per example from ``environment.json``; None if not recorded or if image sizes vary."""
    if environment.get("image_sizes_vary"):
        return None
    value = (environment.get("forward_flops") or {}).get(role)
    return float(value) if value else None


def with_flops(place: Position, run: RunRecord) -> Position:
    """Add the FLOPs up to a position: ``3 * F_student * examples + F_teacher * examples seen while distilling``.

    A backward pass counts as two forward passes. Validations do not count.
    """
    student, teacher = forward_flops(run.environment, "student"), forward_flops(run.environment, "teacher")
    distilled = _distilled_examples(place, run)
    if student is None or (distilled > 0 and teacher is None):
        return place
    return replace(place, flops=3 * student * place.examples + (teacher or 0.0) * distilled)


def _distilled_examples(place: Position, run: RunRecord) -> float:
    """Return how many examples up to a position passed through the teacher."""
    if not run.helped("distill") or place.step == 0 or run.recipe.distill.weight == 0:
        return 0.0
    off = distillation_off(run.rows)
    # Every step takes the same number of examples, so steps between two rows can be interpolated.
    return place.examples if off is None else min(off.step, place.step) * place.examples / place.step
