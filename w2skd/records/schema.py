"""Schemas of JSON records: the type and range of each field, checked when a record is read.

The first problem is raised as a `SchemaError`, which names the field: ``step must be a whole number, not "3"``.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_MAX_DEPTH = 32
_MAX_INTEGER = 2**63 - 1
_SHOWN = 60
"""Maximum number of characters of a name or value in a message."""


class SchemaError(ValueError):
    """A record is not valid JSON or contradicts its schema. The message is one line, without the file's name."""


class Kind(NamedTuple):
    """What a field may hold.

    Attributes:
        words: the kind with its article, for errors: ``a whole number``.
        accepts: whether a value is of this kind.
        items: the kind of the values of an object or of the items of a list; None if any.
    """

    words: str
    accepts: Callable[[Any], bool]
    items: "Kind | None" = None

    def check(self, value: Any, name: str) -> None:
        """Check the value of the field `name`.

        Raises:
            SchemaError: the value is of another kind.
        """
        if not self.accepts(value):
            raise SchemaError(f"{name} must be {self.words}, not {_shown(value)}")
        if self.items is not None and value is not None:
            for part, item in value.items() if isinstance(value, dict) else enumerate(value):
                self.items.check(item, _inside(name, part))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


WHOLE = Kind("a whole number of 0 or more", lambda value: _is_whole(value) and value >= 0)
NUMBER = Kind("a finite number", _is_number)
AMOUNT = Kind("a finite number of 0 or more", lambda value: _is_number(value) and value >= 0)
TEXT = Kind("text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))


def or_null(kind: Kind) -> Kind:
    """Return a kind that also accepts null."""
    return Kind(f"{kind.words} or null", lambda value: value is None or kind.accepts(value), kind.items)


def one_of(*words: str) -> Kind:
    """Return the kind of a field that holds one of these words."""
    return Kind(f"one of {', '.join(words)}", lambda value: isinstance(value, str) and value in words)


def object_of(kind: Kind) -> Kind:
    """Return the kind of an object with any keys, whose values are of one kind."""
    return OBJECT._replace(items=kind)


def list_of(kind: Kind) -> Kind:
    """Return the kind of a list."""
    return Kind("a list", lambda value: isinstance(value, list), kind)


def parse(content: str | bytes) -> Any:
    """Parse JSON whose numbers are finite and of 64 bits at most.

    Raises:
        SchemaError: the content is not JSON, is nested too deeply, or has a number that is not finite or too large.
    """
    try:
        # The first digits of a longer number suffice to see that it is too large; Python limits the rest.
        values = json.loads(content, parse_int=lambda digits: int(digits[:_SHOWN]))
    except UnicodeDecodeError:
        raise SchemaError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if "\n" in error.doc else ""
        raise SchemaError(f"not valid JSON at {place}column {error.colno}") from None
    except RecursionError:
        raise SchemaError("nested too deeply") from None
    _check_values(values, "", 0)
    return values


def check_object(
    values: Any, required: Mapping[str, Kind], optional: Mapping[str, Kind] | None = None, name: str = ""
) -> dict[str, Any]:
    """Check the fields of an object and return a copy. Fields of neither schema may hold anything.

    Args:
        values: the object.
        required: fields that it must have.
        optional: fields that it may have.
        name: of the object, for errors; empty for a whole record.

    Raises:
        SchemaError: it is no object, lacks a required field, or a field holds another kind of value.
    """
    OBJECT.check(values, name or "a record")
    for field, kind in {**required, **(optional or {})}.items():
        if field in values:
            kind.check(values[field], _inside(name, field))
        elif field in required:
            raise SchemaError(f"{_inside(name, field)} is missing")
    return dict(values)


def _check_values(value: Any, name: str, depth: int) -> None:
    """Check that numbers are finite and of 64 bits, and that nothing is nested deeper than `_MAX_DEPTH`."""
    if isinstance(value, float) and not math.isfinite(value):
        raise SchemaError(f"{name or 'a record'} must be a finite number, not {_shown(value)}")
    if isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise SchemaError(f"{name or 'a record'} must be a number of 64 bits at most, not {_shown(value)}")
    if isinstance(value, dict | list):
        if depth == _MAX_DEPTH:
            raise SchemaError(f"{name} is nested too deeply")
        for part, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check_values(item, _inside(name, part), depth + 1)


def _inside(name: str, part: Any) -> str:
    """Return the name of a part: ``metrics.top1``, ``steps[0]``."""
    if isinstance(part, int):
        return _cut(f"{name}[{part}]")
    key = json.dumps(str(part))[1:-1]
    return _cut(f"{name}.{key}" if name else key)


def _shown(value: Any) -> str:
    """Return a value as JSON, shortened; a checkpoint may hold values that JSON has not."""
    try:
        return _cut(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        return "something else"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
