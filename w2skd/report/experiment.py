"""An experiment as read for a report: its runs by arm and seed, its metric, and its resolved thresholds."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from w2skd.errors import RunDirError
from w2skd.recipe.arms import HELPED, REFERENCE, TEACHER
from w2skd.recipe.evaluation import Metric
from w2skd.recipe.load import RecipeTypes
from w2skd.recipe.schema import Recipe
from w2skd.recipe.threshold import Threshold
from w2skd.records.rundir import RunRecord, find_runs, read_run
from w2skd.report import units
from w2skd.report.crossing import best, events, teacher_level, validations
from w2skd.report.scoring import difference, scoring_of

_EXPECTED = f"{REFERENCE}/seed<n>/ and {HELPED}/seed<n>/ with a status.json each"


@dataclass(frozen=True)
class Experiment:
    """The runs of an experiment, at least one, in a fixed order."""

    runs: tuple[RunRecord, ...]

    def __post_init__(self) -> None:
        assert self.runs, "an experiment needs a run"

    @property
    def teacher(self) -> RunRecord | None:
        """The run that trained the teacher, or None if it is not part of the experiment."""
        return next((run for run in self.runs if run.arm == TEACHER), None)

    @property
    def recipe(self) -> Recipe:
        """The recipe that sets metric and thresholds: that of the first student run, or of the teacher without one."""
        return (*self.students, *self.runs)[0].recipe

    @property
    def students(self) -> tuple[RunRecord, ...]:
        """All runs except the teacher's."""
        return tuple(run for run in self.runs if run.arm != TEACHER)

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

    def arm(self, name: str) -> dict[int, RunRecord]:
        """Return the runs of an arm by seed."""
        return {run.seed: run for run in self.runs if run.arm == name}


@dataclass(frozen=True)
class Level:
    """A threshold resolved to a number, or the reason why it could not be resolved."""

    threshold: Threshold
    value: float | None
    reason: str | None = None


def label(run: RunRecord) -> str:
    """Return a run's path within its experiment."""
    return TEACHER if run.arm == TEACHER else f"{run.arm}/seed{run.seed}"


def read_experiment(path: Path, types: RecipeTypes) -> Experiment:
    """Read all runs of an experiment, finished or not.

    Raises:
        RunDirError: `path` is missing, is a single run, or holds no baseline or w2s run; a run is damaged; or two runs
            were scored differently. The teacher's own run is exempt: its curve enters no number, since every w2s
            run evaluates its teacher as it evaluates its student.
    """
    if not path.is_dir():
        raise RunDirError(f"{path}: no such folder; expected an experiment with {_EXPECTED}")
    if (path / "status.json").exists():
        above = path.resolve().parent if path.resolve().name == TEACHER else path.resolve().parent.parent
        raise RunDirError(f"{path}: a single run; pass its experiment: {above}")
    runs = tuple(read_run(run.within(path), types) for run in find_runs(path))
    if any(run.arm != TEACHER for run in runs):
        found = Experiment(runs)
        _check_scored_alike(path, found.students)
        return found
    if runs:
        raise RunDirError(f"{path}: holds only a teacher; expected {_EXPECTED}")
    if any(path.glob("seed*/status.json")):
        raise RunDirError(f"{path}: one arm of an experiment; pass the experiment: {path.resolve().parent}")
    raise RunDirError(f"{path}: holds no runs; expected {_EXPECTED}")


def _check_scored_alike(path: Path, runs: Sequence[RunRecord]) -> None:
    first = runs[0]
    for run in runs[1:]:
        found = difference(scoring_of(first), scoring_of(run))
        if found is not None:
            what = found.between(label(first), label(run))
            raise RunDirError(f"{path}: runs are scored differently and cannot be compared: {what}")


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
    levels = teacher_levels(experiment) if of_teacher else baseline_bests(experiment)
    if not levels:
        return Level(threshold, None, (_no_teacher_level if of_teacher else _no_baseline_best)(experiment))
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


def teacher_levels(experiment: Experiment) -> dict[int, float]:
    """Return the teacher's level by seed, as each w2s run measured it."""
    levels = {seed: teacher_level(run.rows, experiment.metric) for seed, run in experiment.arm(HELPED).items()}
    return {seed: level for seed, level in levels.items() if level is not None}


def baseline_bests(experiment: Experiment) -> dict[int, float]:
    """Return the best score of each baseline by seed."""
    scores = {seed: best(run.rows, experiment.metric) for seed, run in experiment.arm(REFERENCE).items()}
    return {seed: score.value for seed, score in scores.items() if score is not None}


def teacher_doubt(experiment: Experiment) -> str | None:
    """Return why the teacher knows nothing, as the first run that doubted it recorded; None without doubt."""
    found = (event.details.get("doubt") for run in experiment.students for event in events(run.rows, "teacher"))
    return next((doubt for doubt in found if isinstance(doubt, str)), None)


def _no_teacher_level(experiment: Experiment) -> str:
    if any(events(run.rows, "teacher") for run in experiment.arm(HELPED).values()):
        return f"the teacher was measured, but its {experiment.metric.name} is not finite"
    return f"no {HELPED} run has evaluated its teacher yet"


def _no_baseline_best(experiment: Experiment) -> str:
    if any(validations(run.rows) for run in experiment.arm(REFERENCE).values()):
        return f"the baseline was validated, but its {experiment.metric.name} was never finite"
    return f"no {REFERENCE} run has a validation yet"


def teacher_is_ours(experiment: Experiment) -> bool:
    """Return whether the w2s runs used the teacher that this experiment trained, according to the records."""
    if experiment.teacher is None:
        return False
    made = {event.details.get("fingerprint") for event in events(experiment.teacher.rows, "finished")}
    runs = experiment.arm(HELPED).values()
    used = {event.details.get("fingerprint") for run in runs for event in events(run.rows, "teacher")}
    others_used = made and None not in made and used - made - {None}
    return all(_inside(run) for run in runs) and not others_used


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
    experiment = run.path.resolve().parent.parent
    parts = checkpoint.parts
    return (experiment / TEACHER) in (checkpoint.resolve(), *checkpoint.resolve().parents) or (
        (experiment.name, TEACHER) in pairwise(parts)
    )
