"""The verdict on a threshold in words."""

from pathlib import Path

import pytest
from known import build_report
from synthetic_runs import FAST, SLOW, MakeRun, mentions, threshold, two_arms

from w2skd.report.contract import Spread


def test_the_median_is_over_complete_pairs_and_lists_excluded_seeds(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run, seeds=2)
    make_run("baseline", 2, SLOW)
    make_run("w2s", 2, [0.1] * 10)
    report = build_report(experiment)
    found = threshold(report, "teacher")
    spread = found.arms["w2s"].speedup_over_seeds["epochs"]
    assert spread is not None
    assert (spread.median, spread.min, spread.max, spread.seeds) == (2.0, 2.0, 2.0, 2)
    assert (found.arms["w2s"].seeds, found.arms["w2s"].pairs) == ((0, 1, 2), (0, 1))
    assert found.first["w2s"][2] is None
    last = found.not_reached["w2s"][2]
    assert last is not None
    assert last.epoch == 10.0
    assert "median of 3 seeds" in found.arms["w2s"].summary
    assert "seed 2: w2s did not reach it by epoch 10 (baseline at epoch 6)" in found.arms["w2s"].summary
    assert mentions(report, "teacher (65.0%)", "w2s did not reach the target with seed 2")


def test_a_slower_run_is_called_slower(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, FAST)
    make_run("w2s", 0, SLOW)
    verdict = threshold(build_report(experiment), "teacher").arms["w2s"].summary
    assert verdict.startswith("0.50x in epochs")
    assert "slower than the baseline" in verdict


def test_no_pair_gives_no_figure(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, [0.1] * 4)
    make_run("w2s", 0, FAST)
    found = threshold(build_report(experiment), "teacher")
    assert found.arms["w2s"].speedup["epochs"] == {}
    assert found.arms["w2s"].speedup_over_seeds["epochs"] == Spread(
        None, None, None, 0, low=pytest.approx(4 / 3), high=None
    )
    assert found.arms["w2s"].summary == (
        "> 1.33x in epochs (> 1.33x between validations), > 1.11x in training time; one seed; "
        "seed 0: baseline did not reach it by epoch 4 (w2s at epoch 3)"
    )


def test_the_interval_spans_what_lies_between_validations(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    found = threshold(build_report(experiment), "teacher")
    assert found.arms["w2s"].speedup_interval[0] == (pytest.approx(5 / 3, abs=1e-6), 3.0)
    assert (found.grid["baseline"][0].steps, found.grid["w2s"][0].epochs) == (10, 1.0)


def test_crossings_within_one_validation_are_called_so(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, [0.1, 0.9], thresholds="[0.7]")
    make_run("w2s", 0, [0.9, 0.9], thresholds="[0.7]")
    report = build_report(experiment)
    assert threshold(report, "0.7").arms["w2s"].speedup_interval[0] == (1.0, None)
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
