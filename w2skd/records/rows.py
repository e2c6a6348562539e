"""The rows of ``metrics.jsonl``, one JSON object per line.

Rows never change once written. Later versions may add keys, and readers ignore unknown ones.
Non-finite numbers are written as ``null``, because JSON has no NaN, and are read as NaN.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from w2skd.records.schema import (
    AMOUNT,
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE,
    Kind,
    check_object,
    list_of,
    object_of,
    one_of,
    or_null,
    parse,
)

Segment = Literal["train", "teacher", "data", "evaluate", "checkpoint", "compile"]
SEGMENTS: tuple[Segment, ...] = get_args(Segment)
"""Where a run's time goes; see `w2skd.training.clock.Clock`."""

TRAINING_SEGMENTS: tuple[Segment, ...] = ("train", "teacher", "data")
"""Segments that count as training time in a speed-up: those that a run without validations has, too."""

Seconds = dict[str, float]
"""Cumulative seconds per segment."""


def training_seconds(clock: Mapping[str, float]) -> float:
    """Return the seconds of a row's clock that count as training time."""
    return sum(clock.get(name, 0.0) for name in TRAINING_SEGMENTS)


@dataclass(frozen=True, slots=True)
class StepRow:
    """Training progress, averaged over the steps since the last one.

    `loss` is the weighted sum that was differentiated, `parts` are its unweighted named terms
    (``task.cross_entropy``, ``distill.kl``), `lambda_` the distillation weight of the last step.
    """

    step: int
    epoch: float
    examples: int
    loss: float
    parts: dict[str, float]
    lambda_: float
    lr: float
    clock: Seconds


@dataclass(frozen=True, slots=True)
class EvalRow:
    """One validation of the student, after `step` optimizer steps."""

    step: int
    epoch: float
    examples: int
    metrics: dict[str, float]
    clock: Seconds


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event: ``teacher``, ``distillation_off``, ``resumed``, ``non_finite``, ``rescaled``, ``finished``."""

    step: int
    name: str
    details: dict[str, Any] = field(default_factory=dict)


Row = StepRow | EvalRow | EventRow


def encode(row: Row) -> str:
    """Encode a row as one line of JSON, without the newline."""
    values: dict[str, Any]
    match row:
        case StepRow():
            values = {
                "row": "step",
                "step": row.step,
                "epoch": row.epoch,
                "examples": row.examples,
                "loss": row.loss,
                "parts": row.parts,
                "lambda": row.lambda_,
                "lr": row.lr,
                "clock": row.clock,
            }
        case EvalRow():
            values = {
                "row": "eval",
                "step": row.step,
                "epoch": row.epoch,
                "examples": row.examples,
                "metrics": row.metrics,
                "clock": row.clock,
            }
        case EventRow():
            values = {"row": "event", "step": row.step, "name": row.name, **row.details}
    return json.dumps(without_nan(values), allow_nan=False)


_POSITION = {"step": WHOLE, "epoch": AMOUNT, "examples": WHOLE, "clock": object_of(AMOUNT)}
_MEASURES = object_of(or_null(NUMBER))

_STEP = {**_POSITION, "loss": or_null(NUMBER), "parts": _MEASURES, "lambda": NUMBER, "lr": NUMBER}
_EVAL = {**_POSITION, "metrics": _MEASURES}
_EVENT = {"step": WHOLE, "name": TEXT}
_DETAILS: dict[str, dict[str, Kind]] = {
    "teacher": {
        "metrics": _MEASURES,
        "checkpoint": TEXT,
        "fingerprint": TEXT,
        "parameters": WHOLE,
        "data_fingerprint": or_null(TEXT),
    },
    "distillation_off": {
        "reason": TEXT,
        "student": or_null(NUMBER),
        "teacher": or_null(NUMBER),
        "patience": or_null(WHOLE),
        "epoch": AMOUNT,
    },
    "resumed": {"lost_steps": WHOLE, "changed": OBJECT},
    "non_finite": {"steps": list_of(WHOLE)},
    "rescaled": {"skipped_steps": WHOLE, "loss_scale": or_null(NUMBER)},
    "finished": {"metric": TEXT, "best": or_null(NUMBER), "best_step": or_null(WHOLE), "fingerprint": TEXT},
}
"""Event -> its details. All are optional, because older versions wrote fewer."""


def decode(line: str | bytes) -> Row:
    """Decode a row from its line.

    Raises:
        SchemaError: the line is not JSON, not a row, lacks a field, or a field holds another kind of value.
    """
    values = check_object(parse(line), {"row": one_of("step", "eval", "event")})
    match values.pop("row"):
        case "step":
            check_object(values, _STEP)
            return StepRow(
                step=values["step"],
                epoch=values["epoch"],
                examples=values["examples"],
                loss=_number(values["loss"]),
                parts={name: _number(value) for name, value in values["parts"].items()},
                lambda_=values["lambda"],
                lr=values["lr"],
                clock=values["clock"],
            )
        case "eval":
            check_object(values, _EVAL)
            return EvalRow(
                step=values["step"],
                epoch=values["epoch"],
                examples=values["examples"],
                metrics={name: _number(value) for name, value in values["metrics"].items()},
                clock=values["clock"],
            )
        case _:
            check_object(values, _EVENT)
            check_object(values, {}, _DETAILS.get(values["name"]))
            return EventRow(values.pop("step"), values.pop("name"), values)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def without_nan(value: Any) -> Any:
    """Replace NaN and infinities in nested plain values by None, because JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value
