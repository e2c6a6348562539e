"""The records of an experiment, without its weights: small enough to be kept, enough to make every table again."""

import shutil
from pathlib import Path

from w2skd.errors import RunDirError
from w2skd.files import writing
from w2skd.report.contract import Report
from w2skd.report.experiment import read_experiment
from w2skd.report.render import write_report

RECORDS = ("recipe.yaml", "environment.json", "status.json", "metrics.jsonl")


def publish(experiment: Path, target: Path) -> Report:
    """Copy every run's records to `target`, which must be new, empty or an earlier publication, and report there.

    Raises:
        RunDirError: `experiment` holds no runs, or `target` is the experiment itself or holds weights.
        OutputError: `target` cannot be written.
    """
    runs = read_experiment(experiment).runs
    if target.resolve() == experiment.resolve() or any(target.glob("**/model.safetensors")):
        raise RunDirError(f"{target}: holds runs with their weights; give another folder for the records")
    for run in runs:
        folder = target / run.path.relative_to(experiment)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name in RECORDS:
                shutil.copyfile(run.path / name, folder / name)
    return write_report(target)
