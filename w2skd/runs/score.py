"""Scoring a model outside training."""

from dataclasses import dataclass
from pathlib import Path

import torch

from w2skd.errors import CheckpointError, UsageError
from w2skd.models.plugin import load_plugin
from w2skd.platform.device import float32_math, open_device
from w2skd.platform.ranks import Ranks, process_group
from w2skd.recipe.load import load_recipe, validate_recipe, with_overrides
from w2skd.recipe.schema import Recipe, published_weights
from w2skd.runs.options import ScoreOptions
from w2skd.tasks.base import Evaluation, Role
from w2skd.tasks.catalog import recipe_types
from w2skd.training.engine import evaluate
from w2skd.weights.load import Weights, load_weights


@dataclass(frozen=True)
class ScoredModel:
    """A model and its scores.

    Attributes:
        checkpoint: file of the weights.
        model: name of the architecture.
        recipe: the recipe that defines the scoring.
        notes: what was adapted or assumed, and how it was scored, one line each.
        evaluation: metrics, tables and files.
    """

    checkpoint: Path
    model: str
    recipe: Recipe
    notes: tuple[str, ...]
    evaluation: Evaluation


def score_model(options: ScoreOptions, ranks: Ranks) -> ScoredModel:
    """Evaluate a checkpoint on the evaluation set of its recipe, or of another one.

    Published weights are scored as their library scores them, see `Recipe.prepared_as`.

    Raises:
        UserError: the checkpoint, the recipe or the data cannot be used.
    """
    if options.plugin is not None:
        load_plugin(options.plugin)
    published = published_weights(options.checkpoint)[0]
    made_by = None if published else load_weights(options.checkpoint, options.weights)
    recipe = _recipe_of(options, made_by)
    _check_outputs(options, recipe)
    role = Role(options.role or (made_by and made_by.role) or (Role.TEACHER if published else Role.STUDENT))
    if options.model is not None:
        recipe = with_overrides(recipe, [f"{role}.model={options.model}"], where="--model")
    weights = recipe.task_type().open_weights(options.checkpoint, recipe.model_of(role), options.weights)
    recipe, prepared = recipe.prepared_as(weights.details)
    train, device = recipe.train_of(role), open_device(options.device, ranks)
    with process_group(ranks, device), float32_math(tf32=train.precision == "tf32"):
        task = recipe.task_type()(recipe, train=train, seed=recipe.seed, device=device, ranks=ranks)
        model, notes = task.fit_model(role, weights)
        model.to(device)
        if train.channels_last:
            model.to(memory_format=torch.channels_last)
        evaluation = evaluate(task, model, device, train.precision, with_predictions=bool(options.outputs))
        model.eval()  # pictures that are drawn later call the model again
    lines = (*notes, *prepared, *evaluation.notes)
    return ScoredModel(weights.path, recipe.model_of(role), recipe, lines, evaluation)


def _recipe_of(options: ScoreOptions, made_by: Weights | None) -> Recipe:
    if options.recipe is not None:
        return load_recipe(options.recipe, options.overrides, recipe_types())
    if made_by is None:
        model = options.model or options.checkpoint
        raise UsageError(f"--recipe is missing: it names the data on which {model} is scored")
    if made_by.recipe is None:
        raise CheckpointError(f"{options.checkpoint}: contains no recipe; name one with --recipe")
    try:
        recipe = validate_recipe(made_by.recipe, str(made_by.path), recipe_types())
    except UsageError as error:
        raise CheckpointError(f"{made_by.path}: its recipe is damaged or of another version: {error}") from None
    return with_overrides(recipe, options.overrides)


def _check_outputs(options: ScoreOptions, recipe: Recipe) -> None:
    known = [*recipe.outputs, *(["pictures"] if recipe.draws_pictures else [])]
    for name in options.outputs:
        if name not in known:
            offered = ", ".join(f"--{each}" for each in known) or "none"
            raise UsageError(f"--{name}: not an output of {recipe.task}, which offers {offered}")
