"""Reports on synthetic experiments whose numbers can be computed by hand."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from known import build_report
from synthetic_runs import FAST, SLOW, STUDENT_FLOPS, TEACHER_FLOPS, MakeRun, mentions, threshold, two_arms

from w2skd.recipe.threshold import Threshold
from w2skd.report.render import as_json


def test_speedups_by_hand(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    found = threshold(build_report(experiment), "teacher")
    baseline, w2s = found.first["baseline"][0], found.first["w2s"][0]
    assert found.value == 0.65
    assert baseline is not None
    assert w2s is not None
    assert (baseline.epoch, baseline.step, baseline.examples, baseline.seconds) == (6.0, 60, 480, 30.0)
    assert (w2s.epoch, w2s.step, w2s.examples, w2s.seconds) == (3.0, 30, 240, pytest.approx(18.0))
    assert (
        found.arms["w2s"].speedup["epochs"]
        == found.arms["w2s"].speedup["steps"]
        == found.arms["w2s"].speedup["examples"]
        == {0: 2.0}
    )
    assert found.arms["w2s"].speedup["seconds"] == {0: pytest.approx(30 / 18, abs=1e-6)}
    flops = 3 * STUDENT_FLOPS * 480 / ((3 * STUDENT_FLOPS + TEACHER_FLOPS) * 240)
    assert found.arms["w2s"].speedup["flops"] == {0: pytest.approx(flops, abs=1e-6)}
    assert (found.arms["w2s"].seeds, found.arms["w2s"].pairs) == ((0,), (0,))


def test_after_the_switch_the_teacher_costs_nothing_more(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    found = threshold(build_report(experiment), "0.7")
    place = found.first["w2s"][0]
    assert place is not None
    assert (place.epoch, place.seconds) == (5.0, pytest.approx(0.5 * 50 + 0.1 * 40))
    assert place.flops == 3 * STUDENT_FLOPS * 400 + TEACHER_FLOPS * 320


def test_the_json_keeps_the_contract_of_the_design(make_run: MakeRun, experiment: Path) -> None:
    """What other programs rely on: keys, nesting, seeds as text, null for not reached, no entry for half a pair."""
    make_run("baseline", 0, SLOW, thresholds="[teacher]")
    make_run("w2s", 0, FAST, thresholds="[teacher]", off_epoch=4)
    for arm in ("baseline", "w2s"):
        make_run(arm, 1, [0.1, 0.2], thresholds="[teacher]")
    found = json.loads(as_json(build_report(experiment)))
    assert (found["schema"], found["metric"], found["higher_is_better"]) == (2, "top1", True)
    assert found["reference"] == "baseline"
    assert len(found["thresholds"]) == 1
    only = found["thresholds"][0]
    assert (only["name"], only["value"]) == ("teacher", 0.65)
    assert set(only["first"]) == {"baseline", "w2s"}
    for arm, step in (("baseline", 60), ("w2s", 30)):
        assert set(only["first"][arm]) == {"0", "1"}
        assert only["first"][arm]["1"] is None
        place = only["first"][arm]["0"]
        assert {"step", "epoch", "examples", "seconds"} <= set(place)
        assert (place["step"], place["epoch"], place["examples"]) == (step, step / 10, step * 8)
    assert only["arms"].keys() == {"w2s"}
    assert only["arms"]["w2s"]["speedup"]["epochs"] == {"0": 2.0}
    assert only["arms"]["w2s"]["speedup"]["steps"] == {"0": 2.0}
    assert only["arms"]["w2s"]["verdict"] == "no difference", "with seed 1, neither arm crossed"
    assert only["arms"]["w2s"]["speedup"]["seconds"] == {"0": pytest.approx(1.666667)}


def test_median_and_range_over_different_seeds(make_run: MakeRun, experiment: Path) -> None:
    for seed, epochs in enumerate((2, 3, 6)):
        make_run("baseline", seed, [0.1] * 5 + [0.9])
        make_run("w2s", seed, [0.1] * (epochs - 1) + [0.9])
    spread = threshold(build_report(experiment), "0.7").arms["w2s"].speedup_over_seeds["epochs"]
    assert spread is not None
    assert (spread.median, spread.min, spread.max, spread.seeds) == (2.0, 1.0, 3.0, 3)


def test_the_teachers_training_is_charged_to_every_w2s_run(make_run: MakeRun, experiment: Path) -> None:
    make_run("teacher", 0, [0.5, 0.65])  # 20 steps: 10 s, 160 examples
    two_arms(make_run)
    report = build_report(experiment)
    found = threshold(report, "teacher")
    assert report.teacher is not None
    assert (report.teacher.seconds, report.teacher.flops) == (10.0, 3 * TEACHER_FLOPS * 160)
    assert found.arms["w2s"].speedup_with_teacher["seconds"] == {0: pytest.approx(30 / (18 + 10), abs=1e-6)}
    w2s = (3 * STUDENT_FLOPS + TEACHER_FLOPS) * 240 + 3 * TEACHER_FLOPS * 160
    assert found.arms["w2s"].speedup_with_teacher["flops"] == {
        0: pytest.approx(3 * STUDENT_FLOPS * 480 / w2s, abs=1e-6)
    }
    assert "1.07x including teacher training" in found.arms["w2s"].summary
    assert not mentions(report, "training cost")


def test_thresholds_can_be_asked_for(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    report = build_report(experiment, [Threshold.parse(0.5)])
    assert [(found.name, found.arms["w2s"].speedup["epochs"]) for found in report.thresholds] == [("0.5", {0: 2.0})]


def test_contents_of_a_run_report(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    report = build_report(experiment)
    run = next(run for run in report.runs if run.run == "w2s/seed0")
    assert run.best is not None
    assert run.final is not None
    assert run.reached is not None
    assert run.distillation_off is not None
    assert (run.best.value, run.best.at.epoch, run.final.value) == (0.74, 10.0, 0.74)
    assert (run.state, run.reached.step, run.teacher_level) == ("finished", 100, 0.65)
    assert (run.distillation_off.epoch, run.distillation_off.reason) == (4.0, "surpassed")
    assert run.clock["evaluate"] == 30.0
    assert run.teacher_share == pytest.approx(4 / 54, abs=1e-6)
    assert run.curve.value == tuple(FAST)


def test_a_run_that_has_only_begun_is_reported(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    path = make_run("w2s", 1, [], state="running")
    (path / "metrics.jsonl").unlink()
    make_run("baseline", 1, SLOW)
    report = build_report(experiment)
    run = next(run for run in report.runs if run.run == "w2s/seed1")
    assert (run.best, run.final, run.reached) == (None, None, None)
    assert "seed 1: w2s has no validation yet (baseline at epoch 8)" in threshold(report, "0.7").arms["w2s"].summary


def test_times_are_in_steps_if_the_length_is(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, SLOW, overrides=["train.steps=100"])
    make_run("w2s", 0, [0.1] * 10, overrides=["train.steps=100"])
    report = build_report(experiment)
    assert report.unit == "step"
    assert "w2s did not reach it by step 100 (baseline at step 60)" in threshold(report, "teacher").arms["w2s"].summary


def test_the_same_runs_give_the_same_bytes_wherever_they_lie(make_run: MakeRun, experiment: Path) -> None:
    make_run("teacher", 0, [0.5, 0.65])
    two_arms(make_run, seeds=2)
    before = as_json(build_report(experiment))
    moved = experiment.parent / "elsewhere"
    shutil.copytree(experiment, moved)
    assert as_json(build_report(moved)) == before


def test_reports_do_without_torch() -> None:
    code = (
        "import sys, w2skd.report.render, w2skd.report.summary; "
        "sys.exit(', '.join({'torch', 'matplotlib'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
