import json
import math

import pytest

from w2skd.records.rows import EvalRow, EventRow, Row, StepRow, decode, encode
from w2skd.records.schema import SchemaError

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
        ("", "not valid JSON at column 1"),
        ('{"row": "step", "st', "not valid JSON at column 17"),
        ("[1, 2]", "a record must be an object, not [1, 2]"),
        ("3", "a record must be an object, not 3"),
        ("{}", "row is missing"),
        ('{"row": "picture", "step": 1}', 'row must be one of step, eval, event, not "picture"'),
        ('{"row": ["eval"], "step": 1}', 'row must be one of step, eval, event, not ["eval"]'),
        ('{"row": "step", "step": 1}', "epoch is missing"),
        ('{"row": "eval", "step": 1, "epoch": 1.0, "examples": 8, "clock": {}}', "metrics is missing"),
        ('{"row": "event", "step": 1}', "name is missing"),
        ("[" * 100_000, "nested too deeply"),
        ('{"row": "event", "step": 1, "name": "x", "a": ' + "[" * 99 + "]" * 99 + "}", "is nested too deeply"),
        (
            '{"row": "event", "step": ' + "1" * 5000 + ', "name": "x"}',
            "step must be a number of 64 bits at most, not 11",
        ),
        ('{"row": "event", "step": 1, "name": "x", "a": [0, NaN]}', "a[1] must be a finite number, not NaN"),
    ],
)
def test_what_is_no_row_is_refused(line: str, message: str) -> None:
    with pytest.raises(SchemaError) as raised:
        decode(line)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("row", "field", "value", "message"),
    [
        (EVAL, "step", '"3"', 'step must be a whole number of 0 or more, not "3"'),
        (EVAL, "step", "3.5", "step must be a whole number of 0 or more, not 3.5"),
        (EVAL, "step", "true", "step must be a whole number of 0 or more, not true"),
        (EVAL, "step", "-1", "step must be a whole number of 0 or more, not -1"),
        (EVAL, "examples", "null", "examples must be a whole number of 0 or more, not null"),
        (EVAL, "epoch", "-0.5", "epoch must be a finite number of 0 or more, not -0.5"),
        (EVAL, "metrics", '{"top1": 1e999}', "metrics.top1 must be a finite number, not Infinity"),
        (EVAL, "metrics", '{"top1": "high"}', 'metrics.top1 must be a finite number or null, not "high"'),
        (EVAL, "metrics", '{"a\\nb": []}', "metrics.a\\nb must be a finite number or null, not []"),
        (EVAL, "metrics", "[]", "metrics must be an object, not []"),
        (EVAL, "clock", '{"train": null}', "clock.train must be a finite number of 0 or more, not null"),
        (STEP, "loss", '"low"', 'loss must be a finite number or null, not "low"'),
        (STEP, "parts", '{"task": {}}', "parts.task must be a finite number or null, not {}"),
        (STEP, "lambda", "null", "lambda must be a finite number, not null"),
        (EVENT, "name", "7", "name must be text, not 7"),
        (EVENT, "student", '"x"', 'student must be a finite number or null, not "x"'),
        (EventRow(0, "teacher"), "metrics", "null", "metrics must be an object, not null"),
        (EventRow(0, "non_finite"), "steps", "[1, null]", "steps[1] must be a whole number of 0 or more, not null"),
    ],
)
def test_a_field_of_another_kind_is_named(row: Row, field: str, value: str, message: str) -> None:
    values = json.loads(encode(row))
    text = json.dumps({**values, field: "@"}).replace('"@"', value)
    with pytest.raises(SchemaError) as raised:
        decode(text)
    assert str(raised.value) == message


def test_a_long_value_is_shortened_in_the_message() -> None:
    with pytest.raises(SchemaError) as raised:
        decode(json.dumps({**json.loads(encode(EVAL)), "step": "9" * 10_000}))
    assert str(raised.value) == 'step must be a whole number of 0 or more, not "' + "9" * 56 + "..."
