"""Loading recipes: a file and ``--set`` overrides become a frozen `Recipe`, with all problems in one error."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from w2skd.errors import RecipeError, suggest
from w2skd.recipe.overlay import OTHER_LENGTH, overlay
from w2skd.recipe.problems import explain, show
from w2skd.recipe.schema import Recipe
from w2skd.recipe.train import TrainSection
from w2skd.recipe.trunk import trunk_problems
from w2skd.recipe.yaml_text import dump_yaml, parse_yaml

RecipeTypes = Mapping[str, type[Recipe]]
"""Value of ``task`` -> type of the recipe, from `w2skd.tasks.catalog.recipe_types`."""

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped_recipes() -> dict[str, Path]:
    """Return the files of the shipped recipes by name, from the installed package or the checkout."""
    folders = [folder for folder in (_PACKAGE / "shipped_recipes", _PACKAGE.parent / "recipes") if folder.is_dir()]
    return {path.stem: path for folder in folders[:1] for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """Return the recipe file for a path, or for the name of a shipped recipe with or without ``.yaml``.

    Raises:
        RecipeError: neither exists; the message suggests a similar name.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    stem = name.removesuffix(".yaml")
    if stem in shipped:
        return shipped[stem]
    if path.is_dir():
        raise RecipeError(f"recipe {name}: is a folder, not a file")
    if (file := path.with_name(f"{path.name}.yaml")).is_file():
        hint = f" (did you mean the file {file}?)"
    else:
        whole = ", ".join(known for known in shipped if not known.endswith("_smoke"))
        hint = suggest(Path(stem).name, shipped) or f"; shipped recipes: {whole}, each also as NAME_smoke"
    raise RecipeError(f"recipe {name}: no such file or shipped recipe{hint}")


def load_recipe(name: str, overrides: Sequence[str], types: RecipeTypes) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        name: a path, or the name of a shipped recipe.
        overrides: ``a.b=c`` each, where ``c`` is YAML; applied in order.
        types: the type of recipe for each task.

    Raises:
        RecipeError: the file is missing, unreadable, empty or not valid YAML, or the recipe is wrong. The message lists
            all problems of the recipe with their dotted paths.
    """
    path = find_recipe(name)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"recipe {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"recipe {path}: not UTF-8 text") from None
    values = parse_yaml(text, f"recipe {path}")
    if values is None:
        raise RecipeError(f"recipe {path}: empty")
    if not isinstance(values, dict):
        kind = {list: "list", str: "text", bool: "boolean"}.get(type(values), "number")
        raise RecipeError(f"recipe {path}: a recipe must be a mapping of keys to values, not a {kind}")
    for override in overrides:
        _override(values, override)
    return validate_recipe(values, f"recipe {path}", types)


def with_overrides(recipe: Recipe, overrides: Sequence[str], *, where: str = "--set") -> Recipe:
    """Return a recipe with overrides applied.

    Args:
        recipe: the original; it is not changed.
        overrides: as in `load_recipe`.
        where: the command's option with the overrides, for errors.

    Raises:
        RecipeError: an override is malformed, or the resulting recipe is wrong.
    """
    values = recipe.model_dump(mode="json")
    for override in overrides:
        _override(values, override)
    return validate_recipe(values, where, {recipe.task: type(recipe)}) if overrides else recipe


def dump_recipe(recipe: Recipe) -> str:
    """Write the recipe with all defaults as YAML. `load_recipe` reads it back as an equal recipe."""
    return dump_yaml(recipe.model_dump(mode="json"))


def validate_recipe(values: Mapping[str, Any], where: str, types: RecipeTypes) -> Recipe:
    """Turn plain values, such as those of a YAML file or a checkpoint's metadata, into a recipe.

    Args:
        values: nested plain values.
        where: their origin, for errors.
        types: the type of recipe for each task.

    Raises:
        RecipeError: the recipe is wrong. The message lists all problems with their dotted paths and, for unknown keys,
            the nearest valid ones.
    """
    task = values.get("task")
    recipe_type = types.get(task) if isinstance(task, str) else None
    if recipe_type is None:
        hint = suggest(task, types) if isinstance(task, str) else ""
        problem = f"unknown task {show(task)}{hint}" if "task" in values else "missing"
        raise RecipeError(f"{where}: task: {problem}; known: {', '.join(types)}")
    problems = [*_teacher_train_problems(values), *_arm_problems(values, recipe_type)]
    try:
        recipe = recipe_type.model_validate(dict(values))
    except ValidationError as error:
        problems = [explain(details, recipe_type) for details in error.errors()] + problems
    if not problems:
        return recipe
    count = f"{len(problems)} problems\n  " if len(problems) > 1 else ""
    raise RecipeError(f"{where}: {count}" + "\n  ".join(problems))


def _teacher_train_problems(values: Mapping[str, Any]) -> list[str]:
    """Return the problems of the teacher's training section, or none if ``train`` itself is wrong."""
    teacher = values.get("teacher")
    over = teacher.get("train") if isinstance(teacher, dict) else None
    if not isinstance(over, dict):
        return []
    with suppress(ValidationError):
        base = TrainSection.model_validate(values.get("train")).model_dump(mode="json")
        try:
            TrainSection.model_validate(overlay(base, over))
        except ValidationError as error:
            return [explain(details, TrainSection, ("teacher", "train")) for details in error.errors()]
    return []


def _arm_problems(values: Mapping[str, Any], recipe_type: type[Recipe]) -> list[str]:
    """Return the problems of the recipes of single arms; none if the recipe itself is invalid."""
    problems: list[str] = []
    with suppress(ValidationError):
        recipe = recipe_type.model_validate(dict(values))
        for name, arm in recipe.arms.items():
            try:
                own = recipe.for_arm(name)
            except ValidationError as error:
                problems += [explain(details, recipe_type, ("arms", name, "set")) for details in error.errors()]
                continue
            problems += [f"arms.{name}: {problem}" for problem in trunk_problems(own, arm)]
    return problems


def _override(values: dict[str, Any], override: str) -> None:
    """Set the value at a dotted path, creating missing sections."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set {override}: expected section.key=value")
    section = values
    for depth, key in enumerate(keys[:-1], start=1):
        inner = {} if section.get(key) is None else section[key]
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {override}: {'.'.join(keys[:depth])} is a value, not a section")
        section[key] = dict(inner)  # a copy: a YAML alias may share the object with another place
        section = section[key]
    section[keys[-1]] = parse_yaml(text, f"--set {override}")
    if keys[-2:-1] == ["train"] and section[keys[-1]] is not None:
        section.pop(OTHER_LENGTH.get(keys[-1], ""), None)
