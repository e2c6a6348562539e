"""Reports on synthetic experiments whose every figure can be worked out by hand."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import STUDENT_FLOPS, TEACHER_FLOPS, MakeRun

from w2skd.errors import RunDirError
from w2skd.recipe.load import RECIPE_TYPES
from w2skd.recipe.threshold import Threshold
from w2skd.records import EventRow
from w2skd.report.contract import Report, ThresholdReport
from w2skd.report.experiment import METRICS
from w2skd.report.render import as_json
from w2skd.report.speedup import build_report
from w2skd.report.summary import crossing_summary
from w2skd.rundir import read_run

SLOW = [0.2, 0.3, 0.4, 0.5, 0.6, 0.66, 0.68, 0.71, 0.72, 0.72]
FAST = [0.3, 0.5, 0.66, 0.68, 0.71, 0.72, 0.73, 0.73, 0.73, 0.74]


def threshold(report: Report, name: str) -> ThresholdReport:
    return next(found for found in report.thresholds if found.name == name)


def mentions(report: Report, *words: str) -> bool:
    return any(all(word in line for word in words) for line in report.warnings)


def two_arms(make_run: MakeRun, seeds: int = 1, **options: Any) -> None:
    for seed in range(seeds):
        make_run("baseline", seed, SLOW, **options)
        make_run("w2s", seed, FAST, off_epoch=4, **options)


def test_speedups_by_hand(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    found = threshold(build_report(experiment), "teacher")
    baseline, w2s = found.first["baseline"][0], found.first["w2s"][0]
    assert found.value == 0.65
    assert baseline is not None
    assert w2s is not None
    assert (baseline.epoch, baseline.step, baseline.examples, baseline.seconds) == (6.0, 60, 480, 30.0)
    assert (w2s.epoch, w2s.step, w2s.examples, w2s.seconds) == (3.0, 30, 240, pytest.approx(18.0))
    assert found.speedup["epochs"] == found.speedup["steps"] == found.speedup["examples"] == {0: 2.0}
    assert found.speedup["seconds"] == {0: pytest.approx(30 / 18, abs=1e-6)}
    flops = 3 * STUDENT_FLOPS * 480 / ((3 * STUDENT_FLOPS + TEACHER_FLOPS) * 240)
    assert found.speedup["flops"] == {0: pytest.approx(flops, abs=1e-6)}
    assert (found.seeds, found.pairs) == ((0,), (0,))


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
    assert (found["schema"], found["metric"], found["higher_is_better"]) == (1, "top1", True)
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
    assert only["speedup"]["epochs"] == {"0": 2.0}
    assert only["speedup"]["steps"] == {"0": 2.0}
    assert only["speedup"]["seconds"] == {"0": pytest.approx(1.666667)}


def test_the_median_is_over_complete_pairs_and_says_whom_it_leaves_out(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run, seeds=2)
    make_run("baseline", 2, SLOW)
    make_run("w2s", 2, [0.1] * 10)
    report = build_report(experiment)
    found = threshold(report, "teacher")
    spread = found.speedup_over_seeds["epochs"]
    assert spread is not None
    assert (spread.median, spread.min, spread.max, spread.seeds) == (2.0, 2.0, 2.0, 2)
    assert (found.seeds, found.pairs) == ((0, 1, 2), (0, 1))
    assert found.first["w2s"][2] is None
    last = found.not_reached["w2s"][2]
    assert last is not None
    assert last.epoch == 10.0
    assert "median of 2 of 3 seeds" in found.verdict
    assert "seed 2: w2s not reached by epoch 10 (baseline at epoch 6)" in found.verdict
    assert mentions(report, "teacher (65.0%)", "w2s did not get there with seed 2")


def test_median_and_range_over_different_seeds(make_run: MakeRun, experiment: Path) -> None:
    for seed, epochs in enumerate((2, 3, 6)):
        make_run("baseline", seed, [0.1] * 5 + [0.9])
        make_run("w2s", seed, [0.1] * (epochs - 1) + [0.9])
    spread = threshold(build_report(experiment), "0.7").speedup_over_seeds["epochs"]
    assert spread is not None
    assert (spread.median, spread.min, spread.max, spread.seeds) == (2.0, 1.0, 3.0, 3)


def test_a_slower_run_is_called_slower(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, FAST)
    make_run("w2s", 0, SLOW)
    verdict = threshold(build_report(experiment), "teacher").verdict
    assert verdict.startswith("0.50x in epochs")
    assert "slower than the baseline" in verdict


def test_no_pair_gives_no_figure(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, [0.1] * 4)
    make_run("w2s", 0, FAST)
    found = threshold(build_report(experiment), "teacher")
    assert found.speedup["epochs"] == {}
    assert found.speedup_over_seeds["epochs"] is None
    assert found.verdict == "no speed-up can be given; seed 0: baseline not reached by epoch 4 (w2s at epoch 3)"


def test_the_teachers_training_is_charged_to_every_w2s_run(make_run: MakeRun, experiment: Path) -> None:
    make_run("teacher", 0, [0.5, 0.65])  # 20 steps: 10 s, 160 examples
    two_arms(make_run)
    report = build_report(experiment)
    found = threshold(report, "teacher")
    assert report.teacher is not None
    assert (report.teacher.seconds, report.teacher.flops) == (10.0, 3 * TEACHER_FLOPS * 160)
    assert found.speedup_with_teacher["seconds"] == {0: pytest.approx(30 / (18 + 10), abs=1e-6)}
    w2s = (3 * STUDENT_FLOPS + TEACHER_FLOPS) * 240 + 3 * TEACHER_FLOPS * 160
    assert found.speedup_with_teacher["flops"] == {0: pytest.approx(3 * STUDENT_FLOPS * 480 / w2s, abs=1e-6)}
    assert "1.07x with the teacher's training" in found.verdict
    assert not mentions(report, "training cost")


def test_a_teacher_from_outside_is_said_to_cost_an_unknown_amount(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    report = build_report(experiment)
    assert report.teacher is not None
    assert not report.teacher.in_experiment
    assert threshold(report, "teacher").speedup_with_teacher == {"seconds": {}, "flops": {}}
    assert mentions(report, "the teacher's training cost is not in this report")


@pytest.mark.parametrize(
    ("checkpoint", "inside"),
    [
        ("elsewhere/model.safetensors", False),
        ("runs/tiny/teacher/model.safetensors", True),
        ("{experiment}/teacher", True),
    ],
)
def test_a_named_checkpoint_may_be_the_experiments_own(
    make_run: MakeRun, experiment: Path, checkpoint: str, inside: bool
) -> None:
    make_run("teacher", 0, [0.5, 0.65])
    two_arms(make_run, overrides=[f"teacher.checkpoint={checkpoint.format(experiment=experiment)}"])
    report = build_report(experiment)
    assert report.teacher is not None
    assert report.teacher.in_experiment is inside
    assert mentions(report, "training cost is not in this report") is not inside


def test_thresholds_resolve_to_levels(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run, thresholds="[teacher, 0.5*teacher, 0.7, 0.98*baseline]")
    make_run("baseline", 1, [0.8], thresholds="[teacher, 0.5*teacher, 0.7, 0.98*baseline]")
    levels = {found.name: found.value for found in build_report(experiment).thresholds}
    median_best = (0.72 + 0.8) / 2
    assert levels == pytest.approx(
        {"teacher": 0.65, "0.5*teacher": 0.325, "0.7": 0.7, "0.98*baseline": 0.98 * median_best}
    )


def test_shares_of_a_metric_where_lower_is_better_lie_on_the_worse_side(make_run: MakeRun, experiment: Path) -> None:
    options: dict[str, Any] = {"metric": "loss", "teacher": 1.9, "thresholds": "[teacher, 0.95*teacher, 0.8*baseline]"}
    make_run("baseline", 0, [4.0, 3.0, 2.4, 1.9, 1.6], **options)
    make_run("w2s", 0, [3.0, 1.9, 1.7, 1.7, 1.7], **options)
    report = build_report(experiment)
    assert not report.higher_is_better
    levels = {found.name: found.value for found in report.thresholds}
    assert levels == pytest.approx({"teacher": 1.9, "0.95*teacher": 2.0, "0.8*baseline": 2.0})
    assert threshold(report, "teacher").speedup["epochs"] == {0: 2.0}


def test_a_threshold_without_a_level_says_why(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, SLOW)
    report = build_report(experiment)
    found = threshold(report, "teacher")
    assert found.value is None
    assert found.first == {"baseline": {0: None}, "w2s": {}}
    assert found.verdict == "cannot be judged: no w2s run yet that measured its teacher"
    assert threshold(report, "0.98*baseline").value == pytest.approx(0.98 * 0.72)
    shutil.rmtree(experiment / "baseline")
    make_run("w2s", 0, FAST)
    assert threshold(build_report(experiment), "0.98*baseline").reason == "no baseline run yet with a validation"


def test_thresholds_can_be_asked_for(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    report = build_report(experiment, [Threshold.parse(0.5)])
    assert [(found.name, found.speedup["epochs"]) for found in report.thresholds] == [("0.5", {0: 2.0})]


def test_the_interval_spans_what_lies_between_validations(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    found = threshold(build_report(experiment), "teacher")
    assert found.speedup_interval[0] == (pytest.approx(5 / 3, abs=1e-6), 3.0)
    assert (found.grid["baseline"][0].steps, found.grid["w2s"][0].epochs) == (10, 1.0)


def test_crossings_within_one_validation_are_called_so(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, [0.1, 0.9], thresholds="[0.7]")
    make_run("w2s", 0, [0.9, 0.9], thresholds="[0.7]")
    report = build_report(experiment)
    assert threshold(report, "0.7").speedup_interval[0] == (1.0, None)
    assert mentions(report, "within one validation of each other with seed 0", "anything above 1.00x")


def test_crossings_two_validations_apart_are_not_called_so(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, [0.1, 0.1, 0.9], thresholds="[0.7]")
    make_run("w2s", 0, [0.9, 0.9, 0.9], thresholds="[0.7]")
    assert not mentions(build_report(experiment), "within one validation")


@pytest.mark.parametrize(
    ("teacher", "words"), [(0.5, "28.6% weaker than the target"), (0.71, "1.4% better than the target"), (0.65, None)]
)
def test_the_working_band_of_teachers(make_run: MakeRun, experiment: Path, teacher: float, words: str | None) -> None:
    two_arms(make_run, teacher=teacher, thresholds="[0.7]")
    report = build_report(experiment)
    found = threshold(report, "0.7")
    assert found.teacher_gap == pytest.approx((teacher - 0.7) / 0.7, abs=1e-6)
    assert (words in (found.note or "")) if words else found.note is None
    assert mentions(report, words or "the target") is (words is not None)


def test_the_working_band_of_a_metric_where_lower_is_better(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run, metric="loss", teacher=0.7, thresholds="[0.5]")
    assert threshold(build_report(experiment), "0.5").teacher_gap == pytest.approx(-0.4)


def test_what_a_run_report_says(make_run: MakeRun, experiment: Path) -> None:
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


def test_a_clean_experiment_of_three_seeds_has_nothing_to_warn_of(make_run: MakeRun, experiment: Path) -> None:
    make_run("teacher", 0, [0.5, 0.65])
    two_arms(make_run, seeds=3)
    assert build_report(experiment).warnings == ()


def test_warnings_about_recipes(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, SLOW, overrides=["data.root=here", "train.optimizer.lr=0.1"])
    make_run("w2s", 0, FAST, overrides=["data.root=there", "train.optimizer.lr=0.2"])
    report = build_report(experiment)
    assert mentions(report, "not trained alike", "train.optimizer.lr is 0.1 in baseline/seed0, 0.2 in w2s/seed0")
    assert not mentions(report, "data.root")


def test_warnings_about_distillation(make_run: MakeRun, experiment: Path) -> None:
    make_run("w2s", 0, FAST, overrides=["distill.weight=1.0"], teacher=0.6)
    make_run("w2s", 1, FAST, overrides=["distill.weight=2.0"], teacher=0.7)
    report = build_report(experiment)
    assert mentions(report, "not distilled alike", "distill.weight is 1.0 in w2s/seed0, 2.0 in w2s/seed1")
    assert mentions(report, "teachers of different levels", "60.0% (seed 0), 70.0% (seed 1)")
    assert threshold(report, "teacher").value == pytest.approx(0.65)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("data_fingerprint", "beef", "did not learn from the same data"),
        ("device", "cuda:0", "seconds are not comparable"),
        ("threads", 2, "seconds are not comparable"),
        ("ranks", 4, "seconds are not comparable"),
        ("w2skd", "0.2.0", "different software"),
    ],
)
def test_warnings_about_environments(make_run: MakeRun, experiment: Path, key: str, value: object, words: str) -> None:
    make_run("baseline", 0, SLOW)
    make_run("w2s", 0, FAST, environment={key: value})
    report = build_report(experiment)
    assert mentions(report, words, f"{key} is ", f"{value} in w2s/seed0")


def test_an_environment_that_lacks_keys_is_no_difference(make_run: MakeRun, experiment: Path) -> None:
    path = make_run("baseline", 0, SLOW)
    (path / "environment.json").write_text("{}")
    make_run("w2s", 0, FAST)
    report = build_report(experiment)
    assert not mentions(report, "seconds are not comparable")
    assert threshold(report, "teacher").speedup["flops"] == {}
    assert threshold(report, "teacher").speedup["epochs"] == {0: 2.0}


def test_warnings_about_seeds_and_states(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    make_run("baseline", 1, SLOW, state="stopped")
    report = build_report(experiment)
    assert mentions(report, "a single seed: one run is an anecdote")
    assert mentions(report, "seed 1 in the baseline arm only")
    assert mentions(report, "baseline/seed1 is not finished: stopped at step 100 of 140")
    assert threshold(report, "teacher").seeds == (0,)
    make_run("w2s", 1, FAST)
    assert mentions(build_report(experiment), "2 seeds only")


def test_warnings_about_incidents(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, SLOW, extra=[EventRow(50, "resumed", {"lost_steps": 7}), EventRow(60, "resumed", {})])
    make_run("w2s", 0, FAST, extra=[EventRow(20, "non_finite", {"steps": [17, 18], "ids": [1, 2]})])
    report = build_report(experiment)
    assert mentions(report, "baseline/seed0 was resumed 2 times, 7 steps were done again")
    assert mentions(report, "w2s/seed0 met a non-finite loss or gradient at 2 steps")


def test_a_run_that_has_only_begun_is_reported(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    path = make_run("w2s", 1, [], state="running")
    (path / "metrics.jsonl").unlink()
    make_run("baseline", 1, SLOW)
    report = build_report(experiment)
    run = next(run for run in report.runs if run.run == "w2s/seed1")
    assert (run.best, run.final, run.reached) == (None, None, None)
    assert "seed 1: w2s not validated yet (baseline at epoch 8)" in threshold(report, "0.7").verdict


def test_times_are_told_in_steps_when_the_length_is(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, SLOW, overrides=["train.steps=100"])
    make_run("w2s", 0, [0.1] * 10, overrides=["train.steps=100"])
    report = build_report(experiment)
    assert report.unit == "step"
    assert "w2s not reached by step 100 (baseline at step 60)" in threshold(report, "teacher").verdict


def test_the_same_runs_give_the_same_bytes_wherever_they_lie(make_run: MakeRun, experiment: Path) -> None:
    make_run("teacher", 0, [0.5, 0.65])
    two_arms(make_run, seeds=2)
    before = as_json(build_report(experiment))
    moved = experiment.parent / "elsewhere"
    shutil.copytree(experiment, moved)
    assert as_json(build_report(moved)) == before


def test_errors_say_what_was_looked_for(make_run: MakeRun, experiment: Path) -> None:
    with pytest.raises(RunDirError, match="no such folder; looked for an experiment, with baseline/seed<n>/"):
        build_report(experiment / "nowhere")
    with pytest.raises(RunDirError, match="holds no runs; looked for baseline/seed<n>/"):
        build_report(experiment)
    run = make_run("baseline", 0, SLOW)
    with pytest.raises(RunDirError, match=f"a single run; give the experiment, the folder above: {experiment}$"):
        build_report(run)
    with pytest.raises(RunDirError, match=f"one arm of an experiment; give the folder above: {experiment}$"):
        build_report(run.parent)
    shutil.rmtree(run.parent)
    teacher = make_run("teacher", 0, [0.5])
    with pytest.raises(RunDirError, match="holds a teacher, but no run to report on yet"):
        build_report(experiment)
    with pytest.raises(RunDirError, match=f"the folder above: {experiment}$"):
        build_report(teacher)


def test_damaged_records_are_an_error_that_names_the_run(make_run: MakeRun, experiment: Path) -> None:
    (make_run("baseline", 0, SLOW) / "metrics.jsonl").write_text("no row\n")
    with pytest.raises(RunDirError, match="baseline/seed0: its records are damaged"):
        build_report(experiment)


def test_summary_of_a_w2s_run_beside_its_baseline(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    summary = crossing_summary(read_run(experiment / "w2s" / "seed0"), experiment)
    lines = {line.name: line for line in summary.lines}
    assert list(lines) == ["teacher", "0.7", "0.98*baseline"]
    assert lines["teacher"].speedup == 2.0
    assert lines["0.7"].reached is not None
    assert lines["0.7"].baseline is not None
    assert (lines["0.7"].reached.epoch, lines["0.7"].baseline.epoch) == (5.0, 8.0)
    assert summary.baseline_run == "baseline/seed0"
    assert summary.distillation_off is not None
    assert summary.distillation_off.epoch == 4.0


def test_summary_of_a_run_alone(make_run: MakeRun, experiment: Path) -> None:
    run = read_run(make_run("w2s", 0, FAST))
    for place in (None, experiment):
        summary = crossing_summary(run, place)
        assert summary.baseline_run is None
        assert [line.value for line in summary.lines] == [0.65, 0.7, None]
        assert [line.speedup for line in summary.lines] == [None, None, None]


def test_summary_of_a_baseline_and_of_a_teacher(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    summary = crossing_summary(read_run(experiment / "baseline" / "seed0"), experiment)
    assert summary.baseline_run is None
    assert [line.reached is not None for line in summary.lines] == [True, True, True]
    summary = crossing_summary(read_run(make_run("teacher", 0, [0.5, 0.65])), experiment)
    assert summary.lines == ()
    assert summary.best is not None
    assert summary.best.value == 0.65


def test_summary_survives_a_damaged_sibling(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    (experiment / "baseline" / "seed0" / "metrics.jsonl").write_text("no row\n")
    summary = crossing_summary(read_run(experiment / "w2s" / "seed0"), experiment)
    assert summary.baseline_run is None
    assert summary.lines[1].reached is not None


def test_every_task_says_which_way_its_metrics_go() -> None:
    assert set(METRICS) == set(RECIPE_TYPES)


def test_reports_do_without_torch() -> None:
    code = (
        "import sys, w2skd.report.render, w2skd.report.summary; "
        "sys.exit(', '.join({'torch', 'matplotlib'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
