"""Publish the records of an experiment without its weights, from which every table can be rebuilt."""

import shutil
from collections.abc import Collection
from pathlib import Path

from w2skd.errors import RunDirError
from w2skd.platform.files import writing
from w2skd.recipe.flat import flatten
from w2skd.recipe.load import RecipeTypes
from w2skd.records.rundir import RunRecord
from w2skd.report.contract import Report
from w2skd.report.experiment import read_experiment
from w2skd.report.render import write_report

RECORDS = ("recipe.yaml", "environment.json", "status.json", "metrics.jsonl")


def publish(experiment: Path, target: Path, types: RecipeTypes, allow_different: Collection[str] = ()) -> Report:
    """Copy the records and the last picture of every run to `target`, and write the report there.

    `target` must be new, empty or an earlier publication. Absolute paths of the experiment and of the files that its
    recipe names (data, teachers, networks) are shortened to ``runs/<name>``, ``data/<name>`` and the like.

    Raises:
        RunDirError: `experiment` holds no runs, or `target` is the experiment itself or holds weights.
        OutputError: `target` cannot be written.
    """
    runs = read_experiment(experiment, types).runs
    if target.resolve() == experiment.resolve() or any(target.glob("**/model.safetensors")):
        raise RunDirError(f"{target}: holds runs with weights; choose another folder for the records")
    for run in runs:
        folder = target / run.path.relative_to(experiment)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name in RECORDS:
                text = (run.path / name).read_text(encoding="utf-8")
                (folder / name).write_text(_without_places(text, run, experiment), encoding="utf-8")
            for stale in folder.glob("pictures/step_*.png"):
                stale.unlink()
            if run.picture is not None:
                (folder / run.picture).parent.mkdir(exist_ok=True)
                shutil.copyfile(run.path / run.picture, folder / run.picture)
    return write_report(target, types, allow_different=allow_different)


def _without_places(text: str, run: RunRecord, experiment: Path) -> str:
    places = {str(experiment.resolve()): f"runs/{experiment.resolve().name}"}
    values = flatten(run.recipe.model_dump(mode="json"))
    for key, place in run.recipe.places.items():
        value = str(values.get(key) or "")
        path = Path(value.removeprefix(place.prefix))
        folder = path if place.depth == 1 else path.parent
        if value.startswith(place.prefix) and path.is_absolute() and folder.name:
            places[str(folder)] = f"{place.shown_as}/{folder.name}"
    # Longest first, because one folder may contain another.
    for folder_name, name in sorted(places.items(), key=lambda item: -len(item[0])):
        text = text.replace(folder_name, name)
    return text
