"""The arms of an experiment: ways of training the same student, of which the first is the reference.

arms:
  baseline: {help: none}
  w2s: {help: distill}
  grown: {help: grow, set: {train.optimizer.lr: 0.2}, note: starts from the teacher's weights}
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Field, field_serializer, field_validator, model_validator

from w2skd.recipe.flat import flatten
from w2skd.recipe.overlay import overlay
from w2skd.recipe.section import Section

Arm = str
"""Name of an arm in a recipe, or `TEACHER`."""

TEACHER: Final = "teacher"
"""Name of the runs that train a teacher. No arm of the student may have it."""

Help = Literal["distill", "grow"]
"""How a weaker model helps: it is distilled from early in training, or its weights are the start of the student."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*")
_RESERVED = (TEACHER, "report", "number")
_SHARED = ("name", "task", "seed", "data", "report", "arms", "lengths", "train.batch_size", "train.accumulate")
"""Keys that all arms must share: with other data, targets or batches their curves cannot be compared."""


class ArmSection(Section):
    """One way of training the student.

    Attributes:
        help: how the teacher helps: ``none``, ``distill``, ``grow`` or a list of the last two. Empty for ``none``.
        set: values of the recipe that this arm changes, as nested sections or dotted keys.
        note: a sentence for the report.
    """

    help: Annotated[tuple[Help, ...], Field(strict=False)] = ()
    set: dict[str, Any] = Field(default_factory=dict)
    note: str | None = None

    @field_validator("help", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        kinds = [] if value == "none" else value if isinstance(value, list | tuple) else [value]
        for kind in kinds:
            if kind not in get_args(Help):
                known = ", ".join(get_args(Help))
                raise ValueError(f"{kind!r:.60} is no help: write none, one of {known}, or a list of these")
        return tuple(kinds)

    @field_serializer("help")
    def _as_written(self, value: tuple[Help, ...]) -> str | list[str]:
        return "none" if not value else value[0] if len(value) == 1 else list(value)

    @model_validator(mode="after")
    def _check(self) -> "ArmSection":
        if len(set(self.help)) < len(self.help):
            raise ValueError("help: each kind once")
        for key in self.overrides:
            if any(key == shared or key.startswith(f"{shared}.") for shared in _SHARED):
                raise ValueError(
                    f"set: {key} must be the same in all arms, or they cannot be compared; "
                    "change it for the whole recipe, or write a recipe of its own"
                )
            section = key.partition(".")[0]
            if section == "distill" and "distill" not in self.help:
                raise ValueError(f"set: {key} has no effect without help: distill")
            if section == "teacher" and not self.help:
                raise ValueError(f"set: {key} has no effect with help: none")
        return self

    @property
    def overrides(self) -> dict[str, Any]:
        """The changed values by dotted key."""
        return flatten(self.set)

    def applied_to(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a recipe's plain values with this arm's changes merged in, as `overlay` merges."""
        merged = dict(values)
        for key, value in self.set.items():
            for part in reversed(key.split(".")[1:]):
                value = {part: value}
            merged = overlay(merged, {key.partition(".")[0]: value})
        return merged


Arms = dict[str, ArmSection]

DEFAULT_ARMS: Final[Mapping[str, ArmSection]] = {
    "baseline": ArmSection(),
    "w2s": ArmSection(help=("distill",)),
}
"""The arms of a recipe without any: the student alone, and distilled from its teacher."""


def is_arm_name(text: str) -> bool:
    """Return whether a text can be the name of an arm of the student."""
    return _NAME.fullmatch(text) is not None and text not in _RESERVED


def arm_problems(arms: Mapping[str, ArmSection]) -> Iterator[str]:
    """Yield what is wrong with a recipe's arms as a whole, one line each."""
    if not arms:
        yield "arms: name at least one, or leave the section out"
    seen: dict[str, str] = {}
    for name, arm in arms.items():
        if not is_arm_name(name):
            reserved = ", ".join(_RESERVED)
            yield f"arms.{name}: not a name: use letters, digits, '_', '+' and '-', and none of {reserved}"
        described = repr((sorted(arm.help), sorted(arm.overrides.items(), key=lambda item: item[0])))
        if described in seen:
            yield f"arms.{name}: the same as {seen[described]}: give it another help or set"
        seen.setdefault(described, name)
