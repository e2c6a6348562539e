"""The smallest diffusion experiment, about one second per run on one core, and the classifier that scores it."""

from pathlib import Path

import torch
import yaml
from known import validate_recipe

from w2skd.data.shapes import CLASSES
from w2skd.models.catalog import build_classifier
from w2skd.recipe.load import with_overrides
from w2skd.tasks.diffusion.recipe import DiffusionRecipe
from w2skd.weights.load import save_model

RECIPE = """\
name: noise
task: diffusion
data: {source: shapes, image_size: 8, train_examples: 24, eval_examples: 20}
diffusion: {timesteps: 40}
sampler: {steps: 2, batch_size: 8}
fid: {samples: 12, extractor: "checkpoint:FOLDER/classifier.safetensors", cache: FOLDER/cache, kid_subsets: 4}
teacher: {model: unet_mini_nc16_rb1, train: {steps: 1, ema: null}}
student: {model: unet_mini_nc16_rb1}
train:
  steps: 8
  batch_size: 4
  optimizer: {name: adamw, lr: 1.0e-3}
  lr_schedule: {name: constant, warmup: 2step}
  ema: {half_life: 2step}
  validate_every: 3step
  log_every: 1
  deterministic: true
distill: {warmup: 2step, hold: 3step, decay: 3step, switch: {patience: 2}}
report: {metric: fid, thresholds: [teacher]}
"""
"""Lambda is 0 at step 0, 1/2 at step 1, 1 at steps 2 to 4 and falls until step 8."""

CLASSIFIER = """\
name: judge
task: classification
data: {source: shapes, image_size: 8}
teacher: {model: small_cnn_weak}
student: {model: small_cnn_weak}
train:
  steps: 1
  batch_size: 8
  optimizer: {name: sgd, lr: 0.1}
  lr_schedule: {name: constant}
"""


def classifier_in(folder: Path) -> Path:
    """An untrained classifier with 64 features, written like a finished run's; created once per folder."""
    path = folder / "classifier.safetensors"
    if not path.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build_classifier("small_cnn_weak", len(CLASSES), 8)
        recipe = validate_recipe(yaml.safe_load(CLASSIFIER), "judge")
        details = {"classes": list(CLASSES), "normalization": [0.4, 0.4, 0.4, 0.2, 0.2, 0.2]}
        save_model(path, model.state_dict(), recipe, "student", details)
    return path


def recipe_of(folder: Path) -> Path:
    """Write the recipe and its classifier into a folder; return the recipe's path."""
    path = folder / "noise.yaml"
    path.write_text(RECIPE.replace("FOLDER", str(classifier_in(folder).parent)))
    return path


def read_recipe(folder: Path, *overrides: str) -> DiffusionRecipe:
    """Return the recipe, with its classifier in a folder."""
    text = RECIPE.replace("FOLDER", str(classifier_in(folder).parent))
    recipe = with_overrides(validate_recipe(yaml.safe_load(text), "test"), overrides)
    assert isinstance(recipe, DiffusionRecipe)
    return recipe
