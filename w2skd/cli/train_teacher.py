"""``w2skd train-teacher``."""

from w2skd.cli.options import RecipeFlags, TrainFlags
from w2skd.cli.training import train
from w2skd.recipe.arms import TEACHER


def train_teacher(recipe: RecipeFlags, flags: TrainFlags) -> None:
    """Train the recipe's weak teacher. Skip this if you already have a checkpoint."""
    resolved = recipe.resolve(seed=flags.seed)
    train(resolved, TEACHER, recipe.experiment(resolved), flags)
