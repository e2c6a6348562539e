"""What the training benchmarks have in common: a task on generated images, and an engine that runs step by step."""

from collections.abc import Iterator

import torch
from torch import nn

from w2skd.data.batch import LabelledImages
from w2skd.method.schedule import DistillSchedule
from w2skd.method.teacher import FrozenTeacher
from w2skd.platform.ranks import Ranks
from w2skd.recipe.load import validate_recipe
from w2skd.recipe.schema import Recipe
from w2skd.records.rows import StepRow
from w2skd.tasks.base import Role
from w2skd.tasks.catalog import recipe_types
from w2skd.tasks.classification.task import ClassificationTask
from w2skd.training.clock import Clock
from w2skd.training.engine import Engine

CPU = torch.device("cpu")
NEVER = 10**9


def recipe(teacher: str, student: str, *, batch_size: int, log_every: int) -> Recipe:
    """Training without an end, a validation or a checkpoint: what remains is steps."""
    return validate_recipe(
        {
            "name": "benchmark",
            "task": "classification",
            "data": {"source": "shapes", "train_examples": 2048, "eval_examples": 10},
            "teacher": {"model": teacher},
            "student": {"model": student},
            "train": {
                "steps": NEVER,
                "batch_size": batch_size,
                "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
                "lr_schedule": {"name": "constant"},
                "validate_every": f"{NEVER}step",
                "log_every": log_every,
            },
        },
        "benchmark",
        recipe_types(),
    )


class Premade(ClassificationTask):
    """The same task on batches that are made beforehand and come round again."""

    def train_batches(self, first_step: int) -> Iterator[LabelledImages]:
        """Eight batches for ever."""
        batches = super().train_batches(first_step)
        made = [next(batches) for _ in range(8)]
        while True:
            yield from made


def task(recipe: Recipe, kind: type[ClassificationTask] = ClassificationTask) -> ClassificationTask:
    return kind(recipe, train=recipe.train, seed=0, device=CPU, ranks=Ranks())


def student(task: ClassificationTask) -> nn.Module:
    torch.manual_seed(0)
    return task.build_model(Role.STUDENT)


class SteppedEngine:
    """An engine whose steps are taken from outside, a log interval at a time.

    Args:
        task: what it trains on.
        recipe: gives the section ``train``.
        distill_steps: so long a teacher helps, at weight 1; 0 is a baseline.
    """

    def __init__(self, task: ClassificationTask, recipe: Recipe, distill_steps: int = 0):
        clock, teacher, schedule = Clock(), None, None
        if distill_steps:
            torch.manual_seed(1)
            teacher = FrozenTeacher(task.build_model(Role.TEACHER), device=CPU, clock=clock)
            lengths = {"warmup_steps": 0, "hold_steps": distill_steps, "decay_steps": 0}
            schedule = DistillSchedule(weight=1.0, **lengths, higher_is_better=True)
        train = recipe.train
        self.engine = Engine(
            *(task, student(task)),
            **{"train": train, "seed": 0, "device": CPU, "ranks": Ranks(), "clock": clock},
            **{"teacher": teacher, "schedule": schedule},
        )
        self._rows = self.engine.train()

    def __call__(self) -> None:
        """Run to the next log row."""
        while not isinstance(next(self._rows), StepRow):
            pass
