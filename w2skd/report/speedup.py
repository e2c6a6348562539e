"""Compute the report: when each run crossed each threshold, and the speed-up of the w2s runs.

`build_report` reads only an experiment's run directories, so the same directories give the same report.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from w2skd.recipe.arms import HELPED, REFERENCE, STUDENT_ARMS
from w2skd.recipe.evaluation import Metric
from w2skd.recipe.load import RecipeTypes
from w2skd.recipe.threshold import Threshold
from w2skd.records.rows import SEGMENTS, TRAINING_SEGMENTS
from w2skd.records.rundir import RunRecord
from w2skd.report.censored import Bounds, median_bounds, ratio_bounds, spread
from w2skd.report.contract import (
    QUANTITIES,
    SCHEMA,
    Crossings,
    Curve,
    Report,
    RunReport,
    Spread,
    TeacherReport,
    ThresholdReport,
    pair,
)
from w2skd.report.crossing import (
    Position,
    Score,
    Spacing,
    best,
    distillation_off,
    events,
    final,
    first_crossing,
    forward_flops,
    grid_bounds,
    last_position,
    last_row,
    last_validation,
    position,
    shown,
    spacing,
    teacher_level,
    validations,
    with_flops,
)
from w2skd.report.experiment import (
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
from w2skd.report.honesty import breaking_differences, warnings
from w2skd.report.verdict import missing_text, note, threshold_warnings, verdict


def build_report(
    experiment: Path,
    types: RecipeTypes,
    thresholds: Sequence[Threshold] | None = None,
    allow_different: Collection[str] = (),
) -> Report:
    """Read an experiment and compute its report.

    Args:
        experiment: the folder that holds ``baseline/`` and ``w2s/``.
        types: value of ``task`` -> type of the recipe.
        thresholds: used instead of the recipe's.
        allow_different: settings in which runs may differ although that breaks the comparison, see
            `breaking_differences`.

    Raises:
        RunDirError: see `read_experiment`.
    """
    found = read_experiment(experiment, types)
    refused = tuple(breaking_differences(found.students, allow_different))
    teacher = _teacher(found)
    levels = resolve_all(found.recipe.report.thresholds if thresholds is None else thresholds, found)
    reports = tuple(_threshold(level, found, teacher, bool(refused)) for level in levels)
    lines = [
        *refused,
        *warnings(found),
        *(line for report in reports for line in threshold_warnings(report, found.metric)),
    ]
    return Report(
        schema=SCHEMA,
        name=found.recipe.name,
        task=found.recipe.task,
        metric=found.metric,
        unit=found.unit,
        thresholds=reports,
        teacher=teacher,
        runs=tuple(_run(run, found) for run in found.runs),
        warnings=tuple(dict.fromkeys(lines)),
        scoring=found.scoring,
        refused=refused,
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
        best=_costed(best(run.rows, experiment.metric), run),
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
        picture=None if run.picture is None else f"{label(run)}/{run.picture}",
    )


def _costed(score: Score | None, run: RunRecord) -> Score | None:
    return score and Score(score.value, with_flops(score.at, run))


def _curve(run: RunRecord, metric: Metric) -> Curve:
    rows = validations(run.rows)
    places = [position(row) for row in rows]
    values = [row.metrics.get(metric.name, math.nan) for row in rows]
    return Curve(
        step=tuple(place.step for place in places),
        epoch=tuple(place.epoch for place in places),
        seconds=tuple(place.seconds for place in places),
        value=tuple(value if math.isfinite(value) else None for value in values),
    )


def _teacher(experiment: Experiment) -> TeacherReport | None:
    """Return level and cost of the teacher; None if there is neither a teacher run nor a w2s run."""
    levels, w2s = teacher_levels(experiment), experiment.arm(HELPED)
    level = median_range(list(levels.values()))[0] if levels else None
    run, ours = experiment.teacher, teacher_is_ours(experiment)
    if run is None or not ours:
        return TeacherReport(level, False, None, None) if w2s else None
    reached = last_position(run.rows)
    # Its own record: the w2s runs may have shown it smaller images.
    forward = forward_flops(run.environment, "student")
    flops = 3 * forward * reached.examples if forward and reached else None
    return TeacherReport(level, True, reached.seconds if reached else None, flops)


def _threshold(
    level: Level, experiment: Experiment, teacher: TeacherReport | None, is_refused: bool
) -> ThresholdReport:
    first: Crossings = {name: _first(level, experiment, name) for name in STUDENT_ARMS}
    baseline, w2s = first[REFERENCE], first[HELPED]
    seeds = tuple(sorted(set(baseline) & set(w2s)))
    pairs = tuple(seed for seed in seeds if baseline[seed] and w2s[seed])
    compared = () if is_refused or level.value is None else seeds
    not_reached = {name: _not_reached(level, first[name], experiment.arm(name)) for name in STUDENT_ARMS}
    costs = {"seconds": teacher.seconds, "flops": teacher.flops} if teacher else {"seconds": None, "flops": None}
    ratios = _Ratios(first, not_reached, compared, pairs)
    speedup = {name: ratios.of(attribute) for name, attribute in QUANTITIES.items()}
    with_teacher = {name: {} if cost is None else ratios.of(name, cost) for name, cost in costs.items()}
    grid = {name: _grid(first[name], experiment.arm(name)) for name in STUDENT_ARMS}
    intervals = {} if is_refused else {seed: _interval(seed, first, grid) for seed in pairs}
    over_seeds = {name: ratios.over_seeds(attribute) for name, attribute in QUANTITIES.items()}
    charged = {name: None if cost is None else ratios.over_seeds(name, cost) for name, cost in costs.items()}
    grid_interval = _grid_interval(ratios, intervals)
    missing = [text for seed in seeds if (text := missing_text(seed, first, not_reached, experiment.unit))]
    distance = _teacher_gap(level, experiment, teacher)
    figures = over_seeds | {"charged": charged["seconds"]}
    line = verdict(level, figures, grid_interval, seeds, missing, experiment.unit)
    if is_refused and level.value is not None:
        line = "no speed-up: settings differ that break the comparison"
    return ThresholdReport(
        name=level.threshold.name,
        value=level.value,
        first=first,
        speedup=speedup,
        speedup_over_seeds=over_seeds,
        speedup_with_teacher=with_teacher,
        speedup_with_teacher_over_seeds=charged,
        speedup_interval=intervals,
        grid_interval=grid_interval,
        shown=grid_interval and shown(grid_interval),
        grid=grid,
        not_reached=not_reached,
        seeds=seeds,
        pairs=pairs,
        teacher_gap=distance,
        note=note(distance),
        reason=level.reason,
        verdict=line,
    )


class _Ratios(NamedTuple):
    """Speed-ups at one level.

    Attributes:
        first: the crossings.
        not_reached: the last validations of the other runs.
        seeds: seeds to compare, present in both arms.
        pairs: those of the seeds for which both arms crossed.
    """

    first: Crossings
    not_reached: Crossings
    seeds: Sequence[int]
    pairs: Sequence[int]

    def bounds(self, attribute: str, extra: float = 0.0) -> dict[int, Bounds]:
        """Return the bounds of baseline / (w2s + extra) by seed, where they are recorded."""
        found = {seed: ratio_bounds(seed, self.first, self.not_reached, attribute, extra) for seed in self.seeds}
        return {seed: bounds for seed, bounds in found.items() if bounds is not None}

    def of(self, attribute: str, extra: float = 0.0) -> dict[int, float]:
        """Return baseline / (w2s + extra) by seed, for the pairs."""
        found = self.bounds(attribute, extra)
        return {seed: round(found[seed].low, 6) for seed in self.pairs if seed in found and found[seed].high < math.inf}

    def over_seeds(self, attribute: str, extra: float = 0.0) -> Spread | None:
        """Return the median over all seeds, and the range of the pairs."""
        return spread(list(self.bounds(attribute, extra).values()), self.of(attribute, extra))


def _grid_interval(
    ratios: _Ratios, intervals: Mapping[int, tuple[float, float | None]]
) -> tuple[float, float | None] | None:
    """Return the median bounds of the speed-up in epochs, widened by the spacing of the validations."""
    bounds = ratios.bounds("epoch")
    for seed, (low, high) in intervals.items():
        bounds[seed] = Bounds(low, math.inf if high is None else high)
    if not bounds:
        return None
    low, high = median_bounds(bounds.values())
    return round(low, 6), round(high, 6) if math.isfinite(high) else None


def _first(level: Level, experiment: Experiment, arm: str) -> dict[int, Position | None]:
    """Return the first crossing by seed; None for all seeds if the level is unknown."""
    found: dict[int, Position | None] = {}
    for seed, run in experiment.arm(arm).items():
        place = None
        if level.value is not None:
            place = first_crossing(run.rows, experiment.metric, level.value)
        found[seed] = place and with_flops(place, run)
    return found


def _grid(first: Mapping[int, Position | None], runs: Mapping[int, RunRecord]) -> dict[int, Spacing]:
    return {seed: spacing(runs[seed].rows, place.step) for seed, place in first.items() if place}


def _interval(seed: int, first: Crossings, grid: Mapping[str, Mapping[int, Spacing]]) -> tuple[float, float | None]:
    return grid_bounds(*pair(seed, first), grid[REFERENCE][seed], grid[HELPED][seed])


def _not_reached(
    level: Level, first: Mapping[int, Position | None], runs: Mapping[int, RunRecord]
) -> dict[int, Position | None]:
    if level.value is None:
        return {}
    lasts = {seed: last_validation(runs[seed].rows) for seed, place in first.items() if place is None}
    return {seed: with_flops(position(row), runs[seed]) if row else None for seed, row in lasts.items()}


def _teacher_gap(level: Level, experiment: Experiment, teacher: TeacherReport | None) -> float | None:
    if level.value is None or teacher is None or teacher.level is None:
        return None
    distance = gap(teacher.level, level.value, experiment.metric)
    return None if distance is None else round(distance, 6)
