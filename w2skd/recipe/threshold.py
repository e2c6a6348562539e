"""What a run is timed against: a number, the teacher's level, or a share of the baseline's best."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*\*\s*(baseline|teacher)")


@dataclass(frozen=True, slots=True)
class Threshold:
    """`share` times the level of `of`; of a number, `share` is the level itself.

    Attributes:
        name: as written in the recipe, the key in reports.
        of: what the level is relative to; ``baseline`` is the median over seeds of each baseline's best.
    """

    name: str
    of: Literal["number", "teacher", "baseline"]
    share: float

    @classmethod
    def parse(cls, value: float | str) -> "Threshold":
        """Read ``0.9``, ``"teacher"``, ``"0.98*baseline"`` or ``"0.95*teacher"``.

        Raises:
            ValueError: the value is none of these.
        """
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise ValueError(f"{value} is not a threshold: nothing is above or below it")
            return cls(f"{value:.12g}", "number", float(value))
        if value == "teacher":
            return cls("teacher", "teacher", 1.0)
        match = _SHARE.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise ValueError(
                f"{value!r:.60} is not a threshold: write a number, teacher, 0.98*baseline or 0.95*teacher"
            )
        return cls(f"{match[1]}*{match[2]}", match[2], float(match[1]))  # type: ignore[arg-type]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls.parse(value),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda threshold: threshold.share if threshold.of == "number" else threshold.name
            ),
        )
