"""From a file and ``--set`` overrides to a frozen recipe, with all problems told at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from w2skd.errors import RecipeError, suggest
from w2skd.recipe.problems import explain, show
from w2skd.recipe.schema import OTHER_LENGTH, Recipe, TrainSection, overlay
from w2skd.recipe.yaml_text import dump_yaml, parse_yaml

RecipeTypes = Mapping[str, type[Recipe]]
"""Value of ``task`` -> type of the recipe; `w2skd.tasks.catalog.recipe_types` returns all that are installed."""

_PACKAGE = Path(__file__).resolve().parent.parent


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
    if (file := path.with_name(f"{path.name}.yaml")).is_file():
        hint = f" (did you mean the file {file}?)"
    else:
        whole = ", ".join(known for known in shipped if not known.endswith("_smoke"))
        hint = suggest(Path(stem).name, shipped) or f"; shipped are: {whole}, and NAME_smoke of each"
    raise RecipeError(f"recipe {name}: no such file, and no shipped recipe of that name{hint}")


def load_recipe(name: str, overrides: Sequence[str], types: RecipeTypes) -> Recipe:
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
    return validate_recipe(values, f"recipe {path}", types)


def with_overrides(recipe: Recipe, overrides: Sequence[str], *, where: str = "--set") -> Recipe:
    """Lay ``a.b=c`` overrides on a recipe.

    Args:
        recipe: stays as it is.
        overrides: as for `load_recipe`.
        where: the option that they come from, for errors.

    Raises:
        RecipeError: an override is malformed, or the result is wrong.
    """
    values = recipe.model_dump(mode="json")
    for override in overrides:
        _override(values, override)
    return validate_recipe(values, where, {recipe.task: type(recipe)}) if overrides else recipe


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default filled in, as YAML that `load_recipe` reads back to an equal recipe."""
    return dump_yaml(recipe.model_dump(mode="json"))


def validate_recipe(values: Mapping[str, Any], where: str, types: RecipeTypes) -> Recipe:
    """Turn plain values, as from YAML or a checkpoint's metadata, into a recipe.

    Raises:
        RecipeError: with all problems, each with its dotted path and, for an unknown key, the nearest valid one.
    """
    task = values.get("task")
    recipe_type = types.get(task) if isinstance(task, str) else None
    if recipe_type is None:
        hint = suggest(task, types) if isinstance(task, str) else ""
        problem = f"unknown task {show(task)}{hint}" if "task" in values else "missing"
        raise RecipeError(f"{where}: task: {problem}; known: {', '.join(types)}")
    problems = _teacher_train_problems(values)
    try:
        recipe = recipe_type.model_validate(dict(values))
    except ValidationError as error:
        problems = [explain(details, recipe_type) for details in error.errors()] + problems
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
        return [explain(details, TrainSection, ("teacher", "train")) for details in error.errors()]
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
    if keys[-2:-1] == ["train"] and section[keys[-1]] is not None:
        section.pop(OTHER_LENGTH.get(keys[-1], ""), None)


def _kind(value: Any) -> str:
    return {list: "list", str: "text", bool: "truth value"}.get(type(value), "number")
