"""A task that can be checked by hand: linear student and teacher, numbered batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from w2skd.method.schedule import DistillSchedule, Switch
from w2skd.method.teacher import FrozenTeacher
from w2skd.recipe.train import TrainSection
from w2skd.tasks.base import Evaluation, Losses, Metric, Role
from w2skd.training.clock import Clock
from w2skd.training.engine import Distillation, Engine
from w2skd.training.process import Process

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ToyBatch:
    inputs: Tensor
    targets: Tensor
    ids: Tensor

    @property
    def model_inputs(self) -> tuple[Tensor, ...]:
        return (self.inputs,)

    def __len__(self) -> int:
        return len(self.ids)


class ToyTask:
    """Learn y = 2x. Batch k depends on k only. The metric is a scripted score, or the negative loss."""

    metric = Metric("score", True)
    steps_per_epoch = 5

    def __init__(self, accumulate: int = 1, scores: list[float] | None = None, poison: tuple[int, ...] = ()):
        self.accumulate = accumulate
        self.scores = scores
        self.poison = poison
        self.evaluations = 0
        self.asked_with_teacher: list[bool] = []
        self.dropout_draws: list[Tensor] = []

    def describe_data(self) -> dict[str, str | int]:
        return {}

    def describe_model(self) -> dict[str, Any]:
        return {}

    def build_model(self, role: Role) -> nn.Module:
        return nn.Linear(1, 1)

    def example_batch(self) -> ToyBatch:
        return next(self.train_batches(0))

    def train_batches(self, first_step: int) -> Iterator[ToyBatch]:
        step = first_step
        while True:
            inputs = torch.arange(4 * step, 4 * step + 4, dtype=torch.float32).remainder(7)[:, None]
            if step in self.poison:
                inputs = inputs * torch.nan
            for part in range(self.accumulate):
                rows = slice(part * 4 // self.accumulate, (part + 1) * 4 // self.accumulate)
                yield ToyBatch(inputs[rows], 2 * inputs[rows], torch.arange(4 * step, 4 * step + 4)[rows])
            step += 1

    def losses(self, student: nn.Module, teacher: FrozenTeacher | None, batch: ToyBatch) -> Losses:
        self.asked_with_teacher.append(teacher is not None)
        self.dropout_draws.append(torch.rand(1))
        predictions = student(batch.inputs)
        task = {"mse": nn.functional.mse_loss(predictions, batch.targets)}
        distill = {} if teacher is None else {"mse": nn.functional.mse_loss(predictions, teacher(batch.inputs))}
        return Losses(task, distill)

    def evaluate(self, model: nn.Module, *, with_predictions: bool = False) -> Evaluation:
        assert not model.training
        value = self.scores[self.evaluations] if self.scores else -float(model(torch.ones(1, 1)).sub(2).square())
        self.evaluations += 1
        return Evaluation({"score": value})


def train_section(**changes: Any) -> TrainSection:
    values = {
        "steps": 20,
        "batch_size": 4,
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
        "lr_schedule": {"name": "constant"},
        "log_every": 5,
        "validate_every": "5step",
    }
    return TrainSection.model_validate({**values, **changes})


def schedule(teacher_value: float | None = None, **changes: Any) -> DistillSchedule:
    arguments = {"weight": 1.0, "warmup_steps": 0, "hold_steps": 10, "decay_steps": 4}
    switch = Switch(teacher_value, higher_is_better=True, patience=changes.pop("patience", 2))
    return DistillSchedule(**{**arguments, **changes}, switch=switch)


def teacher(clock: Clock | None = None) -> FrozenTeacher:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 1.5)
    nn.init.zeros_(model.bias)
    return FrozenTeacher(model, device=CPU, clock=clock)


def engine(
    task: ToyTask,
    section: TrainSection | None = None,
    distillation: Distillation | None = None,
    student: nn.Module | None = None,
    **process: Any,
) -> Engine:
    torch.manual_seed(0)
    return Engine(
        task,
        student or nn.Linear(1, 1),
        train=section or train_section(),
        seed=1,
        process=Process(CPU, **process),
        distillation=distillation,
    )
