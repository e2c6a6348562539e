"""``w2skd train-teacher``."""

from w2skd.cli.options import RecipeFlags, TrainFlags
from w2skd.cli.training import train
from w2skd.errors import UsageError
from w2skd.recipe.arms import TEACHER


def train_teacher(recipe: RecipeFlags, flags: TrainFlags) -> None:
    """Train the recipe's weak teacher. Skip this if you already have a checkpoint."""
    if flags.length != 1.0:
        raise UsageError(f"--length {flags.length:g}: applies to students only; set teacher.train.epochs instead")
    seed = flags.seed if flags.teacher_seed is None else flags.teacher_seed
    resolved = recipe.resolve(seed=seed)
    train(resolved, TEACHER, recipe.experiment(resolved), flags)
