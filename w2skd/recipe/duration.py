"""Durations of training, written as ``5ep``, ``2000step`` or ``0.25run``."""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*(ep|step|run)s?")


@dataclass(frozen=True, slots=True)
class Duration:
    """A number of epochs (``ep``) or optimizer steps (``step``), or a share of the run (``run``)."""

    amount: float
    unit: Literal["ep", "step", "run"]

    @classmethod
    def parse(cls, text: object) -> "Duration":
        """Read a text such as ``"5ep"``, ``"0.5ep"``, ``"2000step"`` or ``"0.25run"``.

        Raises:
            ValueError: the value is no such text, the number of steps is not an integer, or the share is above 1.
        """
        match = _PATTERN.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise ValueError(
                f"{text!r:.60} is not a duration: write epochs as 5ep, steps as 2000step, a share as 0.25run"
            )
        amount, unit = float(match[1]), match[2]
        if unit == "step" and not amount.is_integer():
            raise ValueError(f"{text!r}: the number of steps must be an integer")
        if unit == "run" and amount > 1:
            raise ValueError(f"{text!r}: a share of the run is at most 1run")
        return cls(amount, unit)  # type: ignore[arg-type]

    def steps(self, steps_per_epoch: int, total_steps: int) -> int:
        """Return the duration in optimizer steps, rounded half up."""
        scale = {"ep": steps_per_epoch, "step": 1, "run": total_steps}[self.unit]
        return math.floor(self.amount * scale + 0.5)

    def __str__(self) -> str:
        whole = float(self.amount).is_integer()
        return (str(int(self.amount)) if whole else format(Decimal(repr(self.amount)), "f")) + self.unit

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls.parse(value),
            serialization=core_schema.plain_serializer_function_ser_schema(str),
        )
