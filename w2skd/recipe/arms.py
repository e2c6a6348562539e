"""The arms of an experiment: different ways to train the same student. The first arm is the reference.

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
"""Name of an arm of a recipe, or `TEACHER`."""

TEACHER: Final = "teacher"
"""Name of the runs that train a teacher. No arm may have this name."""

Help = Literal["distill", "grow"]
"""How the teacher helps: the student is distilled from it early in training, or starts from its weights."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*")
_RESERVED = (TEACHER, "report", "number")
_SHARED = ("name", "task", "seed", "data", "report", "arms", "lengths", "train.batch_size", "train.accumulate")
"""Keys that must be the same in all arms, because curves with other data, targets or batches are not comparable."""


class ArmSection(Section):
    """One way to train the student.

    Attributes:
        help: how the teacher helps: ``none``, ``distill``, ``grow`` or a list of the last two. ``none`` is stored as an
            empty tuple.
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
                raise ValueError(f"{kind!r:.60} is not a kind of help: use none, one of {known}, or a list of these")
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
                    f"set: {key} must be the same in all arms, because they are compared; "
                    "change it for the whole recipe, or use another recipe"
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
        """Return a recipe's plain values with this arm's changes merged in by `overlay`."""
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
"""The arms of a recipe without an ``arms`` section: the student alone, and the student distilled from its teacher."""


def is_arm_name(text: str) -> bool:
    """Return whether a text is a valid name of an arm."""
    return _NAME.fullmatch(text) is not None and text not in _RESERVED


def arm_problems(arms: Mapping[str, ArmSection]) -> Iterator[str]:
    """Yield the problems of a recipe's arms as a whole, one line each."""
    if not arms:
        yield "arms: define at least one arm, or omit the section"
    seen: dict[str, str] = {}
    for name, arm in arms.items():
        if not is_arm_name(name):
            reserved = ", ".join(_RESERVED)
            yield (
                f"arms.{name}: not a valid name: start with a letter, followed by letters, digits, '_', '+' and '-'; "
                f"reserved: {reserved}"
            )
        described = repr((sorted(arm.help), sorted(arm.overrides.items(), key=lambda item: item[0])))
        if described in seen:
            yield f"arms.{name}: has the same help and set as {seen[described]}: change one of them"
        seen.setdefault(described, name)
