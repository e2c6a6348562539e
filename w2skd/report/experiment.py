"""An experiment as read for a report: its runs by arm and seed, its metric, and its resolved thresholds."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from w2skd.errors import RunDirError
from w2skd.recipe.arms import TEACHER, Arm
from w2skd.recipe.evaluation import Metric
from w2skd.recipe.load import RecipeTypes
from w2skd.recipe.schema import Recipe
from w2skd.recipe.threshold import Threshold
from w2skd.records.names import RunName
from w2skd.records.rundir import RunRecord, find_runs, read_run
from w2skd.report import units
from w2skd.report.crossing import best, events, teacher_level, validations
from w2skd.report.scoring import difference, scoring_of

_EXPECTED = "<arm>/seed<n>/ with a status.json for every run"


@dataclass(frozen=True)
class Experiment:
    """The runs of an experiment, at least one, in a fixed order."""

    runs: tuple[RunRecord, ...]

    def __post_init__(self) -> None:
        assert self.runs, "an experiment needs a run"

    @property
    def teachers(self) -> tuple[RunRecord, ...]:
        """The runs that trained a teacher; empty if the teacher is not part of the experiment."""
        return tuple(run for run in self.runs if run.arm == TEACHER)

    @property
    def reference(self) -> Arm:
        """The arm with which the others are compared: the first arm of the recipe."""
        return self.recipe.reference

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All arms of the recipe, including those without runs, followed by arms that only other runs' recipes have."""
        return tuple(dict.fromkeys([*self.recipe.arms, *(run.arm for run in self.students)]))

    @property
    def others(self) -> tuple[Arm, ...]:
        """All arms with runs except the reference; if none has runs, all arms except the reference."""
        others = [arm for arm in self.arms if arm != self.reference]
        return tuple(arm for arm in others if self.arm(arm)) or tuple(others)

    @property
    def helped(self) -> dict[str, RunRecord]:
        """Runs of the full length that a teacher helps, by label."""
        return {label(run): run for run in self.students if run.helped()}

    @property
    def recipe(self) -> Recipe:
        """The recipe that sets metric and thresholds: that of the first student run, or of the teacher without one."""
        return (*self.students, *self.runs)[0].recipe

    @property
    def students(self) -> tuple[RunRecord, ...]:
        """All runs of the full length except the teachers'."""
        return tuple(run for run in self.runs if run.arm != TEACHER and run.length == 1.0)

    @property
    def metric(self) -> Metric:
        """The metric of the thresholds."""
        return self.recipe.metric

    @property
    def unit(self) -> Literal["epoch", "step"]:
        """Unit of positions: steps if the recipe gives the run's length in steps, epochs otherwise."""
        return "epoch" if self.recipe.train.steps is None else "step"

    @property
    def scoring(self) -> Mapping[str, Any]:
        """Scoring settings that all student runs share; empty for tasks without such settings."""
        return scoring_of((*self.students, *self.runs)[0])

    def reference_of(self, run: RunRecord) -> RunRecord | None:
        """Return the reference run with the same seed and length; None if there is none, or for reference runs."""
        if run.arm in (TEACHER, self.reference):
            return None
        same = (self.reference, run.seed, run.length)
        return next((one for one in self.runs if (one.arm, one.seed, one.length) == same), None)

    def arm(self, name: str) -> dict[int, RunRecord]:
        """Return an arm's runs of the full length by seed."""
        return {run.seed: run for run in self.students if run.arm == name}


@dataclass(frozen=True)
class Level:
    """A threshold resolved to a number, or the reason why it could not be resolved."""

    threshold: Threshold
    value: float | None
    reason: str | None = None


def label(run: RunRecord) -> str:
    """Return a run's path within its experiment."""
    numbered = run.arm != TEACHER or run.path.name != TEACHER
    return str(RunName(run.arm, run.seed if numbered else None, run.length))


