"""first@tau: where a run's metric first reached a level, read from its rows.

A crossing is a validation, so it is late by up to one spacing of the validations: `spacing` tells by how much.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from w2skd.recipe.arms import HELPED
from w2skd.recipe.evaluation import Metric
from w2skd.records.rows import EvalRow, EventRow, Row, StepRow, training_seconds
from w2skd.records.rundir import RunRecord


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a run, and what it took to get there.

    Attributes:
        step: optimizer steps.
        epoch: passes over the training set.
        examples: training examples seen.
        seconds: training time, without validations and checkpoints; None when the row has no clock.
        flops: floating-point operations of training; None when the models' FLOPs are not on record.
    """

    step: int
    epoch: float
    examples: int
    seconds: float | None
    flops: float | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's value and the validation that gave it."""

    value: float
    at: Position


@dataclass(frozen=True, slots=True)
class Spacing:
    """From one validation to the next."""

    steps: int
    epochs: float


@dataclass(frozen=True, slots=True)
class SwitchOff:
    """The end of distillation.

    Attributes:
        reason: ``surpassed`` (the student beat the teacher) or ``ended`` (the schedule was over).
        student: the student's level then, where the switch looked at it.
        teacher: the teacher's level.
    """

    step: int
    epoch: float | None
    reason: str
    student: float | None
    teacher: float | None


def validations(rows: Iterable[Row]) -> list[EvalRow]:
    """The validations of a run, in order."""
    return [row for row in rows if isinstance(row, EvalRow)]


def events(rows: Iterable[Row], name: str) -> list[EventRow]:
    """The events of one name, in order."""
    return [row for row in rows if isinstance(row, EventRow) and row.name == name]


def position(row: StepRow | EvalRow) -> Position:
    """Where a row stands, its FLOPs not counted yet."""
    seconds = round(training_seconds(row.clock), 6) if row.clock else None
    return Position(row.step, row.epoch, row.examples, seconds)


def first_crossing(rows: Iterable[Row], metric: Metric, level: float) -> Position | None:
    """The first validation at which `metric` is at least as good as `level`, or None."""
    assert not math.isnan(level), "no run can be timed against NaN"
    for row in validations(rows):
        if metric.reaches(row.metrics.get(metric.name, math.nan), level):
            return position(row)
    return None


def best(rows: Iterable[Row], metric: Metric) -> Score | None:
    """The best validation, the earlier one of equals; None when there is no finite one."""
    scores = [Score(row.metrics.get(metric.name, math.nan), position(row)) for row in validations(rows)]
    finite = [score for score in scores if math.isfinite(score.value)]
    sign = 1 if metric.higher_is_better else -1
    return max(finite, key=lambda score: sign * score.value, default=None)


def final(rows: Iterable[Row], metric: Metric) -> Score | None:
    """The last validation; None when there is none or its metric is not finite."""
    last = last_validation(rows)
    return (
        None
        if last is None or not math.isfinite(last.metrics.get(metric.name, math.nan))
        else Score(last.metrics[metric.name], position(last))
    )


def last_validation(rows: Iterable[Row]) -> EvalRow | None:
    """The last validation of a run, if it had any."""
    return next(reversed(validations(rows)), None)


def last_row(rows: Iterable[Row]) -> StepRow | EvalRow | None:
    """The last row with a clock: how far the run has come and what it took."""
    return next((row for row in reversed(list(rows)) if not isinstance(row, EventRow)), None)


def last_position(rows: Iterable[Row]) -> Position | None:
    """How far the run has come; None when it has logged nothing yet."""
    row = last_row(rows)
    return None if row is None else position(row)


def spacing(rows: Iterable[Row], step: int) -> Spacing:
    """From the validation before to the validation at `step`; the start of the run counts as one."""
    before, here = None, None
    for row in validations(rows):
        if row.step == step:
            here = row
            break
        before = row
    assert here is not None, f"no validation at step {step}"
    return Spacing(here.step - (before.step if before else 0), round(here.epoch - (before.epoch if before else 0.0), 6))


def distillation_off(rows: Sequence[Row]) -> SwitchOff | None:
    """When and why distillation went off for good; None when it did not (or there was none)."""
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
    """The teacher's own metric, as measured at the start of a distilled run."""
    event = next(iter(events(rows, "teacher")), None)
    value = event.details.get("metrics", {}).get(metric.name) if event else None
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def forward_flops(environment: Mapping[str, Any], role: str) -> float | None:
    """Forward FLOPs of one example, from ``environment.json``; None in records that lack them, or where they vary."""
    if environment.get("image_sizes_vary"):
        return None
    value = (environment.get("forward_flops") or {}).get(role)
    return float(value) if value else None


def with_flops(place: Position, run: RunRecord) -> Position:
    """Count the FLOPs up to a position: ``3 * F_student * examples + F_teacher * examples seen while distilling``.

    A backward pass counts as two forward passes. Validations are the experimenter's and do not count.
    """
    student, teacher = forward_flops(run.environment, "student"), forward_flops(run.environment, "teacher")
    distilled = _distilled_examples(place, run)
    if student is None or (distilled > 0 and teacher is None):
        return place
    return replace(place, flops=3 * student * place.examples + (teacher or 0.0) * distilled)


def _distilled_examples(place: Position, run: RunRecord) -> float:
    """Examples up to a position that the teacher saw too."""
    if run.arm != HELPED or place.step == 0:
        return 0.0
    off = distillation_off(run.rows)
    # Every step takes the same number of examples, so a step between two rows needs no row of its own.
    return place.examples if off is None else min(off.step, place.step) * place.examples / place.step
