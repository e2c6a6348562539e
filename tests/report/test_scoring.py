"""Runs that are scored differently are never compared."""

import json
from pathlib import Path
from typing import Any

import pytest
from known import build_report, crossing_summary, publish, read_run
from synthetic_runs import FID_FAST, FID_SLOW, GENERATED, SCORING, MakeRun, two_arms, two_arms_of_generated_images

from w2skd.errors import RunDirError
from w2skd.recipe.threshold import Threshold
from w2skd.report.render import as_json, as_markdown
from w2skd.report.scoring import difference, in_one_line
from w2skd.report.summary import teacher_gaps
from w2skd.tasks.catalog import recipe_types


def scored(**changes: Any) -> dict[str, Any]:
    return {"environment": {"scoring": {**SCORING, **changes}}}


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ({}, {}, None),
        (SCORING, dict(reversed(SCORING.items())), None),
        (SCORING, {**SCORING, "samples": 2000}, "samples is 10,000 in a, 2,000 in b"),
        (SCORING, {**SCORING, "seed": 1, "extractor": "vgg16"}, "extractor is inception-v3-compat in a, vgg16 in b"),
        ({"a_b": 1}, {}, "a b is 1 in a, not recorded in b"),
        ({}, {"clip": True}, "clip is not recorded in a, True in b"),
        ({"clip": None}, {}, "clip is None in a, not recorded in b"),
    ],
)
def test_the_first_difference_is_returned(ours: dict[str, Any], theirs: dict[str, Any], expected: str | None) -> None:
    found = difference(ours, theirs)
    assert (found and found.between("a", "b")) == expected


def test_a_scoring_is_one_line_for_people() -> None:
    assert in_one_line({"extractor": "vgg16", "samples": 10_000, "kid_subsets": 100, "clip": True}) == (
        "extractor vgg16; samples 10,000; kid subsets 100; clip True"
    )


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (scored(samples=2000), "samples is 10,000 in baseline/seed0, 2,000 in w2s/seed1"),
        (scored(weights="beef"), "weights is 6726825d0af5f729 in baseline/seed0, beef in w2s/seed1"),
        ({}, "extractor is inception-v3-compat in baseline/seed0, not recorded in w2s/seed1"),
    ],
)
def test_runs_that_are_scored_in_different_ways_are_not_compared(
    make_run: MakeRun, experiment: Path, tmp_path: Path, other: dict[str, Any], problem: str
) -> None:
    two_arms_of_generated_images(make_run)
    make_run("w2s", 1, FID_FAST, recipe=GENERATED, metric="fid", **other)
    for compare in (lambda: build_report(experiment), lambda: publish(experiment, tmp_path / "records")):
        with pytest.raises(RunDirError) as error:
            compare()
        assert str(error.value) == (f"{experiment}: runs are scored differently and cannot be compared: {problem}")
    assert not (tmp_path / "records").exists()


def test_how_the_teachers_own_run_was_scored_is_a_warning_since_its_curve_enters_no_number(
    make_run: MakeRun, experiment: Path
) -> None:
    two_arms_of_generated_images(make_run)
    expected = build_report(experiment).thresholds
    make_run("teacher", 0, [90.0, 65.0], recipe=GENERATED, metric="fid", **scored(seed=7))
    report = build_report(experiment)
    assert report.scoring == SCORING
    assert [line for line in report.warnings if "scored" in line] == [
        "the teacher's own run was scored differently, so its best and final values are not comparable: "
        "seed is 7 in teacher, 0 in baseline/seed0"
    ]
    assert [(found.first, found.value) for found in report.thresholds] == [
        (found.first, found.value) for found in expected
    ]


def test_a_teacher_that_was_scored_alike_is_no_warning(make_run: MakeRun, experiment: Path) -> None:
    two_arms_of_generated_images(make_run)
    make_run("teacher", 0, [90.0, 65.0], recipe=GENERATED, metric="fid", **scored())
    assert not any("scored" in line for line in build_report(experiment).warnings)


def test_a_summary_ignores_how_the_teachers_own_run_was_scored(make_run: MakeRun, experiment: Path) -> None:
    two_arms_of_generated_images(make_run)
    make_run("teacher", 0, [90.0, 65.0], recipe=GENERATED, metric="fid", **scored(seed=7))
    for run in ("w2s/seed0", "baseline/seed0", "teacher"):
        assert crossing_summary(read_run(experiment / run), experiment).left_out == ()


def test_the_report_shows_the_scoring(make_run: MakeRun, experiment: Path) -> None:
    two_arms_of_generated_images(make_run)
    report = build_report(experiment)
    assert json.loads(as_json(report))["scoring"] == SCORING
    line = "scored alike: extractor inception-v3-compat; weights 6726825d0af5f729; samples 10,000; reference 50,000"
    assert line in as_markdown(report)


def test_tasks_that_leave_no_choice_say_nothing_of_it(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    report = build_report(experiment)
    assert json.loads(as_json(report))["scoring"] == {}
    assert "scored alike" not in as_markdown(report)


def test_the_end_of_a_run_compares_it_with_runs_that_are_scored_alike_only(make_run: MakeRun, experiment: Path) -> None:
    given = {"recipe": GENERATED, "metric": "fid", "thresholds": "[teacher, 60.0, 0.98*baseline]", "teacher": 65.0}
    make_run("baseline", 0, FID_SLOW, **given, **scored(samples=2000))
    make_run("w2s", 1, FID_FAST, **{**given, "teacher": 30.0}, **scored(samples=2000))
    run = read_run(make_run("w2s", 0, FID_FAST, **given, **scored()))
    summary = crossing_summary(run, experiment)
    assert summary.left_out == tuple(
        f"{name}, which is scored differently: samples is 10,000 in this run, 2,000 in that one"
        for name in ("baseline/seed0", "w2s/seed1")
    )
    assert summary.reference_run is None
    levels = {line.name: (line.value, line.reason) for line in summary.lines}
    assert levels == {
        "teacher": (65.0, None),
        "60": (60.0, None),
        "0.98*baseline": (None, "no baseline run has a validation yet"),
    }
    [line] = teacher_gaps(run, experiment, [Threshold.parse(60.0), Threshold.parse("0.98*baseline")], recipe_types())
    assert line == "target fid 60: the teacher is 8.3% weaker than the target"


def test_a_baseline_takes_the_teachers_level_from_a_run_that_is_scored_alike(
    make_run: MakeRun, experiment: Path
) -> None:
    given = {"recipe": GENERATED, "metric": "fid", "thresholds": "[teacher]"}
    run = read_run(make_run("baseline", 0, FID_SLOW, **given, **scored()))
    make_run("w2s", 0, FID_FAST, **given, teacher=30.0, **scored(extractor="vgg16"))
    assert [line.value for line in crossing_summary(run, experiment).lines] == [None]
    make_run("w2s", 1, FID_FAST, **given, teacher=65.0, **scored())
    assert [line.value for line in crossing_summary(run, experiment).lines] == [65.0]