def read_experiment(path: Path, types: RecipeTypes) -> Experiment:
    """Read all runs of an experiment, finished or not.

    Raises:
        RunDirError: `path` is missing, is a single run, or holds no run of a student; a run is damaged; or two runs
            were scored differently or name different reference arms. A teacher's own run is exempt: its curve enters no
            number, since every helped run evaluates its teacher as it evaluates its student.
    """
    if not path.is_dir():
        raise RunDirError(f"{path}: no such folder; expected an experiment with {_EXPECTED}")
    if (path / "status.json").exists():
        above = next((one for one in path.resolve().parents if RunName.parse(path.resolve().relative_to(one))), path)
        raise RunDirError(f"{path}: a single run; pass its experiment: {above}")
    runs = _in_order([read_run(run.within(path), types) for run in find_runs(path)])
    if any(run.arm != TEACHER for run in runs):
        found = Experiment(runs)
        if not found.students:
            raise RunDirError(f"{path}: holds only runs of shorter lengths; expected {_EXPECTED} for the full length")
        _check_scored_alike(path, [run for run in runs if run.arm != TEACHER])
        _check_one_reference(path, [run for run in runs if run.arm != TEACHER])
        return found
    if runs:
        raise RunDirError(f"{path}: holds only a teacher; expected {_EXPECTED}")
    if any(path.glob("seed*/status.json")):
        raise RunDirError(f"{path}: one arm of an experiment; pass the experiment: {path.resolve().parent}")
    raise RunDirError(f"{path}: holds no runs; expected {_EXPECTED}")


def _in_order(runs: Sequence[RunRecord]) -> tuple[RunRecord, ...]:
    """Sort runs by the order of the arms in the recipe, teachers first."""
    students = [run for run in runs if run.arm != TEACHER]
    arms = [TEACHER, *(students[0].recipe.arms if students else ())]
    return tuple(sorted(runs, key=lambda run: arms.index(run.arm) if run.arm in arms else len(arms)))


def _check_scored_alike(path: Path, runs: Sequence[RunRecord]) -> None:
    first = runs[0]
    for run in runs[1:]:
        found = difference(scoring_of(first), scoring_of(run))
        if found is not None:
            what = found.between(label(first), label(run))
            raise RunDirError(f"{path}: runs are scored differently and cannot be compared: {what}")


