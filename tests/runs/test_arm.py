"""Runs with non-finite steps, on a full disk, or next to another process."""

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    assert_same_course,
    contents,
    done,
    events,
    largest_file,
    refused,
    run_in,
    status,
    stopped_at,
    w2skd,
    weights,
)

from w2skd.records.rundir import RunDir
from w2skd.runs import arm as arm_module
from w2skd.tasks.classification.task import ClassificationTask
from w2skd.training.checkpoint import load_checkpoint


def test_a_learning_rate_beyond_reason_stops_the_run(recipe: Path, out: Path) -> None:
    extreme = ("--set", "train.optimizer.lr=1e20", "--set", "train.max_non_finite_steps=4")
    said = w2skd("distill", "--baseline", "--recipe", recipe, "--out", out, *extreme)
    run = run_in(out, "baseline")
    assert said.code == 1
    (line,) = said.problems
    assert re.fullmatch(
        r"loss or gradient was non-finite for \d+ steps in a row, last at step \d+, at learning rate [\d.]+e\+19; "
        rf"last good checkpoint: {run}/checkpoints/last\.pt of step \d+\n",
        line,
    )
    assert status(run)["state"] == "failed"
    assert status(run)["reason"] == line.strip()
    assert events(run, "non_finite")
    assert load_checkpoint(run / "checkpoints" / "last.pt")["engine"]["step"] in (3, 5)


def test_a_few_bad_steps_are_borne(recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ClassificationTask.losses

    def poisoned(self: ClassificationTask, student: Any, teacher: Any, batch: Any) -> Any:
        losses = original(self, student, teacher, batch)
        if batch.step in (10, 11):
            losses.task["cross_entropy"] = losses.task["cross_entropy"] * torch.nan
        return losses

    monkeypatch.setattr(ClassificationTask, "losses", poisoned)
    said = done("distill", "--baseline", "--recipe", recipe, "--out", out)
    (event,) = events(run_in(out, "baseline"), "non_finite")
    assert event.details["steps"] == [10, 11]
    assert len(event.details["ids"]) == 32
    assert "not finite at step 10, 11: update suppressed" in said.err
    assert all(tensor.isfinite().all() for tensor in weights(run_in(out, "baseline")).values())


def test_a_disk_that_fills_up_costs_what_came_after_the_last_checkpoint(
    distill: Any, out: Path, experiment: Path
) -> None:
    stopped_at(14, *distill)
    size = (run_in(out) / "checkpoints" / "last.pt").stat().st_size
    with largest_file(size // 2):
        line = refused(*distill, code=1)
    assert line == f"cannot write {run_in(out)}/checkpoints/next.pt: File too large"
    assert status(run_in(out))["state"] == "failed"
    assert status(run_in(out))["reason"] == line
    done(*distill)
    assert_same_course(run_in(out), run_in(experiment))
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]


def test_a_disk_too_full_for_a_row_is_reported_in_one_line(
    recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(out, "baseline")
    monkeypatch.setattr(arm_module, "save_checkpoint", lambda *_, **__: None)
    with largest_file(3000):  # enough for the recipe, not for all rows
        line = refused("distill", "--baseline", "--recipe", recipe, "--out", out, code=1)
    assert line == f"cannot write {run}/metrics.jsonl: File too large"
    assert status(run)["reason"] == line


@pytest.mark.parametrize("name", ["recipe.yaml", "status.json"])
def test_a_folder_that_turns_read_only_is_reported(
    name: str, recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tempfile.mkstemp

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if kwargs["prefix"] == f".{name}.":
            raise OSError(30, "Read-only file system")
        return original(*args, **kwargs)

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    line = refused("distill", "--baseline", "--recipe", recipe, "--out", out, code=1)
    assert line == f"cannot write {run_in(out, 'baseline')}/{name}: Read-only file system"


def test_an_output_folder_that_cannot_be_is_reported(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    line = refused("train-teacher", "--recipe", recipe, "--out", tmp_path / "file" / "runs", code=1)
    assert line == f"cannot write {tmp_path}/file/runs/teacher: Not a directory"
    assert contents(tmp_path) == {"file": b"mine"}


def test_a_run_is_locked_while_it_trains_and_free_afterwards(distill: Any, out: Path) -> None:
    stopped_at(5, *distill)
    run = RunDir(run_in(out))
    run.lock()
    run.close()
