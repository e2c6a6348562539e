"""The contents of a report; ``report.json`` has these keys in this order.

Later versions may add keys but keep the existing ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from w2skd.recipe.arms import Arm
from w2skd.recipe.evaluation import Metric
from w2skd.report.crossing import Position, Score, Spacing, SwitchOff
from w2skd.report.ends import Ends
from w2skd.report.equal_quality_contract import EqualQuality

SCHEMA = 2

QUANTITIES: dict[str, str] = {
    "epochs": "epoch",
    "steps": "step",
    "examples": "examples",
    "seconds": "seconds",
    "flops": "flops",
}
"""Unit of a speed-up -> the attribute of `Position` that it compares."""

Verdict = Literal["faster", "no difference", "slower", "unknown"]
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
class Comparison:
    """Comparison of an arm with the reference at one threshold.

    Attributes:
        speedup: quantity -> seed -> reference / arm, for the seeds in `pairs`.
        interval: reserved for confidence intervals over seeds by quantity; always None.
        verdict: the result, given the bounds between validations; ``unknown`` without common seeds, or if the
            comparison is refused.
        summary: the result in one line.
        speedup_over_seeds: quantity -> median and range of `speedup`.
        speedup_with_teacher: `speedup`, including the full training of each run's teacher.
        speedup_with_teacher_over_seeds: their median and range.
        speedup_interval: seed -> bounds of the speed-up in epochs, since a crossing lies anywhere between two
            validations: [low, high]; high is None if unbounded.
        grid_interval: median over the seeds of these bounds, including seeds with which an arm never crossed.
        seeds: seeds present in both arms.
        pairs: those of `seeds` for which both arms reached the level.
    """

    speedup: Mapping[str, BySeed]
    interval: Mapping[str, Any] | None
    verdict: Verdict
    summary: str
    speedup_over_seeds: Mapping[str, Spread | None]
    speedup_with_teacher: Mapping[str, BySeed]
    speedup_with_teacher_over_seeds: Mapping[str, Spread | None]
    speedup_interval: Mapping[int, tuple[float, float | None]]
    grid_interval: tuple[float, float | None] | None
    seeds: tuple[int, ...]
    pairs: tuple[int, ...]


@dataclass(frozen=True)
class ThresholdReport:
    """One threshold.

    Attributes:
        name: as written in the recipe.
        value: the level; None if it could not be resolved, as `reason` explains.
        first: arm -> seed -> the first validation that reaches the level; None if none does.
        arms: arm -> its comparison with the reference, for all arms but the reference.
        grid: arm -> seed -> the spacing of the validations at the crossing.
        not_reached: arm -> seed -> the last validation of a run that did not reach the level; None without one.
        teacher_gap: signed gap between teacher and level, relative to the level; above 0 if the teacher is better.
        note: expected effect of a teacher outside the working band.
    """

    name: str
    value: float | None
    first: Crossings
    arms: Mapping[str, Comparison]
    grid: Mapping[str, Mapping[int, Spacing]]
    not_reached: Crossings
    teacher_gap: float | None
    note: str | None
    reason: str | None


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
        distills: whether the run is distilled from a teacher.
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
    distills: bool
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
    """The teacher, or several of them.

    Attributes:
        level: the teacher's metric; the median over the runs that measured it.
        in_experiment: whether this experiment trained the teacher, so that its cost is known.
        seconds: training time; the median over several teachers.
        flops: floating-point operations of the training; the median over several teachers.
        count: number of teachers that this experiment trained.
    """

    level: float | None
    in_experiment: bool
    seconds: float | None
    flops: float | None
    count: int = 1


@dataclass(frozen=True)
class ArmReport:
    """An arm of the recipe.

    Attributes:
        help: how the teacher helps, as in the recipe.
        note: the recipe's sentence about the arm.
        runs: number of the arm's runs of the full length.
    """

    help: tuple[str, ...]
    note: str | None
    runs: int


@dataclass(frozen=True)
class Report:
    """The results of an experiment.

    Attributes:
        reference: the arm with which the others are compared.
        arms: the reference, followed by all other arms with runs.
        scoring: settings shared by all scores that depend on the recipe or on installed files, such as
            the network of an FID; empty for tasks without such settings.
        refused: why no speed-up is computed, one line for every setting that breaks the comparison; usually empty.
        equal_quality: arm -> comparison of its complete schedules with the reference's; empty unless there are several
            lengths.
        ends: arm -> its final scores, for the reference and the arms in `equal_quality`.
    """

    schema: int
    name: str
    task: str
    metric: Metric
    unit: Literal["epoch", "step"]
    reference: Arm
    arms: Mapping[str, ArmReport]
    thresholds: tuple[ThresholdReport, ...]
    teacher: TeacherReport | None
    runs: tuple[RunReport, ...]
    warnings: tuple[str, ...]
    scoring: Mapping[str, Any]
    refused: tuple[str, ...] = ()
    equal_quality: Mapping[Arm, EqualQuality] = field(default_factory=dict)
    ends: Mapping[Arm, Ends] = field(default_factory=dict)


def pair(seed: int, first: Crossings, reference: Arm, arm: Arm) -> tuple[Position, Position]:
    """Return the crossings of the reference and of an arm for a seed in `Comparison.pairs`."""
    theirs, ours = first[reference][seed], first[arm][seed]
    assert theirs, f"{reference} did not cross with seed {seed}"
    assert ours, f"{arm} did not cross with seed {seed}"
    return theirs, ours
