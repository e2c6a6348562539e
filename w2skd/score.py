"""A finished model, scored again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from w2skd.checkpoint import check_details, load_into, load_weights
from w2skd.device import open_device
from w2skd.distributed import Ranks, process_group
from w2skd.engine import evaluate
from w2skd.errors import CheckpointError
from w2skd.recipe.load import load_recipe, with_overrides
from w2skd.tasks.base import Evaluation, Role
from w2skd.tasks.catalog import build_task


@dataclass(frozen=True)
class ScoredModel:
    """What `score_checkpoint` found.

    Attributes:
        checkpoint: the file that the weights came from.
        model: the architecture's name.
        metric: the recipe's own metric, which comes first.
        evaluation: all metrics and tables.
    """

    checkpoint: Path
    model: str
    metric: str
    evaluation: Evaluation


def score_checkpoint(
    checkpoint: Path,
    *,
    recipe_name: str | None,
    overrides: Sequence[str],
    role: str | None,
    device_name: str,
    ranks: Ranks,
) -> ScoredModel:
    """Evaluate a checkpoint on its recipe's evaluation set, or on another recipe's.

    Args:
        checkpoint: a finished run, a ``model.safetensors``, a training checkpoint, or a bare state dict.
        recipe_name: replaces the recipe inside the checkpoint; needed for a bare state dict.
        overrides: ``a.b=c``, laid on the recipe.
        role: ``teacher`` or ``student`` of that recipe; None takes what the checkpoint says, else the student.
        device_name: as for training.
        ranks: this process among its peers.

    Raises:
        UserError: the checkpoint, the recipe or the data cannot be used.
    """
    weights = load_weights(checkpoint)
    if recipe_name is not None:
        recipe = load_recipe(recipe_name, overrides)
    elif weights.recipe is not None:
        recipe = with_overrides(weights.recipe, overrides)
    else:
        raise CheckpointError(f"{weights.path}: carries no recipe; say with --recipe how its model is built and scored")
    which = Role(role or weights.role or Role.STUDENT)
    train = recipe.train_of(which)
    device = open_device(device_name, ranks)
    with process_group(ranks, device):
        task = build_task(recipe, train=train, seed=recipe.seed, device=device, ranks=ranks)
        model = task.build_model(which)
        name = recipe.model_of(which)
        load_into(model, weights, expected=name)
        check_details(weights, task.describe_model())
        model.to(device)
        if train.channels_last:
            model.to(memory_format=torch.channels_last)
        evaluation = evaluate(task, model, device, train.precision)
    return ScoredModel(weights.path, name, recipe.report.metric, evaluation)
