"""Tasks and engines for the training benchmarks: endless training on a few premade batches, run step by step."""

import argparse
from collections.abc import Callable, Mapping
from itertools import cycle, islice
from typing import Any

import torch
from torch import nn

from timing.alternating import Block, build_parser, detail_rows, report, take_turns
from w2skd.method.schedule import DistillSchedule
from w2skd.method.teacher import FrozenTeacher
from w2skd.platform.ranks import Ranks
from w2skd.recipe.load import validate_recipe
from w2skd.recipe.schema import Recipe
from w2skd.records.rows import StepRow
from w2skd.tasks.base import Role, Task
from w2skd.tasks.catalog import recipe_types
from w2skd.training.engine import Distillation, Engine
from w2skd.training.process import Process

CPU = torch.device("cpu")
NEVER = 10**9
SHAPES = {"source": "shapes", "train_examples": 2048, "eval_examples": 10}
SGD = {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}

TaskBuilder = Callable[[], Task[Any]]


def step_parser(description: str | None, *, rounds: int, batch_size: int, steps: int) -> argparse.ArgumentParser:
    """Create a parser for a benchmark of training steps."""
    parser = build_parser(description, rounds)
    parser.add_argument("--batch-size", type=int, default=batch_size, help=f"examples per step [{batch_size}]")
    parser.add_argument("--steps", type=int, default=steps, help=f"steps per block and per log row [{steps}]")
    return parser


def endless_recipe(options: argparse.Namespace, optimizer: Mapping[str, Any], **sections: Any) -> Recipe:
    """Build a recipe of `sections` whose training has no end, validations or checkpoints."""
    train = {
        "steps": NEVER,
        "batch_size": options.batch_size,
        "optimizer": dict(optimizer),
        "lr_schedule": {"name": "constant"},
        "validate_every": f"{NEVER}step",
        "log_every": options.steps,
    }
    return validate_recipe({"name": "benchmark", "train": train, **sections}, "benchmark", recipe_types())


def build_task(recipe: Recipe, task_type: type[Task[Any]] | None = None) -> Task[Any]:
    """Build the student's training task on the CPU, of the recipe's type unless another is given."""
    return (task_type or recipe.task_type())(recipe, train=recipe.train, seed=0, device=CPU, ranks=Ranks())


def premade(recipe: Recipe, batches: int) -> Task[Any]:
    """Build the recipe's task with its first few training batches repeated endlessly."""
    task = build_task(recipe)
    first = list(islice(task.train_batches(0), batches))
    task.train_batches = lambda first_step: cycle(first)
    return task


def build_student(task: Task[Any]) -> nn.Module:
    torch.manual_seed(0)
    return task.build_model(Role.STUDENT)


def build_teacher(task: Task[Any]) -> nn.Module:
    torch.manual_seed(1)
    return task.build_model(Role.TEACHER).eval()


class SteppedEngine:
    """An engine that advances by one log interval per call.

    Args:
        task: training task.
        recipe: provides the ``train`` section.
        distill_steps: steps of distillation at weight 1; 0 trains without a teacher.
    """

    def __init__(self, task: Task[Any], recipe: Recipe, distill_steps: int = 0):
        process, distillation = Process(CPU), None
        if distill_steps:
            teacher = FrozenTeacher(build_teacher(task), device=CPU, clock=process.clock)
            schedule = DistillSchedule(weight=1.0, warmup_steps=0, hold_steps=distill_steps, decay_steps=0)
            distillation = Distillation(teacher, schedule)
        self.engine = Engine(
            task, build_student(task), train=recipe.train, seed=0, process=process, distillation=distillation
        )
        self._rows = self.engine.train()

    def __call__(self) -> None:
        """Run to the next log row."""
        while not isinstance(next(self._rows), StepRow):
            pass


def repeat_forward(forward: Callable[[], object], steps: int) -> Block:
    """Return a block of `steps` forward passes in inference mode."""

    def block() -> None:
        with torch.inference_mode():
            for _ in range(steps):
                forward()

    return block


def report_distilled_step(
    options: argparse.Namespace,
    recipe: Recipe,
    task: TaskBuilder,
    forward: Callable[[], Callable[[], object]],
    *,
    target: str,
    builds: int,
) -> None:
    """Measure and print what a distilled step costs compared with a student's step plus a teacher's forward.

    Args:
        options: parsed options of `step_parser`.
        recipe: recipe of the training runs.
        task: builds a task with premade batches.
        forward: builds a function that runs one forward pass of the teacher.
        target: highest acceptable ratio, printed only.
        builds: how often models and batches are rebuilt.
    """

    def engine(distill_steps: int) -> Callable[[], Block]:
        return lambda: SteppedEngine(task(), recipe, distill_steps)

    turns = take_turns(
        {
            "baseline": engine(0),
            "distilled": engine(NEVER),
            "after the switch": engine(1),
            "teacher": lambda: repeat_forward(forward(), options.steps),
        },
        options.rounds,
        builds=builds,
    )
    ratios = {
        "distilled": turns.ratio("distilled", "baseline", "teacher"),
        "after_the_switch": turns.ratio("after the switch", "baseline").inverse,
        "distilled_over_baseline": turns.ratio("distilled", "baseline"),
    }
    step_ms = {name: turns.seconds(name) / options.steps * 1e3 for name in turns.wall}
    rows = [
        ("distilled step / (student step + teacher forward)", f"{ratios['distilled']}", f"target at most {target}"),
        ("step rate after the switch / baseline's", f"{ratios['after_the_switch']}", "target at least 0.99"),
        ("distilled step / student step", f"{ratios['distilled_over_baseline']}", ""),
        *detail_rows(step_ms, "{:.2f} ms"),
    ]
    report(options, rows, {"ratios": ratios, "step_ms": step_ms})
