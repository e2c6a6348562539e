"""Functions that take recipe types, called with all installed types."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import w2skd.recipe.load
from w2skd.recipe.schema import Recipe
from w2skd.recipe.threshold import Threshold
from w2skd.records import rundir
from w2skd.report import experiment, render, speedup, summary
from w2skd.report import publish as publishing
from w2skd.report.contract import Report
from w2skd.tasks.catalog import recipe_types


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    return w2skd.recipe.load.load_recipe(name, overrides, recipe_types())


def validate_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    return w2skd.recipe.load.validate_recipe(values, where, recipe_types())


def read_run(path: Path) -> rundir.RunRecord:
    return rundir.read_run(path, recipe_types())


def build_task(recipe: Recipe, **options: Any) -> Any:
    return recipe.task_type()(recipe, **options)


def read_experiment(path: Path) -> experiment.Experiment:
    return experiment.read_experiment(path, recipe_types())


def build_report(
    path: Path, thresholds: Sequence[Threshold] | None = None, allow_different: Sequence[str] = ()
) -> Report:
    return speedup.build_report(path, recipe_types(), thresholds, allow_different)


def write_report(path: Path, thresholds: Sequence[Threshold] | None = None) -> Report:
    return render.write_report(path, recipe_types(), thresholds)


def publish(path: Path, target: Path) -> Report:
    return publishing.publish(path, target, recipe_types())


def crossing_summary(run: rundir.RunRecord, path: Path | None) -> summary.CrossingSummary:
    return summary.crossing_summary(run, path, recipe_types())
