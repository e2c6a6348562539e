"""The notes about the teacher at the start of a run, and the summary of crossings at its end."""

from pathlib import Path

import pytest
from known import crossing_summary, read_experiment, read_run
from synthetic_runs import FAST, MakeRun, two_arms

from w2skd.recipe.threshold import Threshold
from w2skd.records.rows import EventRow
from w2skd.report.experiment import teacher_is_ours
from w2skd.report.summary import teacher_gaps
from w2skd.tasks.catalog import recipe_types


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (0.70, "12.9% weaker than the target"),
        (0.90, "outside the working band of 15%"),
        (0.5, "it may help little"),
    ],
)
def test_the_teachers_gap_to_the_target_is_reported(make_run, experiment: Path, target: float, expected: str) -> None:
    run = read_run(make_run("w2s", 0, [0.1, 0.2], teacher=0.61))
    [line] = teacher_gaps(
        run,
        experiment,
        [Threshold.parse(target), Threshold.parse("teacher"), Threshold.parse("0.9*baseline")],
        recipe_types(),
    )
    assert line.startswith(f"target top1 {target:.1%}")
    assert expected in line


def test_the_teachers_cost_is_that_of_the_teacher_that_was_used(make_run, experiment: Path) -> None:
    made = EventRow(40, "finished", {"fingerprint": "aa"})
    make_run("teacher", 0, [0.6], extra=[made])
    make_run(
        "w2s", 0, [0.5], teacher=None, extra=[EventRow(0, "teacher", {"metrics": {"top1": 0.6}, "fingerprint": "aa"})]
    )
    assert teacher_is_ours(read_experiment(experiment))
    make_run(
        "w2s", 1, [0.5], teacher=None, extra=[EventRow(0, "teacher", {"metrics": {"top1": 0.6}, "fingerprint": "bb"})]
    )
    assert not teacher_is_ours(read_experiment(experiment))


def test_summary_of_a_w2s_run_beside_its_baseline(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    summary = crossing_summary(read_run(experiment / "w2s" / "seed0"), experiment)
    lines = {line.name: line for line in summary.lines}
    assert list(lines) == ["teacher", "0.7", "0.98*baseline"]
    assert lines["teacher"].speedup == 2.0
    assert lines["0.7"].reached is not None
    assert lines["0.7"].theirs is not None
    assert (lines["0.7"].reached.epoch, lines["0.7"].theirs.epoch) == (5.0, 8.0)
    assert summary.reference_run == "baseline/seed0"
    assert summary.distillation_off is not None
    assert summary.distillation_off.epoch == 4.0


def test_summary_of_a_run_alone(make_run: MakeRun, experiment: Path) -> None:
    run = read_run(make_run("w2s", 0, FAST))
    for place in (None, experiment):
        summary = crossing_summary(run, place)
        assert summary.reference_run is None
        assert [line.value for line in summary.lines] == [0.65, 0.7, None]
        assert [line.speedup for line in summary.lines] == [None, None, None]


def test_summary_of_a_baseline_and_of_a_teacher(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    summary = crossing_summary(read_run(experiment / "baseline" / "seed0"), experiment)
    assert summary.reference_run is None
    assert [line.reached is not None for line in summary.lines] == [True, True, True]
    summary = crossing_summary(read_run(make_run("teacher", 0, [0.5, 0.65])), experiment)
    assert summary.lines == ()
    assert summary.best is not None
    assert summary.best.value == 0.65


def test_summary_survives_a_damaged_sibling(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    (experiment / "baseline" / "seed0" / "metrics.jsonl").write_text("no row\n")
    summary = crossing_summary(read_run(experiment / "w2s" / "seed0"), experiment)
    assert summary.reference_run is None
    assert summary.lines[1].reached is not None
