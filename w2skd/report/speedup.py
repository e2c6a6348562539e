"""Compute the report: when each run crossed each threshold, and the speed-up of every arm over the reference.

`build_report` reads only an experiment's run directories, so the same directories give the same report.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from w2skd.recipe.arms import Arm
from w2skd.recipe.evaluation import Metric
from w2skd.recipe.load import RecipeTypes
from w2skd.recipe.threshold import Threshold
from w2skd.records.rows import SEGMENTS, TRAINING_SEGMENTS
from w2skd.records.rundir import RunRecord
from w2skd.report.censored import Bounds, crossing_bounds, median_bounds, ratio_bounds, spread
from w2skd.report.complete import compare_complete_schedules, ends_of
from w2skd.report.contract import (
    QUANTITIES,
    SCHEMA,
    ArmReport,
    Comparison,
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
    teacher_of,
)
from w2skd.report.honesty import breaking_differences, warnings
from w2skd.report.verdict import missing_text, note, summary_line, threshold_warnings


def build_report(
    experiment: Path,
    types: RecipeTypes,
    thresholds: Sequence[Threshold] | None = None,
    allow_different: Collection[str] = (),
) -> Report:
    """Read an experiment and compute its report.

    Args:
        experiment: the folder that holds one folder per arm.
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
    complete = {} if refused else compare_complete_schedules(found)
    lines = [
        *refused,
        *warnings(found),
        *(line for report in reports for line in threshold_warnings(report, found.reference, found.metric)),
    ]
    return Report(
        schema=SCHEMA,
        name=found.recipe.name,
        task=found.recipe.task,
        metric=found.metric,
        unit=found.unit,
        reference=found.reference,
        arms={name: _arm(name, found) for name in (found.reference, *found.others)},
        thresholds=reports,
        teacher=teacher,
        runs=tuple(_run(run, found) for run in (*found.teachers, *found.students)),
        warnings=tuple(dict.fromkeys(lines)),
        scoring=found.scoring,
        refused=refused,
        equal_quality=complete,
        ends={arm: ends for arm in (found.reference, *complete) if (ends := ends_of(found, arm)) is not None},
    )


def _arm(name: Arm, experiment: Experiment) -> ArmReport:
    runs = list(experiment.arm(name).values())
    section = (runs[0] if runs else experiment.students[0]).recipe.arms[name]
    return ArmReport(section.help, section.note, len(runs))


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
        distills=run.helped("distill"),
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
    """Return the level and cost of the teacher; None if the experiment has no teacher and no helped runs."""
    levels = teacher_levels(experiment)
    level = median_range(list(levels.values()))[0] if levels else None
    if not teacher_is_ours(experiment):
        return TeacherReport(level, False, None, None) if experiment.helped else None
    costs = [_teacher_costs(run) for run in experiment.teachers]
    seconds, flops = (_median([cost[name] for cost in costs]) for name in ("seconds", "flops"))
    return TeacherReport(level, True, seconds, flops, len(costs))


def _teacher_costs(run: RunRecord) -> dict[str, float | None]:
    """Return ``seconds`` and ``flops`` of a teacher's training; None where they are not recorded."""
    reached = last_position(run.rows)
    # From the teacher's own record, because the helped runs may have shown it smaller images.
    forward = forward_flops(run.environment, "student")
    flops = 3 * forward * reached.examples if forward and reached else None
    return {"seconds": reached.seconds if reached else None, "flops": flops}


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median_range(known)[0] if len(known) == len(values) and known else None


def _threshold(
    level: Level, experiment: Experiment, teacher: TeacherReport | None, is_refused: bool
) -> ThresholdReport:
    arms = (experiment.reference, *experiment.others)
    first: Crossings = {name: _first(level, experiment, name) for name in arms}
    crossings = _Crossings(
        experiment,
        first,
        not_reached={name: _not_reached(level, first[name], experiment.arm(name)) for name in arms},
        grid={name: _grid(first[name], experiment.arm(name)) for name in arms},
    )
    distance = _teacher_gap(level, experiment, teacher)
    return ThresholdReport(
        name=level.threshold.name,
        value=level.value,
        first=first,
        arms={arm: _compare(level, crossings, arm, is_refused) for arm in experiment.others},
        grid=crossings.grid,
        not_reached=crossings.not_reached,
        teacher_gap=distance,
        note=note(distance),
        reason=level.reason,
    )


class _Crossings(NamedTuple):
    """Where the runs of an experiment reach one level, by arm and seed; see `ThresholdReport`."""

    experiment: Experiment
    first: Crossings
    not_reached: Crossings
    grid: Mapping[str, Mapping[int, Spacing]]


