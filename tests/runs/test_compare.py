"""A whole experiment in one command, which resumes what already exists."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny import (
    assert_same_course,
    at_step,
    contents,
    done,
    events,
    recipe_file,
    refused,
    status,
    stopped_at,
    w2skd,
)

from w2skd.records.rundir import find_runs

RUNS = ["teacher", "baseline/seed0", "baseline/seed3", "w2s/seed0", "w2s/seed3"]


@pytest.fixture
def compare(tmp_path: Path) -> tuple[object, ...]:
    return ("compare", "--recipe", recipe_file(tmp_path), "--seeds", "0,3", "--out", tmp_path / "runs", "--quiet")


def found(experiment: Path) -> list[str]:
    return [str(run) for run in find_runs(experiment)]


def weights_of(experiment: Path) -> dict[str, bytes]:
    return {name: (experiment / name / "model.safetensors").read_bytes() for name in found(experiment)}


def test_everything_is_run_in_its_order_and_reported(compare: Any, tmp_path: Path, experiment: Path) -> None:
    out = tmp_path / "runs"
    said = done(*compare)
    announced = [line for line in said.err.splitlines() if line.startswith("[")]
    order = ["teacher", "baseline/seed0", "w2s/seed0", "w2s/seed3", "baseline/seed3"]  # alternating
    assert announced == [f"[{number}/5] {out}/{name}" for number, name in enumerate(order, start=1)]
    assert found(out) == RUNS
    assert all(status(out / name)["state"] == "finished" for name in RUNS)
    for name in ("teacher", "baseline/seed0", "w2s/seed0"):
        assert_same_course(out / name, experiment / name)
    assert events(out / "w2s/seed3", "teacher")[0].details["checkpoint"] == str(out / "teacher" / "model.safetensors")
    report = json.loads((out / "report" / "report.json").read_text())
    assert report["thresholds"][0]["first"].keys() == {"baseline", "w2s"}
    assert report["thresholds"][0]["first"]["w2s"].keys() == {"0", "3"}
    for word in ("Result", "teacher", "2.6", "0.98*baseline"):
        assert word in said.out

    before = {name: content for name, content in contents(out).items() if not name.startswith("report")}
    again = json.loads(done(*compare, "--json").out)
    assert again == report
    assert {name: content for name, content in contents(out).items() if not name.startswith("report")} == before


def test_a_given_teacher_is_not_trained(compare: Any, tmp_path: Path, experiment: Path) -> None:
    done(*compare, "--teacher", experiment / "teacher", "--seeds", "0")
    assert found(tmp_path / "runs") == ["baseline/seed0", "w2s/seed0"]
    assert_same_course(tmp_path / "runs" / "w2s" / "seed0", experiment / "w2s" / "seed0")


def test_a_given_teacher_that_is_not_there_is_reported_before_anything_runs(compare: Any, tmp_path: Path) -> None:
    line = refused(*compare, "--teacher", "/nowhere.pt", code=1)
    assert line == "teacher /nowhere.pt: no such checkpoint"
    assert not (tmp_path / "runs").exists()


def test_an_interrupted_experiment_goes_on_where_it_was(compare: Any, tmp_path: Path, experiment: Path) -> None:
    out = tmp_path / "runs"
    stops = iter(["in the baseline", "in the w2s run"])
    with at_step(14, lambda engine: next(stops, None) and os.kill(os.getpid(), signal.SIGUSR1)):
        assert w2skd(*compare, "--seeds", "0").code == 75
        assert found(out) == ["teacher", "baseline/seed0"]
        assert status(out / "baseline/seed0")["state"] == "stopped"
        assert w2skd(*compare, "--seeds", "0").code == 75
        assert found(out) == ["teacher", "baseline/seed0", "w2s/seed0"]
        done(*compare, "--seeds", "0")
    for name in found(out):
        assert_same_course(out / name, experiment / name)
        assert len(events(out / name, "resumed")) == (name != "teacher")


def test_a_part_that_is_missing_is_made_again(compare: Any, tmp_path: Path, experiment: Path) -> None:
    out = tmp_path / "runs"
    shutil.copytree(experiment, out)
    (out / "w2s/seed0/status.json").unlink()
    shutil.rmtree(out / "baseline/seed0")
    before = weights_of(experiment)
    done(*compare, "--seeds", "0")
    assert weights_of(out) == before
    assert_same_course(out / "w2s/seed0", experiment / "w2s/seed0")


def test_a_part_of_another_recipe_ends_it_before_its_turn(compare: Any, tmp_path: Path, experiment: Path) -> None:
    out = tmp_path / "runs"
    shutil.copytree(experiment, out)
    before = contents(out)
    said = w2skd(*compare, "--seeds", "0", "--set", "distill.weight=2.0")
    assert said.code == 2
    (line,) = said.problems
    assert line.startswith(f"{out}/w2s/seed0: holds a run of another recipe (distill.weight: 1.0 -> 2.0)")
    assert contents(out) == before


def test_a_stop_between_two_runs_is_heard(compare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from w2skd.runs import experiment as module

    original = module.train_arm

    def then_stop(*arguments: Any) -> Path:
        path = original(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return path

    monkeypatch.setattr(module, "train_arm", then_stop)
    assert w2skd(*compare).code == 75
    assert found(tmp_path / "runs") == ["teacher"]


def test_a_folder_that_looks_like_markup_is_announced_as_it_is(tmp_path: Path, experiment: Path) -> None:
    out = tmp_path / "[bold]runs[/nothing]"
    shutil.copytree(experiment, out)
    said = done("compare", "--recipe", recipe_file(tmp_path), "--seeds", "0", "--out", out)
    assert f"[2/3] {out}/baseline/seed0\n" in said.err
    assert str(out) in said.out.replace("\n", "")


def test_folders_beside_the_seeds_are_nobodys_run(tmp_path: Path, experiment: Path) -> None:
    shutil.copytree(experiment, tmp_path / "runs")
    shutil.copytree(experiment / "w2s/seed0", tmp_path / "runs/w2s/seed0.bak")
    assert found(tmp_path / "runs") == ["teacher", "baseline/seed0", "w2s/seed0"]
    done("speedup-report", tmp_path / "runs")


def test_a_run_is_left_stopped_when_the_experiment_is(compare: Any, tmp_path: Path) -> None:
    stopped_at(5, *compare)
    assert status(tmp_path / "runs" / "teacher")["state"] == "stopped"
    assert not (tmp_path / "runs" / "report").exists()
