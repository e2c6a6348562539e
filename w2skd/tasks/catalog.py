"""Which task a recipe is about."""

from typing import Any

import torch

from w2skd.platform.ranks import Ranks
from w2skd.recipe.schema import Recipe, TrainSection
from w2skd.tasks.base import Task
from w2skd.tasks.classification.recipe import ClassificationRecipe
from w2skd.tasks.classification.task import ClassificationTask
from w2skd.tasks.detection.recipe import DetectionRecipe
from w2skd.tasks.detection.task import DetectionTask
from w2skd.tasks.diffusion.recipe import DiffusionRecipe


def build_task(recipe: Recipe, *, train: TrainSection, seed: int, device: torch.device, ranks: Ranks) -> Task[Any]:
    """The task of a recipe, with its data loaded.

    Raises:
        DataError: the examples are missing or damaged.
        UsageError: the batch cannot be shared evenly among ranks and micro-batches.
    """
    match recipe:
        case ClassificationRecipe():
            return ClassificationTask(recipe, train=train, seed=seed, device=device, ranks=ranks)
        case DetectionRecipe():
            return DetectionTask(recipe, train=train, seed=seed, device=device, ranks=ranks)
        case DiffusionRecipe():
            from w2skd.tasks.diffusion.task import DiffusionTask  # diffusers and torch-fidelity take seconds to import

            return DiffusionTask(recipe, train=train, seed=seed, device=device, ranks=ranks)
        case _:
            raise AssertionError(f"no task for {type(recipe).__name__}")
