"""What a report says, as data: ``report.json`` has these keys in this order.

Keys may be added in later versions; those that are here stay.
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
"""What a speed-up is told in -> the attribute of `Position` that it compares."""

BySeed = Mapping[int, float]
Crossings = Mapping[str, Mapping[int, Position | None]]


@dataclass(frozen=True)
class Spread:
    """A ratio over the seeds for which it exists."""

    median: float
    min: float
    max: float
    seeds: int


@dataclass(frozen=True)
class ThresholdReport:
    """One threshold.

    Attributes:
        name: as the recipe writes it.
        value: the level; None when it could not be resolved, for the `reason` given.
        first: arm -> seed -> the first validation at the level; None: not reached.
        speedup: quantity -> seed -> baseline / w2s, for the seeds that both arms reached it with.
        speedup_over_seeds: quantity -> median and range of `speedup`.
        speedup_with_teacher: the same with the teacher's whole training on the side of every w2s run.
        speedup_interval: seed -> what the speed-up in epochs may be, given that a crossing lies anywhere between two
            validations: [low, high], high None when it has no bound.
        grid: arm -> seed -> the spacing of the validations at the crossing.
        not_reached: arm -> seed -> the last validation of a run that did not reach the level; None: had none yet.
        seeds: seeds that both arms have.
        pairs: those of `seeds` with which both arms reached the level.
        teacher_gap: how much better (above 0) or weaker (below 0) than the level the teacher is, relative to it.
        note: what the teacher's strength lets one expect, outside the working band.
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
    """The metric at every validation, as columns; None where it was not finite."""

    step: tuple[int, ...]
    epoch: tuple[float, ...]
    seconds: tuple[float | None, ...]
    value: tuple[float | None, ...]


@dataclass(frozen=True)
class RunReport:
    """One run.

    Attributes:
        run: its place in the experiment, such as ``w2s/seed0``.
        state: running, finished, stopped or failed, as the run itself put it down; `reason` says why.
        reached: how far it came.
        clock: cumulative seconds of each segment.
        teacher_share: the teacher's forward passes as a share of the training time.
        teacher_level: the metric of the teacher it was distilled from.
        picture: what the model gave at its last validation, a file below the experiment; None where none is kept.
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
        in_experiment: whether this experiment trained it, so that its cost is known.
        seconds: training time it took.
        flops: what its training took.
    """

    level: float | None
    in_experiment: bool
    seconds: float | None
    flops: float | None


@dataclass(frozen=True)
class Report:
    """All that an experiment shows.

    Attributes:
        scoring: how all scores came about, where that is a choice of the recipe or of what lay on the machine, such as
            the network of an FID; empty elsewhere.
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


def pair(seed: int, first: Crossings) -> tuple[Position, Position]:
    """The crossings of baseline and w2s with a seed that both reached the level with."""
    baseline, w2s = first[REFERENCE][seed], first[HELPED][seed]
    assert baseline, f"baseline did not cross with seed {seed}"
    assert w2s, f"w2s did not cross with seed {seed}"
    return baseline, w2s
