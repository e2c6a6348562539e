"""What is wrong with a recipe, each problem in one line that says where and how to mend it."""

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from w2skd.errors import suggest


def explain(details: ErrorDetails, root: type[BaseModel], prefix: tuple[str, ...] = ()) -> str:
    """One problem in one line: dotted path, what is wrong, the nearest valid key."""
    path, known = _walk(root, details["loc"])
    where = ".".join((*prefix, *path))
    value = details["input"]
    match details["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key{suggest(path[-1], known)}"
        case "missing":
            return f"{where}: missing"
        case "value_error":
            message = details["msg"].removeprefix("Value error, ")
            return f"{where}: {message}" if where else message
        case "union_tag_not_found":
            return f"{where}.name: missing"
        case "union_tag_invalid":
            return f"{where}.name: should be one of {details['ctx']['expected_tags']}, not {show(value['name'])}"
        case "invalid_key":
            return f"{where}: a key must be a word"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{where}: should be a section with keys of its own, not {show(value)}"
        case "tuple_type":
            return f"{where}: should be a list, not {show(value)}"
        case "string_pattern_mismatch":
            return (
                f"{where}: should be letters, digits, '_', '-' and '.', the first a letter or digit, not {show(value)}"
            )
        case _:
            message = details["msg"].removeprefix("Input should be ")
            return f"{where}: should be {message}, not {show(value)}"


def _walk(root: type[BaseModel], loc: Sequence[int | str]) -> tuple[list[str], list[str]]:
    """Follow an error's location through the schema: the path without union tags, and the keys known where it ends."""
    path: list[str] = []
    models: list[type[BaseModel]] = [root]
    for depth, part in enumerate(loc, start=1):
        tagged = [model for model in models if _tag(model) == part]
        if tagged and not any(part in model.model_fields for model in models):
            models = tagged
            continue
        path.append(str(part))
        if depth < len(loc):
            fields = [
                model.model_fields[part] for model in models if isinstance(part, str) and part in model.model_fields
            ]
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
    """A value as it stands in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
