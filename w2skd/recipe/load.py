"""From a file and ``--set`` overrides to a frozen recipe, with all problems told at once."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from w2skd.errors import RecipeError, suggest
from w2skd.recipe.classification import ClassificationRecipe
from w2skd.recipe.schema import Recipe, TrainSection, overlay

RECIPE_TYPES: dict[str, type[Recipe]] = {"classification": ClassificationRecipe}

_PACKAGE = Path(__file__).resolve().parent.parent


_MAX_ALIASES = 16
"""Aliases multiply what they stand for, also one another: so few can make a file a thousand times as long, not more."""


class _Loader(yaml.SafeLoader):
    """YAML without its traps: ``1e-3`` is a number; ``on``, ``no`` and dates are words; a repeated key is an error."""

    _aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > _MAX_ALIASES:
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise yaml.composer.ComposerError(None, None, f"more than {_MAX_ALIASES} aliases", mark)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.composer.ComposerError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes the words that `_Loader` would take for numbers."""


_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "bool": (r"(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9]*)$", "-+0123456789"),
    "float": (
        r"([-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.inf|\.nan)$",
        "-+0123456789.",
    ),
}
"""What a plain scalar must look like to be one of these, and the characters that it may begin with."""

_Loader.yaml_constructors = {
    _TAG + kind: yaml.SafeLoader.yaml_constructors[_TAG + kind]
    for kind in ("null", "bool", "int", "float", "str", "seq", "map")
} | {None: yaml.SafeLoader.yaml_constructors[None]}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (_TAG + "null", _TAG + "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind_of_scalar, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind_of_scalar, re.compile(_pattern), list(_first))


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that comes with w2skd, installed or in a checkout."""
    for folder in (_PACKAGE / "shipped_recipes", _PACKAGE.parent / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def find_recipe(name: str) -> Path:
    """The file that `name` means: a path, or the name of a shipped recipe with or without ``.yaml``.

    Raises:
        RecipeError: there is neither; near names are suggested.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    stem = name.removesuffix(".yaml")
    if stem in shipped:
        return shipped[stem]
    if path.is_dir():
        raise RecipeError(f"recipe {name}: a folder, not a file")
    hint = suggest(Path(stem).name, shipped) or f"; shipped are: {', '.join(shipped)}"
    raise RecipeError(f"recipe {name}: no such file, and no shipped recipe of that name{hint}")


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and lay ``a.b=c`` overrides on it; their values are read as YAML.

    Raises:
        RecipeError: the file is missing, unreadable, empty or not YAML, or the recipe is wrong; all problems are told
            together, each with its dotted path.
    """
    path = find_recipe(name)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"recipe {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"recipe {path}: not text in UTF-8") from None
    values = parse_yaml(text, f"recipe {path}")
    if values is None:
        raise RecipeError(f"recipe {path}: empty")
    if not isinstance(values, dict):
        raise RecipeError(f"recipe {path}: not a recipe, but a {_kind(values)}; expected keys with values")
    for override in overrides:
        _override(values, override)
    return validate_recipe(values, f"recipe {path}")


def with_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Lay ``a.b=c`` overrides on a recipe.

    Raises:
        RecipeError: an override is malformed, or the result is wrong.
    """
    values = recipe.model_dump(mode="json")
    for override in overrides:
        _override(values, override)
    return validate_recipe(values, "--set") if overrides else recipe


def parse_yaml(text: str, where: str) -> Any:
    """Parse one YAML document safely.

    Raises:
        RecipeError: the text is not YAML, with line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (ValueError, KeyError) as error:  # such as ``!!int many``, or an integer of 5,000 digits
        raise RecipeError(f"{where}: not valid YAML: a value does not fit its type: {error}") from None
    except RecursionError:
        raise RecipeError(f"{where}: not valid YAML: nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{where}: not valid YAML{place}: {problem}") from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default filled in, as YAML that `load_recipe` reads back to an equal recipe."""
    values = recipe.model_dump(mode="json")
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def validate_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    """Turn plain values, as from YAML or a checkpoint's metadata, into a recipe.

    Raises:
        RecipeError: with all problems, each with its dotted path and, for an unknown key, the nearest valid one.
    """
    task = values.get("task")
    recipe_type = RECIPE_TYPES.get(task) if isinstance(task, str) else None
    if recipe_type is None:
        hint = suggest(task, RECIPE_TYPES) if isinstance(task, str) else ""
        problem = f"unknown task {_show(task)}{hint}" if "task" in values else "missing"
        raise RecipeError(f"{where}: task: {problem}; known: {', '.join(RECIPE_TYPES)}")
    problems = _teacher_train_problems(values)
    try:
        recipe = recipe_type.model_validate(dict(values))
    except ValidationError as error:
        problems = [_explain(details, recipe_type) for details in error.errors()] + problems
    if not problems:
        return recipe
    if len(problems) == 1:
        raise RecipeError(f"{where}: {problems[0]}")
    raise RecipeError("\n  ".join([f"{where}: {len(problems)} problems", *problems]))


def _teacher_train_problems(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with ``teacher.train`` laid over ``train``; nothing where ``train`` is wrong itself."""
    teacher = values.get("teacher")
    over = teacher.get("train") if isinstance(teacher, dict) else None
    if not isinstance(over, dict):
        return []
    try:
        base = TrainSection.model_validate(values.get("train")).model_dump(mode="json")
    except ValidationError:
        return []
    try:
        TrainSection.model_validate(overlay(base, over))
    except ValidationError as error:
        return [_explain(details, TrainSection, ("teacher", "train")) for details in error.errors()]
    return []


def _override(values: dict[str, Any], override: str) -> None:
    """Set the value at a dotted path, making sections on the way."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set {override}: write it as section.key=value")
    section = values
    for depth, key in enumerate(keys[:-1], start=1):
        inner = {} if section.get(key) is None else section[key]
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {override}: {'.'.join(keys[:depth])} is a value, not a section")
        section[key] = dict(inner)  # a copy, since a YAML alias may have put the same object elsewhere too
        section = section[key]
    section[keys[-1]] = parse_yaml(text, f"--set {override}")
    if keys[-2:] == ["train", "steps"] and section["steps"] is not None:
        section.pop("epochs", None)
    if keys[-2:] == ["train", "epochs"] and section["epochs"] is not None:
        section.pop("steps", None)


def _explain(details: ErrorDetails, root: type[BaseModel], prefix: tuple[str, ...] = ()) -> str:
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
            return f"{where}.name: should be one of {details['ctx']['expected_tags']}, not {_show(value['name'])}"
        case "invalid_key":
            return f"{where}: a key must be a word"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{where}: should be a section with keys of its own, not {_show(value)}"
        case "tuple_type":
            return f"{where}: should be a list, not {_show(value)}"
        case "string_pattern_mismatch":
            return (
                f"{where}: should be letters, digits, '_', '-' and '.', the first a letter or digit, not {_show(value)}"
            )
        case _:
            message = details["msg"].removeprefix("Input should be ")
            return f"{where}: should be {message}, not {_show(value)}"


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


def _kind(value: Any) -> str:
    return {list: "list", str: "text", bool: "truth value"}.get(type(value), "number")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
