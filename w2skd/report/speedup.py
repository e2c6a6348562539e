"""The report: when each run crossed each threshold, and how much sooner the accelerated ones did.

`build_report` reads an experiment's run directories and nothing else, so the same directories give the same report.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from w2skd.clock import SEGMENTS, TRAINING_SEGMENTS
from w2skd.recipe.threshold import Threshold
from w2skd.report import units
from w2skd.report.crossing import (
    Position,
    Score,
    Spacing,
    SwitchOff,
    best,
    distillation_off,
    events,
    final,
    first_crossing,
    forward_flops,
    last_position,
    last_row,
    last_validation,
    position,
    spacing,
    teacher_level,
    validations,
    with_flops,
)
from w2skd.report.experiment import (
    ARMS,
    Experiment,
    Level,
    gap,
    label,
    median_range,
    read_experiment,
    resolve_all,
    teacher_is_ours,
    teacher_levels,
)
from w2skd.report.honesty import warnings
from w2skd.rundir import Arm, RunRecord

SCHEMA = 1

QUANTITIES: dict[str, str] = {
    "epochs": "epoch",
    "steps": "step",
    "examples": "examples",
    "seconds": "seconds",
    "flops": "flops",
}
"""What a speed-up is told in -> the attribute of `Position` that it compares."""

WORKING_BAND = 0.15
"""A teacher up to this much weaker than the target helped in the published runs: an observed band, not a law."""

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
    """All that an experiment shows. ``report.json`` has these keys in this order."""

    schema: int
    name: str
    task: str
    metric: str
    higher_is_better: bool
    unit: Literal["epoch", "step"]
    thresholds: tuple[ThresholdReport, ...]
    teacher: TeacherReport | None
    runs: tuple[RunReport, ...]
    warnings: tuple[str, ...]


def build_report(experiment: Path, thresholds: Sequence[Threshold] | None = None) -> Report:
    """Read an experiment and report on it.

    Args:
        experiment: the folder that holds ``baseline/`` and ``w2s/``.
        thresholds: instead of the recipe's own.

    Raises:
        RunDirError: `experiment` is missing, a single run, or holds no run to report on; or a run is damaged.
    """
    found = read_experiment(experiment)
    teacher = _teacher(found)
    levels = resolve_all(found.recipe.report.thresholds if thresholds is None else thresholds, found)
    reports = tuple(_threshold(level, found, teacher) for level in levels)
    lines = [*warnings(found), *(line for report in reports for line in _threshold_warnings(report, found))]
    return Report(
        schema=SCHEMA,
        name=found.recipe.name,
        task=found.recipe.task,
        metric=found.metric,
        higher_is_better=found.higher_is_better,
        unit=found.unit,
        thresholds=reports,
        teacher=teacher,
        runs=tuple(_run(run, found) for run in found.runs),
        warnings=tuple(dict.fromkeys(lines)),
    )


def _run(run: RunRecord, experiment: Experiment) -> RunReport:
    last, reached = last_row(run.rows), last_position(run.rows)
    clock: dict[str, float] = {}
    if last and last.clock:
        clock = {name: float(last.clock.get(name, 0.0)) for name in SEGMENTS}
    training = sum(clock.get(name, 0.0) for name in TRAINING_SEGMENTS)
    return RunReport(
        run=label(run),
        arm=run.arm,
        seed=run.seed,
        state=str(run.status.get("state", "unknown")),
        reason=run.status.get("reason"),
        best=_costed(best(run.rows, experiment.metric, experiment.higher_is_better), run),
        final=_costed(final(run.rows, experiment.metric), run),
        reached=reached and with_flops(reached, run),
        total_steps=run.status.get("total_steps"),
        distillation_off=distillation_off(run.rows),
        clock=clock,
        teacher_share=round(clock["teacher"] / training, 6) if training > 0 else None,
        teacher_level=teacher_level(run.rows, experiment.metric),
        resumed=len(events(run.rows, "resumed")),
        non_finite_steps=sum(len(event.details.get("steps") or ()) for event in events(run.rows, "non_finite")),
        environment=run.environment,
        curve=_curve(run, experiment.metric),
    )


def _costed(score: Score | None, run: RunRecord) -> Score | None:
    return score and Score(score.value, with_flops(score.at, run))


def _curve(run: RunRecord, metric: str) -> Curve:
    rows = validations(run.rows)
    places = [position(row) for row in rows]
    values = [row.metrics.get(metric, math.nan) for row in rows]
    return Curve(
        step=tuple(place.step for place in places),
        epoch=tuple(place.epoch for place in places),
        seconds=tuple(place.seconds for place in places),
        value=tuple(value if math.isfinite(value) else None for value in values),
    )


def _teacher(experiment: Experiment) -> TeacherReport | None:
    """What is known of the teacher; None when there is neither a teacher's run nor a w2s run."""
    levels, w2s = teacher_levels(experiment), experiment.arm("w2s")
    level = median_range(list(levels.values()))[0] if levels else None
    run, ours = experiment.teacher, teacher_is_ours(experiment)
    if run is None or not ours:
        return TeacherReport(level, False, None, None) if w2s else None
    reached = last_position(run.rows)
    known = [forward_flops(other.environment, "teacher") for other in w2s.values()]
    forward = next((value for value in known if value), forward_flops(run.environment, "student"))
    flops = 3 * forward * reached.examples if forward and reached else None
    return TeacherReport(level, True, reached.seconds if reached else None, flops)


