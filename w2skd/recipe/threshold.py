"""Thresholds of a report: numbers, or multiples of the score of the teacher or of an arm."""

import math
import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from w2skd.recipe.arms import TEACHER, Arm

_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*\*\s*([A-Za-z][A-Za-z0-9_+-]*)")


@dataclass(frozen=True, slots=True)
class Threshold:
    """A metric value whose first crossing is timed.

    Attributes:
        name: normalised text of the recipe, and key in reports.
        of: ``number`` for an absolute value, ``teacher`` for the teacher's score, or the name of an arm for the median
            over seeds of its best scores.
        share: factor of that score; for ``number``, the value itself.
    """

    name: str
    of: Arm
    share: float

    @classmethod
    def parse(cls, value: float | str) -> "Threshold":
        """Read a value such as ``0.9``, ``"teacher"``, ``"0.98*baseline"`` or ``"0.95*teacher"``.

        Raises:
            ValueError: the value is not a finite number or one of these texts.
        """
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise ValueError(f"{value} is not a threshold: it must be finite")
            return cls(f"{value:.12g}", "number", float(value))
        if value == TEACHER:
            return cls(TEACHER, TEACHER, 1.0)
        match = _SHARE.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise ValueError(
                f"{value!r:.60} is not a threshold: write a number, teacher, 0.98*baseline or 0.95*teacher"
            )
        return cls(f"{match[1]}*{match[2]}", match[2], float(match[1]))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls.parse(value),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda threshold: threshold.share if threshold.of == "number" else threshold.name
            ),
        )
