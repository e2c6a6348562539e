"""The contents of a report; ``report.json`` has these keys in this order.

Later versions may add keys but keep the existing ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from w2skd.recipe.arms import HELPED, REFERENCE, Arm
from w2skd.recipe.evaluation import Metric
from w2skd.report.crossing import Position, Score, Spacing, SwitchOff

SCHEMA = 1

QUANTITIES: dict[str, str] = {
    "epochs": "epoch",
    "steps": "step",
    "examples": "examples",
    "seconds": "seconds",
    "flops": "flops",
}
"""Unit of a speed-up -> the attribute of `Position` that it compares."""

BySeed = Mapping[int, float]
Crossings = Mapping[str, Mapping[int, Position | None]]


@dataclass(frozen=True)
class Spread:
    """Distribution of a ratio over seeds.

    Attributes:
        median: over all seeds, where runs that never crossed count as later than everything; None if these leave it
            open between `low` and `high`.
        min: smallest ratio of a seed for which both arms crossed; None without such a seed. `max` likewise.
        seeds: number of seeds for which both arms crossed.
        low: lower bound of the median.
        high: upper bound of the median; None if unbounded.
    """

    median: float | None
    min: float | None
    max: float | None
    seeds: int
    low: float
    high: float | None


@dataclass(frozen=True)
class ThresholdReport:
    """One threshold.

    Attributes:
        name: as written in the recipe.
        value: the level; None if it could not be resolved, as `reason` explains.
        first: arm -> seed -> the first validation that reaches the level; None if none does.
        speedup: quantity -> seed -> baseline / w2s, for the seeds in `pairs`.
        speedup_over_seeds: quantity -> median and range of `speedup`.
        speedup_with_teacher: the same with the teacher's whole training added to every w2s run.
        speedup_interval: seed -> bounds of the speed-up in epochs, since a crossing lies anywhere between two
            validations: [low, high]; high is None if unbounded.
        grid_interval: median over the seeds of these bounds, also of seeds of which an arm never crossed.
        shown: what the bounds show beyond the spacing of the validations; None without seeds, or if refused.
        grid: arm -> seed -> the spacing of the validations at the crossing.
        not_reached: arm -> seed -> the last validation of a run that did not reach the level; None without one.
        seeds: seeds present in both arms.
        pairs: those of `seeds` for which both arms reached the level.
        teacher_gap: signed gap between teacher and level, relative to the level; above 0 if the teacher is better.
        note: expected effect of a teacher outside the working band.
        verdict: the result in one line.
    """

    name: str
    value: float | None
    first: Crossings
    speedup: Mapping[str, BySeed]
    speedup_over_seeds: Mapping[str, Spread | None]
    speedup_with_teacher: Mapping[str, BySeed]
    speedup_with_teacher_over_seeds: Mapping[str, Spread | None]
    speedup_interval: Mapping[int, tuple[float, float | None]]
    grid_interval: tuple[float, float | None] | None
    shown: Literal["faster", "no difference", "slower"] | None
    grid: Mapping[str, Mapping[int, Spacing]]
    not_reached: Crossings
    seeds: tuple[int, ...]
    pairs: tuple[int, ...]
    teacher_gap: float | None
    note: str | None
    reason: str | None
    verdict: str


@dataclass(frozen=True)
class Curve:
    """The metric at every validation, as columns; None for non-finite values."""

    step: tuple[int, ...]
    epoch: tuple[float, ...]
    seconds: tuple[float | None, ...]
    value: tuple[float | None, ...]


@dataclass(frozen=True)
class RunReport:
    """One run.

    Attributes:
        run: its path in the experiment, such as ``w2s/seed0``.
        state: running, finished, stopped or failed, from ``status.json``; `reason` explains it.
        reached: the last logged position.
        clock: cumulative seconds of each segment.
        teacher_share: the teacher's forward passes as a share of the training time.
        teacher_level: the metric of its teacher.
        picture: outputs of the model at its last validation, as a path in the experiment; None if there is none.
    """

    run: str
    arm: Arm
    seed: int
    state: str
    reason: str | None
    best: Score | None
    final: Score | None
    reached: Position | None
    total_steps: int | None
    distillation_off: SwitchOff | None
    clock: Mapping[str, float]
    teacher_share: float | None
    teacher_level: float | None
    resumed: int
    non_finite_steps: int
    environment: Mapping[str, Any]
    curve: Curve
    picture: str | None


@dataclass(frozen=True)
class TeacherReport:
    """The teacher.

    Attributes:
        level: its metric, the median over the w2s runs that measured it.
        in_experiment: whether this experiment trained it, which makes its cost known.
        seconds: its training time.
        flops: floating-point operations of its training.
    """

    level: float | None
    in_experiment: bool
    seconds: float | None
    flops: float | None


@dataclass(frozen=True)
class Report:
    """The results of an experiment.

    Attributes:
        scoring: settings shared by all scores that depend on the recipe or on installed files, such as
            the network of an FID; empty for tasks without such settings.
        refused: why no speed-up is computed, one line for every setting that breaks the comparison; usually empty.
    """

    schema: int
    name: str
    task: str
    metric: Metric
    unit: Literal["epoch", "step"]
    thresholds: tuple[ThresholdReport, ...]
    teacher: TeacherReport | None
    runs: tuple[RunReport, ...]
    warnings: tuple[str, ...]
    scoring: Mapping[str, Any]
    refused: tuple[str, ...] = ()


def pair(seed: int, first: Crossings) -> tuple[Position, Position]:
    """Return the crossings of baseline and w2s for a seed in `ThresholdReport.pairs`."""
    baseline, w2s = first[REFERENCE][seed], first[HELPED][seed]
    assert baseline, f"baseline did not cross with seed {seed}"
    assert w2s, f"w2s did not cross with seed {seed}"
    return baseline, w2s