def _threshold(level: Level, experiment: Experiment, teacher: TeacherReport | None) -> ThresholdReport:
    first: Crossings = {name: _first(level, experiment, name) for name in ARMS}
    baseline, w2s = first["baseline"], first["w2s"]
    seeds = tuple(sorted(set(baseline) & set(w2s)))
    pairs = tuple(seed for seed in seeds if baseline[seed] and w2s[seed])
    speedup = {name: _ratios(first, pairs, attribute) for name, attribute in QUANTITIES.items()}
    seconds, flops = (teacher.seconds, teacher.flops) if teacher else (None, None)
    with_teacher = {
        "seconds": {} if seconds is None else _ratios(first, pairs, "seconds", seconds),
        "flops": {} if flops is None else _ratios(first, pairs, "flops", flops),
    }
    grid = {name: _grid(first[name], experiment.arm(name)) for name in ARMS}
    over_seeds = {name: _spread(ratios) for name, ratios in speedup.items()}
    not_reached = {name: _not_reached(level, first[name], experiment.arm(name)) for name in ARMS}
    missing = [text for seed in seeds if (text := _missing(seed, first, not_reached, experiment.unit))]
    distance = _teacher_gap(level, experiment, teacher)
    return ThresholdReport(
        name=level.threshold.name,
        value=level.value,
        first=first,
        speedup=speedup,
        speedup_over_seeds=over_seeds,
        speedup_with_teacher=with_teacher,
        speedup_with_teacher_over_seeds={name: _spread(ratios) for name, ratios in with_teacher.items()},
        speedup_interval={seed: _interval(seed, first, grid) for seed in pairs},
        grid=grid,
        not_reached=not_reached,
        seeds=seeds,
        pairs=pairs,
        teacher_gap=distance,
        note=_note(level, distance),
        reason=level.reason,
        verdict=_verdict(level, over_seeds, _spread(with_teacher["seconds"]), seeds, missing),
    )


def _first(level: Level, experiment: Experiment, arm: str) -> dict[int, Position | None]:
    """Seed -> first crossing; everybody's None when the level is unknown."""
    found: dict[int, Position | None] = {}
    for seed, run in experiment.arm(arm).items():
        place = None
        if level.value is not None:
            place = first_crossing(run.rows, experiment.metric, level.value, experiment.higher_is_better)
        found[seed] = place and with_flops(place, run)
    return found


def _pair(seed: int, first: Crossings) -> tuple[Position, Position]:
    """The crossings of baseline and w2s with a seed that both reached the level with."""
    baseline, w2s = first["baseline"][seed], first["w2s"][seed]
    assert baseline, f"baseline did not cross with seed {seed}"
    assert w2s, f"w2s did not cross with seed {seed}"
    return baseline, w2s


def _ratios(first: Crossings, pairs: Sequence[int], attribute: str, extra: float = 0.0) -> dict[int, float]:
    """Seed -> baseline / (w2s + extra), where both sides are on record."""
    ratios = {}
    for seed in pairs:
        theirs, ours = (getattr(place, attribute) for place in _pair(seed, first))
        if ours is not None and theirs is not None and ours + extra > 0:
            ratios[seed] = round(theirs / (ours + extra), 6)
    return ratios


def _spread(ratios: BySeed) -> Spread | None:
    return Spread(*median_range(list(ratios.values())), len(ratios)) if ratios else None


def _grid(first: Mapping[int, Position | None], runs: Mapping[int, RunRecord]) -> dict[int, Spacing]:
    return {seed: spacing(runs[seed].rows, place.step) for seed, place in first.items() if place}


def _interval(seed: int, first: Crossings, grid: Mapping[str, Mapping[int, Spacing]]) -> tuple[float, float | None]:
    """The true crossing of a run lies after the validation before: (b - gb) / w to b / (w - gw)."""
    baseline, w2s = _pair(seed, first)
    earliest_baseline = baseline.epoch - grid["baseline"][seed].epochs
    earliest_w2s = w2s.epoch - grid["w2s"][seed].epochs
    low = earliest_baseline / w2s.epoch if w2s.epoch > 0 else 0.0
    return round(low, 6), round(baseline.epoch / earliest_w2s, 6) if earliest_w2s > 1e-6 else None


