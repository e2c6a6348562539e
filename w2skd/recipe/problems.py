"""One-line messages for the validation errors of a recipe."""

from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from w2skd.errors import suggest

_EXPECTED = {
    "model_type": "a section with keys of its own",
    "model_attributes_type": "a section with keys of its own",
    "dict_type": "a section with keys of its own",
    "tuple_type": "a list",
    "string_pattern_mismatch": "letters, digits, '_', '-' and '.', the first a letter or digit",
}
"""Error type -> the expected value; other types use pydantic's message."""


def explain(details: ErrorDetails, root: type[BaseModel], prefix: tuple[str, ...] = ()) -> str:
    """Describe a validation error in one line: dotted path, problem and, for an unknown key, the nearest valid one.

    Args:
        details: the error.
        root: the validated model.
        prefix: keys of the place of `root` in the recipe.
    """
    path, known = _walk(root, details["loc"])
    where, message, value = ".".join((*prefix, *path)), details["msg"], details["input"]
    match details["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key{suggest(path[-1], known)}"
        case "missing":
            return f"{where}: missing"
        case "value_error":
            message = message.removeprefix("Value error, ")
            return f"{where}: {message}" if where else message
        case "union_tag_not_found":
            return f"{where}.name: missing"
        case "union_tag_invalid":
            return f"{where}.name: should be one of {details['ctx']['expected_tags']}, not {show(value['name'])}"
        case "invalid_key":
            return f"{where}: a key must be text"
        case kind:
            expected = _EXPECTED.get(kind, message.removeprefix("Input should be "))
            return f"{where}: should be {expected}, not {show(value)}"


def _walk(root: type[BaseModel], loc: Sequence[int | str]) -> tuple[list[str], list[str]]:
    """Follow an error's location through the schema. Return the path without union tags, and the valid last keys."""
    path: list[str] = []
    models: list[type[BaseModel]] = [root]
    in_mapping = False
    for depth, part in enumerate(loc, start=1):
        if in_mapping:  # any key leads to the same models
            path.append(str(part))
            in_mapping = False
            continue
        tagged = [model for model in models if _tag(model) == part]
        if tagged and not any(part in model.model_fields for model in models):
            models = tagged
            continue
        path.append(str(part))
        if depth < len(loc):
            fields = [model.model_fields[str(part)] for model in models if str(part) in model.model_fields]
            in_mapping = any(get_origin(field.annotation) is dict for field in fields)
            models = [inner for field in fields for inner in _models(field.annotation)]
    return path, [field for model in models for field in model.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("name")
    tags = get_args(field.annotation) if field else ()
    return tags[0] if tags else None


def show(value: Any) -> str:
    """Return the repr of a value, shortened to 60 characters, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
