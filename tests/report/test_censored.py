"""Runs that never reach a level count as later than everything; what breaks a comparison refuses the ratio."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from known import build_report, crossing_summary, read_run
from synthetic_runs import FAST, SLOW, MakeRun, mentions, threshold, two_arms
from tiny import done, refused

from w2skd.report import units
from w2skd.report.censored import Bounds, median_bounds, median_crossing

NEVER = [0.1] * 10


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=7), st.data())
def test_the_median_of_any_numbers_within_the_bounds_lies_within_its_bounds(
    pairs: list[tuple[int, int]], data: st.DataObject
) -> None:
    import statistics

    bounds = [Bounds(low, math.inf if width == 9 else low + width) for low, width in pairs]
    numbers = [data.draw(st.floats(low, min(high, 1e6))) for low, high in bounds]
    low, high = median_bounds(bounds)
    assert low <= statistics.median(numbers) <= high


def test_a_seed_whose_helped_run_never_crossed_stays_in_the_median(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run, seeds=2)  # 2.00x each
    make_run("baseline", 2, SLOW)
    make_run("w2s", 2, NEVER)
    found = threshold(build_report(experiment), "teacher")
    spread = found.arms["w2s"].speedup_over_seeds["epochs"]
    assert spread is not None
    assert (spread.median, spread.min, spread.max, spread.seeds) == (2.0, 2.0, 2.0, 2)
    make_run("baseline", 3, SLOW)
    make_run("w2s", 3, NEVER)
    found = threshold(build_report(experiment), "teacher")
    spread = found.arms["w2s"].speedup_over_seeds["epochs"]
    assert spread is not None
    assert spread.median is None
    assert (spread.low, spread.high) == (1.0, pytest.approx((2.0 + 0.6) / 2))
    assert units.median(spread) == "1.00x to 1.30x"
    assert median_crossing(found, "w2s", "epoch", found.arms["w2s"].seeds) == Bounds(6.5, math.inf)
    assert median_crossing(found, "baseline", "epoch", found.arms["w2s"].seeds) == Bounds(6.0, 6.0)
    make_run("baseline", 4, SLOW)
    make_run("w2s", 4, NEVER)
    found = threshold(build_report(experiment), "teacher")
    assert units.median(found.arms["w2s"].speedup_over_seeds["epochs"]) == "< 0.60x"
    assert found.arms["w2s"].verdict == "slower"
    assert found.arms["w2s"].summary.startswith("< 0.60x in epochs")


def test_a_seed_whose_reference_never_crossed_counts_as_faster(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, NEVER)
    make_run("w2s", 0, FAST)
    found = threshold(build_report(experiment), "teacher")
    assert units.median(found.arms["w2s"].speedup_over_seeds["epochs"]) == "> 3.33x"
    assert units.median(found.arms["w2s"].speedup_over_seeds["flops"]).startswith("> ")
    assert found.arms["w2s"].verdict == "faster"


def test_seeds_of_which_neither_arm_crossed_are_unknown(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, NEVER)
    make_run("w2s", 0, NEVER)
    found = threshold(build_report(experiment), "teacher")
    assert found.arms["w2s"].summary.startswith(
        "no speed-up; seed 0: baseline did not reach it by epoch 10, w2s did not reach it"
    )
    assert units.median(found.arms["w2s"].speedup_over_seeds["epochs"]) == "unknown"


def test_crossings_within_one_validation_show_no_difference(make_run: MakeRun, experiment: Path) -> None:
    for seed in range(3):
        make_run("baseline", seed, [0.1, 0.2, 0.3, 0.9], thresholds="[0.7]")
        make_run("w2s", seed, [0.1, 0.2, 0.9, 0.9], thresholds="[0.7]")
    report = build_report(experiment)
    found = threshold(report, "0.7")
    assert found.arms["w2s"].grid_interval == (1.0, 2.0)
    assert found.arms["w2s"].verdict == "no difference"
    assert found.arms["w2s"].summary == (
        "no difference shown: 1.33x in epochs, 1.00x to 2.00x in epochs between validations; median of 3 seeds"
    )
    [line] = crossing_summary(read_run(experiment / "w2s" / "seed0"), experiment).lines
    assert line.interval == (1.0, 2.0)


def test_the_teachers_flops_are_those_of_its_own_run(make_run: MakeRun, experiment: Path) -> None:
    """The helped runs may have shown it smaller images (``teacher.image_size``)."""
    make_run("baseline", 0, SLOW)
    make_run("w2s", 0, FAST, environment={"forward_flops": {"student": 1000.0, "teacher": 50.0}})
    make_run("teacher", 0, SLOW, environment={"forward_flops": {"student": 300.0}})
    report = build_report(experiment)
    assert report.teacher is not None
    assert report.teacher.flops == 3 * 300.0 * 10 * 80


def test_a_teacher_of_weight_zero_is_never_asked_and_costs_nothing(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, SLOW)
    make_run("w2s", 0, SLOW, overrides=["distill.weight=0"])
    found = threshold(build_report(experiment), "teacher")
    assert found.arms["w2s"].speedup["flops"] == {0: 1.0}


BREAKING = {
    "train.batch_size": ({"overrides": ["train.batch_size=16"]}, "train.batch_size is 8 in baseline/seed0, 16 in w2s"),
    "train.optimizer.lr": ({"overrides": ["train.optimizer.lr=0.2"]}, "train.optimizer.lr is 0.1 in baseline/seed0"),
    "data.eval_examples": ({"overrides": ["data.eval_examples=50"]}, "data.eval_examples is null in baseline/seed0"),
    "training_fingerprint": ({"environment": {"data_fingerprint": "beef"}}, "differ in the training data: "),
    "evaluation_fingerprint": ({"environment": {"data_fingerprint": "f00d/beef"}}, "differ in the evaluation data: "),
    "evaluation_data": (
        {"environment": {"data_identity": {"training": {"images": 1}, "evaluation": {"images": 3}}}},
        "differ in the evaluation data: ",
    ),
    "init_from": ({"environment": {"init_from": {"checkpoint": "x"}}}, "differ in the initial weights: "),
}


BEFORE = {
    "evaluation_data": {"data_identity": {"training": {"images": 1}, "evaluation": {"images": 2}}},
    "evaluation_fingerprint": {"data_fingerprint": "f00d/aaaa"},
}
"""What the baseline recorded."""


@pytest.mark.parametrize("key", BREAKING)
def test_what_breaks_the_comparison_refuses_the_ratio(key: str, make_run: MakeRun, experiment: Path) -> None:
    options, words = BREAKING[key]
    ours = (
        {"data_identity": {"training": {"images": 1}, "evaluation": {"images": 2}}} if key == "evaluation_data" else {}
    )
    ours |= {"data_fingerprint": "f00d/aaaa"} if key == "evaluation_fingerprint" else {}
    make_run("baseline", 0, SLOW, environment=ours)
    make_run("w2s", 0, FAST, **options)
    report = build_report(experiment)
    found = threshold(report, "teacher")
    assert len(report.refused) == 1
    assert mentions(report, "no speed-up, since runs differ in", words, f"--allow-different {key}")
    assert not any(found.arms["w2s"].speedup.values())
    assert not any(found.arms["w2s"].speedup_over_seeds.values())
    assert (found.arms["w2s"].verdict, found.arms["w2s"].summary) == (
        "unknown",
        "no speed-up: settings differ that break the comparison",
    )
    assert found.first["w2s"][0] is not None, "crossings are still reported"
    summary = crossing_summary(read_run(experiment / "w2s" / "seed0"), experiment)
    assert summary.reference_run is None
    assert all(line.speedup is None for line in summary.lines)
    assert any(words in line for line in summary.left_out)
    allowed = build_report(experiment, allow_different=[key])
    assert allowed.refused == ()
    assert threshold(allowed, "teacher").arms["w2s"].speedup["epochs"] == {0: 2.0}


@pytest.mark.parametrize("setting", ["train.log_every=7", "data.workers=3", "data.root=/elsewhere"])
def test_what_changes_no_result_may_differ(setting: str, make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, SLOW)
    make_run("w2s", 0, FAST, overrides=[setting])
    assert build_report(experiment).refused == ()


def test_other_training_data_are_reported_only_if_these_differ(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run, environment={"data_fingerprint": "f00d/aaaa"})
    make_run("teacher", 0, SLOW, environment={"data_fingerprint": "f00d/bbbb"})
    assert not mentions(build_report(experiment), "training data differ")


def test_close_crossings_of_runs_that_are_not_comparable_are_no_ratio(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, [0.1, 0.2, 0.9], thresholds="[0.7]")
    make_run("w2s", 0, [0.1, 0.9, 0.9], thresholds="[0.7]", overrides=["train.batch_size=16"])
    report = build_report(experiment)
    assert threshold(report, "0.7").arms["w2s"].summary == "no speed-up: settings differ that break the comparison"
    assert not mentions(report, "within one validation")


def test_a_ratio_within_one_validation_meets_no_requirement(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, [0.1, 0.2, 0.3, 0.9], thresholds="[0.7]")
    make_run("w2s", 0, [0.1, 0.2, 0.9, 0.9], thresholds="[0.7]")
    done("speedup-report", experiment, "--require", "1.0")
    assert "no difference shown: 1.33x" in refused("speedup-report", experiment, "--require", "1.2", code=3)
