"""Tiny experiments of all tasks, built on a device."""

from pathlib import Path
from typing import Any

import tiny
import tiny_boxes
import tiny_noise
import torch
import yaml
from known import build_task, validate_recipe
from torch import Tensor, nn

from w2skd.method.schedule import DistillSchedule
from w2skd.method.teacher import FrozenTeacher
from w2skd.platform.ranks import Ranks
from w2skd.recipe.load import with_overrides
from w2skd.recipe.schema import Recipe
from w2skd.tasks.base import Role
from w2skd.training.clock import Clock
from w2skd.training.compiled import Compiled
from w2skd.training.engine import Distillation, Engine
from w2skd.training.process import Process

CPU = torch.device("cpu")
NAMES = ("classification", "retinanet", "fasterrcnn", "diffusion")
ONE_SHAPE = ("classification", "diffusion")
"""Names whose steps never wait for the device. torchvision's detectors wait, because they count selected boxes."""

HARD = ("train.clip_grad_norm=1.0", "train.ema={decay: 0.5}", "train.accumulate=2")
ENDLESS = (
    *("train.steps=1000", "train.log_every=1000", "train.validate_every=1000step", "train.checkpoint_every=1000step"),
    *("distill.warmup=0step", "distill.hold=1000step", "distill.decay=0step"),
)
"""Settings with which a test's steps log no row."""


def recipe_of(name: str, folder: Path, *overrides: str) -> Recipe:
    """Return the tiny recipe of a task."""
    if name == "diffusion":
        return tiny_noise.read_recipe(folder, *overrides)
    text = tiny.RECIPE if name == "classification" else tiny_boxes.RECIPE.replace("FAMILY", name)
    return with_overrides(validate_recipe(yaml.safe_load(text), "test"), overrides)


def task_on(device: torch.device, name: str, folder: Path, *overrides: str, ranks: Ranks | None = None) -> Any:
    recipe = recipe_of(name, folder, *overrides)
    return build_task(recipe, train=recipe.train_of(Role.STUDENT), seed=0, device=device, ranks=ranks or Ranks())


def model_of(task: Any, role: Role = Role.STUDENT) -> nn.Module:
    """Build a model on the CPU. Its weights depend on the role only."""
    torch.manual_seed(list(Role).index(role))
    return task.build_model(role)


def engine_on(
    device: torch.device, name: str, folder: Path, *overrides: str, distilled: bool = True, clock: Clock | None = None
) -> Engine:
    """Build an engine before its first step, as a run does."""
    task = task_on(device, name, folder, *ENDLESS, *overrides)
    train, clock = task._train, clock or Clock()
    student = model_of(task).to(device)
    if train.channels_last:
        student.to(memory_format=torch.channels_last)
    distillation = None
    if distilled:
        model, mode = model_of(task, Role.TEACHER), task._recipe.teacher.compile
        teacher = FrozenTeacher(
            model,
            device=device,
            precision=train.precision,
            channels_last=train.channels_last,
            compiled=Compiled(model, mode, "teacher.compile") if mode else None,
            clock=clock,
        )
        schedule = DistillSchedule(weight=1.0, warmup_steps=0, hold_steps=1000, decay_steps=0)
        distillation = Distillation(teacher, schedule)
    process = Process(device, clock=clock)
    return Engine(task, student, train=train, seed=0, process=process, distillation=distillation)


def steps(engine: Engine, count: int) -> dict[str, float]:
    """Take steps without a log row, then return the mean losses."""
    batches = engine.task.train_batches(engine.step)
    for _ in range(count):
        engine._take_step(batches)
    return engine._window.take_means(Ranks())


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's state dict on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
