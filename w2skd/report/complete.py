"""Compare the complete schedules of an experiment at equal final quality."""

import math
from collections.abc import Iterator

from w2skd.recipe.arms import Arm
from w2skd.records.rundir import RunRecord
from w2skd.report.crossing import final, forward_flops, last_position
from w2skd.report.ends import Ends
from w2skd.report.equal_quality import equal_quality
from w2skd.report.equal_quality_contract import EqualQuality, Plan
from w2skd.report.experiment import Experiment, label, teacher_is_ours, teacher_of


def compare_complete_schedules(experiment: Experiment) -> dict[Arm, EqualQuality]:
    """Compare every arm with the reference at equal final quality; empty unless the reference has several lengths.

    Only finished runs count, with the score of their last validation.
    """
    reference = ends_of(experiment, experiment.reference)
    found = {}
    for arm in experiment.others:
        ends = ends_of(experiment, arm)
        if reference is not None and ends is not None and len(reference.lengths) > 1:
            found[arm] = equal_quality(reference, ends, experiment.metric.higher_is_better, _plan(experiment, ends))
    return found


def ends_of(experiment: Experiment, arm: Arm) -> Ends | None:
    """Return the final scores of an arm's finished runs, by seed and length; None without such runs."""
    runs = {(run.seed, _length(run)): run for run in _finished(experiment, arm)}
    if not runs:
        return None
    seeds, lengths = sorted({seed for seed, _ in runs}), sorted({length for _, length in runs})
    some = [next(runs[seed, length] for length in lengths if (seed, length) in runs) for seed in seeds]
    teachers = [teacher_of(run, experiment) if run.helped() else None for run in some]
    paths = [None if teacher is None else label(teacher) for teacher in teachers]
    shares = len(set(paths)) < len(paths) and None not in paths
    costs = tuple(_cost(run, teacher, experiment.unit) for run, teacher in zip(some, teachers, strict=True))
    return Ends(
        arm=arm,
        lengths=tuple(lengths),
        seeds=tuple(seeds),
        values=tuple(tuple(_final(runs.get((seed, length)), experiment) for length in lengths) for seed in seeds),
        teachers=tuple(paths) if shares else None,
        teacher_costs=costs if teacher_is_ours(experiment) and None not in teachers else None,
    )


def _finished(experiment: Experiment, arm: Arm) -> Iterator[RunRecord]:
    yield from (run for run in experiment.runs if run.arm == arm and run.status.get("state") == "finished")


def _length(run: RunRecord) -> float:
    """Return the length of a run's schedule in epochs, or in steps if its recipe sets steps."""
    train = run.recipe.train
    return float(train.steps if train.steps is not None else train.epochs or 0.0)


def _final(run: RunRecord | None, experiment: Experiment) -> float:
    score = None if run is None else final(run.rows, experiment.metric)
    return math.nan if score is None else score.value


def _cost(run: RunRecord, teacher: RunRecord | None, unit: str) -> float:
    """Return the epochs or steps of the student that cost as many FLOPs as training its teacher; NaN if unknown."""
    if teacher is None:
        return math.nan
    theirs, ours = (forward_flops(one.environment, "student") for one in (teacher, run))
    reached, own = last_position(teacher.rows), last_position(run.rows)
    if not theirs or not ours or reached is None or own is None or own.examples == 0:
        return math.nan
    return float(theirs * reached.examples / (ours * own.examples / getattr(own, unit)))


def _plan(experiment: Experiment, arm: Ends) -> Plan:
    section, longest = experiment.recipe.report, arm.lengths[-1]
    primary = None
    if section.primary_length is not None:
        wanted = section.primary_length * longest
        primary = next((length for length in arm.lengths if math.isclose(length, wanted, rel_tol=1e-3)), None)
    return Plan(primary_length=primary, sharers=section.sharers, unit=experiment.unit)