def _compare(level: Level, crossings: _Crossings, arm: Arm, is_refused: bool) -> Comparison:
    experiment, first, not_reached = crossings.experiment, crossings.first, crossings.not_reached
    reference = experiment.reference
    seeds = tuple(sorted(set(first[reference]) & set(first[arm])))
    pairs = tuple(seed for seed in seeds if first[reference][seed] and first[arm][seed])
    ratios = _Ratios(crossings, arm, () if is_refused or level.value is None else seeds, pairs)
    costs = {name: _costs(experiment, arm, name) for name in ("seconds", "flops")}
    intervals = {} if is_refused else {seed: _interval(seed, crossings, arm) for seed in pairs}
    over_seeds = {name: ratios.over_seeds(attribute) for name, attribute in QUANTITIES.items()}
    charged = {name: None if cost is None else ratios.over_seeds(name, cost) for name, cost in costs.items()}
    grid_interval = _grid_interval(ratios, intervals)
    missing = [
        text
        for seed in seeds
        if (text := missing_text(seed, (reference, arm), first, not_reached, experiment.unit)) is not None
    ]
    figures = over_seeds | {"charged": charged["seconds"]}
    line = summary_line(level, figures, grid_interval, seeds, missing, (experiment.unit, reference))
    if is_refused and level.value is not None:
        line = "no speed-up: settings differ that break the comparison"
    return Comparison(
        speedup={name: ratios.of(attribute) for name, attribute in QUANTITIES.items()},
        interval=None,
        verdict="unknown" if grid_interval is None else shown(grid_interval),
        summary=line,
        speedup_over_seeds=over_seeds,
        speedup_with_teacher={name: {} if cost is None else ratios.of(name, cost) for name, cost in costs.items()},
        speedup_with_teacher_over_seeds=charged,
        speedup_interval=intervals,
        grid_interval=grid_interval,
        seeds=seeds,
        pairs=pairs,
    )


def _costs(experiment: Experiment, arm: Arm, quantity: str) -> dict[int, float] | None:
    """Return the training cost of each run's teacher by seed; None if the arm has no teacher or a cost is unknown."""
    runs = experiment.arm(arm)
    if not teacher_is_ours(experiment) or not any(run.helped() for run in runs.values()):
        return None
    costs = {}
    for seed, run in runs.items():
        teacher = teacher_of(run, experiment)
        cost = None if teacher is None else _teacher_costs(teacher)[quantity]
        if cost is None:
            return None
        costs[seed] = cost
    return costs


class _Ratios(NamedTuple):
    """Speed-ups of an arm at one level.

    Attributes:
        crossings: of all arms.
        arm: which arm.
        seeds: seeds to compare, present in both arms.
        pairs: those of the seeds for which both arms crossed.
    """

    crossings: _Crossings
    arm: Arm
    seeds: Sequence[int]
    pairs: Sequence[int]

    def bounds(self, attribute: str, extra: Mapping[int, float] | None = None) -> dict[int, Bounds]:
        """Return the bounds of reference / (arm + extra) by seed, where they are recorded."""
        found = {seed: self._ratio(seed, attribute, (extra or {}).get(seed, 0.0)) for seed in self.seeds}
        return {seed: bounds for seed, bounds in found.items() if bounds is not None}

    def of(self, attribute: str, extra: Mapping[int, float] | None = None) -> dict[int, float]:
        """Return reference / (arm + extra) by seed, for the pairs."""
        found = self.bounds(attribute, extra)
        return {seed: round(found[seed].low, 6) for seed in self.pairs if seed in found and found[seed].high < math.inf}

    def over_seeds(self, attribute: str, extra: Mapping[int, float] | None = None) -> Spread | None:
        """Return the median over all seeds, and the range of the pairs."""
        return spread(list(self.bounds(attribute, extra).values()), self.of(attribute, extra))

    def _ratio(self, seed: int, attribute: str, extra: float) -> Bounds | None:
        theirs, ours = (
            crossing_bounds(self.crossings.first[arm][seed], self.crossings.not_reached[arm].get(seed), attribute)
            for arm in (self.crossings.experiment.reference, self.arm)
        )
        return ratio_bounds(theirs, ours, extra)


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


def _interval(seed: int, crossings: _Crossings, arm: Arm) -> tuple[float, float | None]:
    reference, grid = crossings.experiment.reference, crossings.grid
    return grid_bounds(*pair(seed, crossings.first, reference, arm), grid[reference][seed], grid[arm][seed])


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
