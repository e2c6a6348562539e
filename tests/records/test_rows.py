import json
import math

import pytest

from w2skd.records.rows import EvalRow, EventRow, Row, StepRow, decode, encode

CLOCK = {"train": 8.1, "teacher": 0.9, "data": 0.2, "evaluate": 0.0, "checkpoint": 0.0, "compile": 0.0}
STEP = StepRow(
    step=100,
    epoch=0.26,
    examples=12800,
    loss=2.1,
    parts={"task.cross_entropy": 1.8, "distill.kl": 0.3},
    lambda_=1.0,
    lr=0.1,
    clock=CLOCK,
)
EVAL = EvalRow(step=391, epoch=1.0, examples=50048, metrics={"top1": 0.41}, clock=CLOCK)
EVENT = EventRow(3910, "distillation_off", {"reason": "surpassed", "student": 0.712, "teacher": 0.709})


@pytest.mark.parametrize("row", [STEP, EVAL, EVENT, EventRow(0, "finished")])
def test_a_row_survives_its_line(row: Row) -> None:
    line = encode(row)
    assert "\n" not in line
    assert decode(line) == row


def test_the_lines_are_those_of_the_contract() -> None:
    assert json.loads(encode(STEP)) == {
        "row": "step",
        "step": 100,
        "epoch": 0.26,
        "examples": 12800,
        "loss": 2.1,
        "parts": {"task.cross_entropy": 1.8, "distill.kl": 0.3},
        "lambda": 1.0,
        "lr": 0.1,
        "clock": CLOCK,
    }
    assert json.loads(encode(EVAL)) == {
        "row": "eval",
        "step": 391,
        "epoch": 1.0,
        "examples": 50048,
        "metrics": {"top1": 0.41},
        "clock": CLOCK,
    }
    assert json.loads(encode(EVENT)) == {
        "row": "event",
        "step": 3910,
        "name": "distillation_off",
        "reason": "surpassed",
        "student": 0.712,
        "teacher": 0.709,
    }


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_in_json_and_nan_again(bad: float) -> None:
    step = decode(encode(StepRow(1, 0.1, 8, bad, {"task.cross_entropy": bad}, 0.0, 0.1, {})))
    assert isinstance(step, StepRow)
    assert math.isnan(step.loss)
    assert math.isnan(step.parts["task.cross_entropy"])
    validation = decode(encode(EvalRow(1, 0.1, 8, {"loss": bad, "top1": 0.5}, {})))
    assert isinstance(validation, EvalRow)
    assert math.isnan(validation.metrics["loss"])
    assert validation.metrics["top1"] == 0.5
    line = encode(EventRow(1, "teacher", {"metrics": {"loss": bad}, "values": [1.0, (bad,)]}))
    assert json.loads(line)["metrics"] == {"loss": None}
    assert json.loads(line)["values"] == [1.0, [None]]


def test_digits_are_not_lost() -> None:
    row = EvalRow(10**12, 1 / 3, 10**15, {"top1": 0.1 + 0.2}, {"train": 123456.789012})
    assert decode(encode(row)) == row


def test_text_of_any_language_stays_on_one_line() -> None:
    row = EventRow(1, "note", {"text": "zwei\nZeilen \u2028 図"})
    assert len(encode(row).splitlines()) == 1
    assert decode(encode(row)) == row


def test_later_versions_may_add_keys() -> None:
    for row in (STEP, EVAL):
        assert decode(json.dumps({**json.loads(encode(row)), "added": 1})) == row


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "Expecting value"),
        ('{"row": "step", "st', "Unterminated string"),
        ("[1, 2]", r"not a row: '\[1, 2\]'"),
        ("3", "not a row"),
        ("{}", "unknown row None"),
        ('{"row": "picture", "step": 1}', "unknown row 'picture'"),
        ('{"row": "step", "step": 1}', "a row lacks 'epoch'"),
        ('{"row": "eval", "step": 1, "epoch": 1.0, "examples": 8, "clock": {}}', "a row lacks 'metrics'"),
        ('{"row": "event", "step": 1}', "a row lacks 'name'"),
    ],
)
def test_what_is_no_row_is_refused(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(line)
