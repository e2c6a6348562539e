"""What is said at a run's start about its teacher, and at its end about its crossings."""

from pathlib import Path

import pytest

from w2skd.recipe.threshold import Threshold
from w2skd.records import EventRow
from w2skd.report.experiment import read_experiment, teacher_is_ours
from w2skd.report.summary import teacher_gaps


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (0.70, "12.9% weaker than the target"),
        (0.90, "outside the working band of 15%"),
        (0.5, "it may have little to give"),
    ],
)
def test_the_teachers_gap_to_the_target_is_told(make_run, experiment: Path, target: float, expected: str) -> None:
    make_run("w2s", 0, [0.1, 0.2], teacher=0.61)
    [line] = teacher_gaps(
        experiment, [Threshold.parse(target), Threshold.parse("teacher"), Threshold.parse("0.9*baseline")]
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
