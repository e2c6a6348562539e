"""The rows of ``metrics.jsonl``, one JSON object per line.

Rows never change once written. Later versions may add keys, and readers ignore unknown ones.
Non-finite numbers are written as ``null``, because JSON has no NaN, and are read as NaN.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

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


def decode(line: str) -> Row:
    """Decode a row from its line.

    Raises:
        ValueError: the line is not JSON, not a row, or lacks a key.
    """
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError(f"not a row: {line[:80]!r}")
    try:
        match values.pop("row", None):
            case "step":
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
                return EvalRow(
                    step=values["step"],
                    epoch=values["epoch"],
                    examples=values["examples"],
                    metrics={name: _number(value) for name, value in values["metrics"].items()},
                    clock=values["clock"],
                )
            case "event":
                return EventRow(values.pop("step"), values.pop("name"), values)
            case kind:
                raise ValueError(f"unknown row {kind!r}")
    except KeyError as error:
        raise ValueError(f"a row lacks {error}") from None


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