def _not_reached(
    level: Level, first: Mapping[int, Position | None], runs: Mapping[int, RunRecord]
) -> dict[int, Position | None]:
    if level.value is None:
        return {}
    lasts = {seed: last_validation(runs[seed].rows) for seed, place in first.items() if place is None}
    return {seed: position(row) if row else None for seed, row in lasts.items()}


def _teacher_gap(level: Level, experiment: Experiment, teacher: TeacherReport | None) -> float | None:
    if level.value is None or teacher is None or teacher.level is None:
        return None
    distance = gap(teacher.level, level.value, experiment.higher_is_better)
    return None if distance is None else round(distance, 6)


def _note(level: Level, distance: float | None) -> str | None:
    """Outside the working band a teacher slows training down, or has little to give."""
    if distance is None:
        return None
    if distance == 0:
        return "the teacher is exactly as good as the target: the upper end of the working band"
    if distance > 0:
        return f"the teacher is {units.share(distance)} better than the target: this is not weak-to-strong any more"
    if distance < -WORKING_BAND:
        return (
            f"the teacher is {units.share(-distance)} weaker than the target, outside the working band of "
            f"{WORKING_BAND:.0%}: it may slow training down"
        )
    return None


def _verdict(
    level: Level,
    over_seeds: Mapping[str, Spread | None],
    with_teacher: Spread | None,
    seeds: Sequence[int],
    missing: Sequence[str],
) -> str:
    """The result in one line that hides neither who did not get there nor what the teacher cost."""
    if level.value is None:
        return f"cannot be judged: {level.reason}"
    if not seeds:
        return "no speed-up: no seed is in both arms"
    left_out = f"; {'; '.join(missing)}" if missing else ""
    epochs, seconds = over_seeds["epochs"], over_seeds["seconds"]
    if epochs is None:
        return f"no speed-up can be given{left_out}"
    parts = [f"{units.ratio(epochs.median)} in epochs"]
    if epochs.seeds > 1:
        parts[0] += f" ({units.ratio(epochs.min)} to {units.ratio(epochs.max)})"
    if seconds:
        parts.append(f"{units.ratio(seconds.median)} in training time")
    if with_teacher:
        parts.append(f"{units.ratio(with_teacher.median)} with the teacher's training")
    if epochs.median < 1:
        parts.append("slower than the baseline")
    count = f"; median of {epochs.seeds} of {len(seeds)} seeds"
    if epochs.seeds == 1:
        count = "; on one seed" if len(seeds) == 1 else f"; on 1 of {len(seeds)} seeds"
    return f"{', '.join(parts)}{count}{left_out}{', which the figures leave out' if missing else ''}"


def _missing(seed: int, first: Crossings, not_reached: Crossings, unit: str) -> str | None:
    """Who did not reach the level with this seed."""
    late = [arm for arm in ARMS if seed in not_reached[arm]]
    if not late:
        return None
    texts = [f"{arm} {not_reached_text(not_reached[arm][seed], unit)}" for arm in late]
    other = next((arm for arm in ARMS if arm not in late), None)
    there = first[other][seed] if other else None
    return f"seed {seed}: {', '.join(texts)}" + (f" ({other} at {units.place(there, unit)})" if there else "")


def not_reached_text(last: Position | None, unit: str) -> str:
    """``not reached by epoch 14``: never a number in place of a crossing."""
    return f"not reached by {units.place(last, unit)}" if last else "not validated yet"


def _threshold_warnings(report: ThresholdReport, experiment: Experiment) -> list[str]:
    """What a threshold's own numbers hide: the grid of the validations, and those who did not get there."""
    title = units.threshold(report.name, report.value, experiment.metric)
    lines = []
    if report.value is None:
        lines.append(f"{title}: {report.reason}")
    failed = [seed for seed in report.seeds if seed in report.not_reached["w2s"] and report.first["baseline"][seed]]
    if failed:
        seeds = ", ".join(str(seed) for seed in failed)
        lines.append(f"{title}: w2s did not get there with seed {seeds} but baseline did; a median leaves that out")
    near = [seed for seed in report.pairs if _within_one_validation(seed, report)]
    if near:
        low = min(report.speedup_interval[seed][0] for seed in near)
        highs = [report.speedup_interval[seed][1] for seed in near]
        bounds = [high for high in highs if high is not None]
        bounded = len(bounds) == len(highs)
        between = (
            f"{units.ratio(low)} to {units.ratio(max(bounds))}" if bounded else f"anything above {units.ratio(low)}"
        )
        seeds = ", ".join(str(seed) for seed in near)
        lines.append(
            f"{title}: both arms crossed within one validation of each other with seed {seeds}; "
            f"between validations the true speed-up may be {between}"
        )
    if report.note and report.teacher_gap:
        lines.append(f"{title}: {report.note}")
    return lines


def _within_one_validation(seed: int, report: ThresholdReport) -> bool:
    baseline, w2s = _pair(seed, report.first)
    widest = max(report.grid[arm][seed].steps for arm in ARMS)
    return abs(baseline.step - w2s.step) <= widest
