"""An experiment's runs, and thresholds turned into levels."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from known import build_report
from synthetic_runs import FAST, GENERATED, SLOW, MakeRun, mentions, threshold, two_arms, two_arms_of_generated_images

from w2skd.errors import RunDirError
from w2skd.recipe.schema import ReportSection
from w2skd.tasks.catalog import recipe_types


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
    assert not report.metric.higher_is_better
    levels = {found.name: found.value for found in report.thresholds}
    assert levels == pytest.approx({"teacher": 1.9, "0.95*teacher": 2.0, "0.8*baseline": 2.0})
    assert threshold(report, "teacher").arms["w2s"].speedup["epochs"] == {0: 2.0}


def test_levels_of_a_distance_lie_on_the_worse_side_and_are_crossed_from_above(
    make_run: MakeRun, experiment: Path
) -> None:
    two_arms_of_generated_images(make_run)
    report = build_report(experiment)
    assert (report.metric.higher_is_better, report.unit) == (False, "step")
    levels = {found.name: found.value for found in report.thresholds}
    assert levels == pytest.approx({"teacher": 65.0, "60": 60.0, "0.98*baseline": 53.5 / 0.98})
    assert threshold(report, "60").arms["w2s"].speedup["steps"] == {0: 1.6}
    assert threshold(report, "60").teacher_gap == pytest.approx(-5 / 60, abs=1e-6)


def test_a_threshold_without_a_level_has_a_reason(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, SLOW)
    report = build_report(experiment)
    found = threshold(report, "teacher")
    assert found.value is None
    assert found.first == {"baseline": {0: None}, "w2s": {}}
    assert found.arms["w2s"].summary == "no result: no w2s run has evaluated its teacher yet"
    assert threshold(report, "0.98*baseline").value == pytest.approx(0.98 * 0.72)
    shutil.rmtree(experiment / "baseline")
    make_run("w2s", 0, FAST)
    assert threshold(build_report(experiment), "0.98*baseline").reason == "no baseline run has a validation yet"


def test_a_level_that_was_never_finite_has_a_reason(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, [math.nan, math.nan])
    make_run("w2s", 0, FAST, teacher=math.nan)
    report = build_report(experiment)
    assert threshold(report, "teacher").reason == "the teacher was measured, but its top1 is not finite"
    assert threshold(report, "0.98*baseline").reason == "the baseline was validated, but its top1 was never finite"


@pytest.mark.parametrize("level", [-0.0004, 0.0])
def test_a_share_of_what_is_not_above_0_is_no_level(make_run: MakeRun, experiment: Path, level: float) -> None:
    """Divided by 0.9, a distance below 0 would be a better one."""
    options = {"metric": "kid", "teacher": level, "thresholds": "[teacher, 0.9*teacher, 0.9*baseline]"}
    make_run("baseline", 0, [0.2, 0.1], recipe=GENERATED, **options)
    make_run("w2s", 0, [0.1, -0.001], recipe=GENERATED, **options)
    report = build_report(experiment)
    assert threshold(report, "teacher").value == level
    assert threshold(report, "0.9*baseline").value == pytest.approx(0.1 / 0.9)
    found = threshold(report, "0.9*teacher")
    assert found.value is None
    assert found.reason == (f"the teacher's kid is {level:g}, so a share of it is undefined (it must be above 0)")


def test_errors_name_what_was_expected(make_run: MakeRun, experiment: Path) -> None:
    with pytest.raises(RunDirError, match="no such folder; expected an experiment with <arm>/seed<n>/"):
        build_report(experiment / "nowhere")
    with pytest.raises(RunDirError, match="holds no runs; expected <arm>/seed<n>/"):
        build_report(experiment)
    run = make_run("baseline", 0, SLOW)
    with pytest.raises(RunDirError, match=f"a single run; pass its experiment: {experiment}$"):
        build_report(run)
    with pytest.raises(RunDirError, match=f"one arm of an experiment; pass the experiment: {experiment}$"):
        build_report(run.parent)
    shutil.rmtree(run.parent)
    teacher = make_run("teacher", 0, [0.5])
    with pytest.raises(RunDirError, match="holds only a teacher"):
        build_report(experiment)
    with pytest.raises(RunDirError, match=f"pass its experiment: {experiment}$"):
        build_report(teacher)


def test_damaged_records_are_an_error_that_names_the_run(make_run: MakeRun, experiment: Path) -> None:
    (make_run("baseline", 0, SLOW) / "metrics.jsonl").write_text("no row\n")
    with pytest.raises(RunDirError, match="baseline/seed0: its records are damaged"):
        build_report(experiment)


@pytest.mark.parametrize("task", recipe_types())
def test_every_task_declares_its_metrics_with_their_directions(task: str) -> None:
    section = recipe_types()[task].model_fields["report"].annotation
    assert isinstance(section, type)
    assert issubclass(section, ReportSection)
    assert section.metrics
    assert all(isinstance(metric.higher_is_better, bool) for metric in section.metrics)