def _check_one_reference(path: Path, runs: Sequence[RunRecord]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if run.recipe.reference != first.recipe.reference:
            raise RunDirError(
                f"{path}: runs have different reference arms (first arms of the recipe): {first.recipe.reference} in "
                f"{label(first)}, {run.recipe.reference} in {label(run)}"
            )


def resolve(threshold: Threshold, experiment: Experiment) -> Level:
    """Resolve a threshold to a number.

    A share lies on the worse side: for a metric where lower is better, ``0.98*baseline`` is the baseline's median
    best divided by 0.98.
    """
    if threshold.of == "number":
        return Level(threshold, threshold.share)
    if threshold.share <= 0:
        return Level(threshold, None, "a share must be above 0")
    of_teacher = threshold.of == "teacher"
    if of_teacher and (doubt := teacher_doubt(experiment)) is not None:
        return Level(threshold, None, f"the teacher's {doubt}")
    levels = teacher_levels(experiment) if of_teacher else best_scores(experiment, threshold.of)
    if not levels:
        why = _no_teacher_level(experiment) if of_teacher else _no_best(experiment, threshold.of)
        return Level(threshold, None, why)
    reference = statistics.median(levels.values())
    share = threshold.share
    if reference <= 0 and share != 1:  # a KID, an unbiased estimate, may be a little below 0
        shown = units.level(reference, experiment.metric)
        why = f"{experiment.metric.name} is {shown}, so a share of it is undefined (it must be above 0)"
        return Level(threshold, None, f"the {threshold.of}'s {why}")
    return Level(threshold, reference * share if experiment.metric.higher_is_better else reference / share)


def resolve_all(thresholds: Iterable[Threshold], experiment: Experiment) -> list[Level]:
    """Resolve each distinct threshold, in order."""
    return [resolve(threshold, experiment) for threshold in dict.fromkeys(thresholds)]


def teacher_levels(experiment: Experiment) -> dict[str, float]:
    """Return the teacher's level as each helped run measured it, by the run's label."""
    levels = {name: teacher_level(run.rows, experiment.metric) for name, run in experiment.helped.items()}
    return {name: level for name, level in levels.items() if level is not None}


def best_scores(experiment: Experiment, arm: Arm) -> dict[int, float]:
    """Return the best score of each run of an arm by seed."""
    scores = {seed: best(run.rows, experiment.metric) for seed, run in experiment.arm(arm).items()}
    return {seed: score.value for seed, score in scores.items() if score is not None}


def teacher_doubt(experiment: Experiment) -> str | None:
    """Return why the teacher knows nothing, as the first run that doubted it recorded; None without doubt."""
    found = (event.details.get("doubt") for run in experiment.students for event in events(run.rows, "teacher"))
    return next((doubt for doubt in found if isinstance(doubt, str)), None)


def _no_teacher_level(experiment: Experiment) -> str:
    if any(events(run.rows, "teacher") for run in experiment.helped.values()):
        return f"the teacher was measured, but its {experiment.metric.name} is not finite"
    helped = [arm for arm in experiment.arms if experiment.recipe.helps(arm)]
    return f"no {' or '.join(helped) or 'helped'} run has evaluated its teacher yet"


def _no_best(experiment: Experiment, arm: Arm) -> str:
    if any(validations(run.rows) for run in experiment.arm(arm).values()):
        return f"the {arm} was validated, but its {experiment.metric.name} was never finite"
    return f"no {arm} run has a validation yet"


def teacher_is_ours(experiment: Experiment) -> bool:
    """Return whether, according to the records, the helped runs used teachers that this experiment trained."""
    if not experiment.teachers:
        return False
    made = {_fingerprint(teacher, "finished") for teacher in experiment.teachers}
    runs = experiment.helped.values()
    used = {_fingerprint(run, "teacher") for run in runs}
    others_used = None not in made and used - made - {None}
    return all(_inside(run) for run in runs) and not others_used


def teacher_of(run: RunRecord, experiment: Experiment) -> RunRecord | None:
    """Return the run that trained a run's teacher; if the records do not show it, the experiment's only teacher."""
    used = _fingerprint(run, "teacher")
    made = [one for one in experiment.teachers if used is not None and _fingerprint(one, "finished") == used]
    candidates = made or (experiment.teachers if len(experiment.teachers) == 1 else ())
    return next(iter(candidates), None)


def _fingerprint(run: RunRecord, event: str) -> Any:
    found = (one.details.get("fingerprint") for one in events(run.rows, event))
    return next((fingerprint for fingerprint in found if fingerprint is not None), None)


def gap(teacher: float, level: float, metric: Metric) -> float | None:
    """Return the relative gap between teacher and `level`, above 0 if the teacher is better; None if undefined."""
    if level == 0 or not math.isfinite(level):
        return None
    return (teacher - level if metric.higher_is_better else level - teacher) / abs(level)


def median_range(values: Sequence[float]) -> tuple[float, float, float]:
    """Return median, minimum and maximum."""
    return statistics.median(values), min(values), max(values)


def _inside(run: RunRecord) -> bool:
    """Return whether a run's teacher lies in its experiment; without a checkpoint in the recipe, it does.

    A named checkpoint is matched by its last folders, too, because the experiment may have been moved.
    """
    checkpoint = run.recipe.teacher.checkpoint
    if checkpoint is None:
        return True
    experiment = run.path.resolve().parents[label(run).count("/")]
    parts = checkpoint.parts
    return (experiment / TEACHER) in (checkpoint.resolve(), *checkpoint.resolve().parents) or (
        (experiment.name, TEACHER) in pairwise(parts)
    )
