"""A finished model, scored again."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from w2skd.errors import CheckpointError, UsageError
from w2skd.platform.device import open_device
from w2skd.platform.ranks import Ranks, process_group
from w2skd.recipe.load import load_recipe, with_overrides
from w2skd.recipe.names import EVALUATION_LEAVES
from w2skd.recipe.schema import published_weights
from w2skd.tasks.base import Evaluation, Role
from w2skd.tasks.catalog import build_task
from w2skd.tasks.classification.recipe import ClassificationRecipe
from w2skd.training.engine import evaluate
from w2skd.weights.load import load_weights
from w2skd.weights.pretrained import open_weights


@dataclass(frozen=True)
class ScoredModel:
    """What `score_checkpoint` found.

    Attributes:
        checkpoint: the file that the weights came from.
        model: the architecture's name.
        metric: the recipe's own metric, which comes first.
        account: what was done, or assumed, to score it on this data; a line each.
        evaluation: all metrics and tables.
    """

    checkpoint: Path
    model: str
    metric: str
    account: tuple[str, ...]
    evaluation: Evaluation


def score_checkpoint(
    checkpoint: Path,
    *,
    model_name: str | None = None,
    recipe_name: str | None,
    overrides: Sequence[str],
    role: str | None,
    device_name: str,
    ranks: Ranks,
    wanted: Collection[str] = (),
) -> ScoredModel:
    """Evaluate a checkpoint on its recipe's evaluation set, or on another recipe's.

    Published weights are scored as their library does: with images prepared as they want them, in fp32.

    Args:
        checkpoint: a finished run, a file with weights, or ``pretrained`` (``pretrained:TAG``).
        model_name: the architecture, where it is not the recipe's of that role.
        recipe_name: replaces the recipe inside the checkpoint; needed where there is none.
        overrides: ``a.b=c``, laid on the recipe.
        role: ``teacher`` or ``student`` of that recipe; None takes what the checkpoint says, else the student.
        device_name: as for training.
        ranks: this process among its peers.
        wanted: what else the evaluation is to leave, of `w2skd.recipe.names.EVALUATION_LEAVES`.

    Raises:
        UserError: the checkpoint, the recipe or the data cannot be used.
    """
    published = published_weights(checkpoint)[0]
    made_by = None if published else load_weights(checkpoint)
    if recipe_name is not None:
        recipe = load_recipe(recipe_name, overrides)
    elif made_by is not None and made_by.recipe is not None:
        recipe = with_overrides(made_by.recipe, overrides)
    elif published:
        raise UsageError(f"--recipe is missing: on which images {model_name or checkpoint} is scored, only it can tell")
    else:
        raise CheckpointError(f"{checkpoint}: carries no recipe; say with --recipe how its model is built and scored")
    for name in wanted:
        if name not in EVALUATION_LEAVES[recipe.task]:
            known = ", ".join(f"--{each}" for each in EVALUATION_LEAVES[recipe.task])
            raise UsageError(f"--{name} is not for {recipe.task}, which has {known}")
    which = Role(role or (made_by and made_by.role) or (Role.TEACHER if published else Role.STUDENT))
    if model_name is not None:
        recipe = with_overrides(recipe, [f"{which}.model={model_name}"], where="--model")
    weights = open_weights(checkpoint, recipe.model_of(which))
    train = recipe.train_of(which)
    precision, prepared = train.precision, tuple[str, ...]()
    if "preprocessing" in weights.details and isinstance(recipe, ClassificationRecipe):
        recipe = recipe.prepared_as(weights.details["preprocessing"], weights.details["normalization"])
        precision = "fp32"
        prepared = (_preparation(weights.details["preprocessing"], recipe.data.interpolation),)
        if weights.details["preprocessing"].get("crop_mode") == "squash":
            prepared += (
                "its library squashes whole images to a square, here their middle is taken: expect other scores",
            )
    device = open_device(device_name, ranks)
    with process_group(ranks, device):
        task = build_task(recipe, train=train, seed=recipe.seed, device=device, ranks=ranks)
        model, account = task.fit_model(which, weights)
        name = recipe.model_of(which)
        model.to(device)
        if train.channels_last:
            model.to(memory_format=torch.channels_last)
        evaluation = evaluate(task, model, device, precision, with_predictions=bool(wanted))
        model.eval()  # what the evaluation can still draw asks the model again
    told = (*account, *prepared, *evaluation.account)
    return ScoredModel(weights.path, name, recipe.report.metric, told, evaluation)


def _preparation(preprocessing: Mapping[str, Any], interpolation: str) -> str:
    resize_px, crop_px = preprocessing["resize_px"], preprocessing["crop_px"]
    cut = f", their middle {crop_px} px taken" if crop_px != resize_px else ", their middle taken"
    return f"images as its library prepares them: shorter side to {resize_px} px ({interpolation}){cut}; in fp32"
