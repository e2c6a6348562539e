"""first@tau on hand-written rows."""

import json
import math
from pathlib import Path

import pytest
from known import read_run
from synthetic_runs import BATCH_SIZE, LOSS, STUDENT_FLOPS, TEACHER_FLOPS, TOP1, MakeRun

from w2skd.recipe.evaluation import Metric
from w2skd.records.rows import EvalRow, EventRow, Row, StepRow
from w2skd.report.crossing import (
    Position,
    SwitchOff,
    best,
    distillation_off,
    final,
    first_crossing,
    last_position,
    spacing,
    teacher_level,
    with_flops,
)

CLOCK = {"train": 5.0, "teacher": 2.0, "data": 0.5, "evaluate": 100.0, "checkpoint": 10.0, "compile": 50.0}


def evals(*values: float, metric: str = "top1") -> list[Row]:
    return [EvalRow(10 * n, float(n), 80 * n, {metric: value}, CLOCK) for n, value in enumerate(values, start=1)]


def test_first_crossing_is_the_first_validation_at_the_level() -> None:
    rows = evals(0.3, 0.5, 0.7, 0.6, 0.8)
    assert first_crossing(rows, TOP1, 0.6) == Position(30, 3.0, 240, 7.5)
    assert first_crossing(rows, TOP1, 0.7) == Position(30, 3.0, 240, 7.5), "the level itself is enough"
    assert first_crossing(rows, TOP1, 0.71) == Position(50, 5.0, 400, 7.5)
    assert first_crossing(rows, TOP1, 0.81) is None


def test_first_crossing_of_a_metric_where_lower_is_better() -> None:
    rows = evals(2.0, 1.5, 1.2, 1.4, 0.9, metric="loss")
    place = first_crossing(rows, LOSS, 1.2)
    assert place is not None
    assert place.epoch == 3.0
    assert first_crossing(rows, LOSS, 0.8) is None


@pytest.mark.parametrize("higher", [True, False])
def test_nan_never_reaches_a_level_and_is_never_best(higher: bool) -> None:
    metric = Metric("top1", higher)
    rows = evals(math.nan, 0.5, math.nan)
    place, top = first_crossing(rows, metric, 0.5), best(rows, metric)
    assert place is not None
    assert place.epoch == 2.0
    assert top is not None
    assert top.value == 0.5
    assert final(rows, TOP1) is None
    assert best(evals(math.nan), metric) is None
    assert first_crossing(evals(math.nan), metric, 0.5) is None


def test_a_metric_that_was_not_measured_is_not_reached() -> None:
    assert first_crossing(evals(0.9, metric="top5"), TOP1, 0.1) is None


def test_best_is_the_earlier_of_equals_and_final_the_last() -> None:
    rows = evals(0.3, 0.7, 0.7, 0.6)
    top, last = best(rows, TOP1), final(rows, TOP1)
    assert top is not None
    assert (top.value, top.at.epoch) == (0.7, 2.0)
    assert last is not None
    assert (last.value, last.at.epoch) == (0.6, 4.0)
    lowest = best(evals(0.3, 0.7, 0.3), Metric("top1", False))
    assert lowest is not None
    assert lowest.at.epoch == 1.0


def test_seconds_are_training_time_only_and_unknown_without_a_clock() -> None:
    place = first_crossing([EvalRow(1, 0.1, 8, {"top1": 1.0}, {})], TOP1, 0.5)
    assert place == Position(1, 0.1, 8, None)


def test_spacing_counts_from_the_validation_before_or_from_the_start() -> None:
    rows = [EvalRow(step, step / 10, step, {}, {}) for step in (5, 20, 30)]
    assert (spacing(rows, 5).steps, spacing(rows, 20).steps, spacing(rows, 30).epochs) == (5, 15, 1.0)


def test_last_position_is_that_of_the_last_row_with_a_clock() -> None:
    step = StepRow(12, 1.2, 96, 1.0, {}, 0.0, 0.1, {"train": 6.0})
    rows = [*evals(0.1), step, EventRow(12, "finished")]
    assert last_position(rows) == Position(12, 1.2, 96, 6.0)
    assert last_position([EventRow(0, "teacher")]) is None


def test_distillation_off_tells_when_and_why() -> None:
    event = EventRow(20, "distillation_off", {"reason": "surpassed", "student": 0.7, "teacher": 0.6, "epoch": 2.0})
    assert distillation_off([*evals(0.5, 0.7), event]) == SwitchOff(20, 2.0, "surpassed", 0.7, 0.6)
    assert distillation_off(evals(0.5)) is None


def test_distillation_off_works_out_an_epoch_that_an_old_record_lacks() -> None:
    off = distillation_off([*evals(0.5, 0.7), EventRow(15, "distillation_off", {"reason": "ended"})])
    assert off == SwitchOff(15, 1.5, "ended", None, None)


def test_teacher_level_comes_from_its_event() -> None:
    assert teacher_level([EventRow(0, "teacher", {"metrics": {"top1": 0.65, "loss": None}})], TOP1) == 0.65
    assert teacher_level([EventRow(0, "teacher", {"metrics": {"loss": None}})], LOSS) is None
    assert teacher_level(evals(0.5), TOP1) is None


def test_flops_of_a_w2s_run_stop_counting_the_teacher_at_the_switch(make_run: MakeRun) -> None:
    run = read_run(make_run("w2s", 0, [0.1, 0.2, 0.3, 0.4], off_epoch=2))
    examples = 10 * BATCH_SIZE
    for epoch, distilled in ((1, 1), (2, 2), (3, 2), (4, 2)):
        place = with_flops(Position(10 * epoch, float(epoch), epoch * examples, None), run)
        assert place.flops == 3 * STUDENT_FLOPS * epoch * examples + TEACHER_FLOPS * distilled * examples


def test_flops_of_a_switch_between_two_validations(make_run: MakeRun) -> None:
    ended = EventRow(15, "distillation_off", {"reason": "ended"})
    run = read_run(make_run("w2s", 0, [0.1, 0.2, 0.3], extra=[ended]))
    place = with_flops(Position(30, 3.0, 240, None), run)
    assert place.flops == 3 * STUDENT_FLOPS * 240 + TEACHER_FLOPS * 15 * BATCH_SIZE


def test_flops_of_a_baseline_are_the_students(make_run: MakeRun) -> None:
    run = read_run(make_run("baseline", 0, [0.1, 0.2]))
    assert with_flops(Position(20, 2.0, 160, None), run).flops == 3 * STUDENT_FLOPS * 160


@pytest.mark.parametrize("flops", [None, {}, {"student": 1000.0}])
def test_flops_are_unknown_where_the_records_lack_them(make_run: MakeRun, flops: dict[str, float] | None) -> None:
    run = read_run(make_run("w2s", 0, [0.1, 0.2], environment={"forward_flops": flops}))
    assert with_flops(Position(20, 2.0, 160, None), run).flops is None


def test_a_cut_off_last_line_is_left_out(make_run: MakeRun) -> None:
    path: Path = make_run("baseline", 0, [0.5, 0.6])
    row = {"row": "eval", "step": 30, "epoch": 3.0, "examples": 240, "metrics": {"top1": 0.9}, "clock": {}}
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row)[:-4])
    rows = read_run(path).rows
    assert first_crossing(rows, TOP1, 0.9) is None
    assert last_position(rows) == Position(20, 2.0, 160, 10.0)
