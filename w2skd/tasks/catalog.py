"""Every task: the built-in ones, and those that installed packages add."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from w2skd.recipe.schema import Recipe
from w2skd.tasks.classification.recipe import ClassificationRecipe
from w2skd.tasks.detection.recipe import DetectionRecipe
from w2skd.tasks.diffusion.recipe import DiffusionRecipe

BUILT_IN: Mapping[str, type[Recipe]] = {
    "classification": ClassificationRecipe,
    "detection": DetectionRecipe,
    "diffusion": DiffusionRecipe,
}
"""Value of ``task`` in a recipe -> type of the recipe."""

ENTRY_POINTS = "w2skd.tasks"
"""Group of entry points by which another package registers its recipe types under the names of their tasks."""


@cache
def recipe_types() -> Mapping[str, type[Recipe]]:
    """Return the recipe type of every task, by the name of the task. Imports no torch."""
    added: dict[str, Any] = {point.name: point.load() for point in entry_points(group=ENTRY_POINTS)}
    return {**added, **BUILT_IN}
