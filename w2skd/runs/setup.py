"""Everything up to the first step: data, models, teacher, and what they cost."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from w2skd.data.counter import seed_from
from w2skd.errors import UsageError
from w2skd.method.teacher import autocast, state_fingerprint
from w2skd.models.measure import activation_bytes, count_parameters, forward_flops
from w2skd.models.plugin import load_plugin, plugin_fingerprint
from w2skd.platform.device import open_device
from w2skd.platform.ranks import Ranks
from w2skd.recipe.arms import Arm
from w2skd.recipe.schema import Recipe, TrainSection
from w2skd.records.rundir import find_teacher
from w2skd.runs.options import RunOptions
from w2skd.tasks.base import Role, Task
from w2skd.tasks.catalog import build_task
from w2skd.weights.load import Weights, load_into, load_weights
from w2skd.weights.pretrained import open_weights


@dataclass
class Setup:
    """Everything up to the first step. The teacher moves on to the engine, which is to hold the only reference."""

    recipe: Recipe
    arm: Arm
    train: TrainSection
    role: Role
    device: torch.device
    task: Task[Any]
    model: nn.Module
    teacher_weights: Weights | None
    teacher_model: nn.Module | None
    teacher_account: tuple[str, ...]
    init_from: dict[str, str] | None

    def describe(self) -> dict[str, Any]:
        """Parameters, forward FLOPs per example, and the floor of a distilled step relative to a plain one.

        Raises:
            UsageError: a model cannot take the recipe's inputs.
        """
        models = {"student": self.model} | ({"teacher": self.teacher_model} if self.teacher_model is not None else {})
        inputs = self.task.example_batch().model_inputs
        try:
            flops = {name: forward_flops(model, inputs) for name, model in models.items()}
        except RuntimeError as error:
            shape = "x".join(str(size) for size in inputs[0].shape[1:])
            reason = str(error).splitlines()[0]
            raise UsageError(f"a model of this recipe cannot take inputs of {shape}: {reason}") from None
        facts: dict[str, Any] = {
            **self.task.describe_data(),
            "steps_per_epoch": self.task.steps_per_epoch,
            "total_steps": self.train.total_steps(self.task.steps_per_epoch),
            "parameters": {name: count_parameters(model) for name, model in models.items()},
            "forward_flops": flops,
        }
        if "teacher" in flops:
            # Backward costs about twice a forward, and a teacher has none.
            facts["distilled_step_floor"] = round((3 * flops["student"] + flops["teacher"]) / (3 * flops["student"]), 4)
            facts["teacher_account"] = list(self.teacher_account)
        if (plugin := plugin_fingerprint()) is not None:
            facts["plugin"] = plugin
        return facts

    def memory(self, ranks: Ranks) -> dict[str, int]:
        """About how many bytes training takes on the device: weights with gradients and averages, activations, teacher.

        The resident images and what kernels need for themselves come on top.
        """
        weights = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
        copies = {"sgd": 3, "adamw": 4}[self.train.optimizer.name] + (self.train.ema is not None)
        examples = self.train.batch_size // (ranks.world * self.train.accumulate)
        with autocast(self.device, self.train.precision):
            one = activation_bytes(self.model, self.task.example_batch().model_inputs)
        teacher = 0 if self.teacher_model is None else count_parameters(self.teacher_model) * 4
        return {"weights": weights * copies, "activations": one * examples, "teacher": teacher}


def set_up(recipe: Recipe, arm: Arm, options: RunOptions, ranks: Ranks) -> Setup:
    """Load data, build the models, load the teacher. Nothing is written.

    Raises:
        UserError: anything that a run of this recipe on this machine would stumble over before its first step.
    """
    device = open_device(options.device, ranks)
    if options.plugin is not None:
        load_plugin(options.plugin)
    role = Role.TEACHER if arm == "teacher" else Role.STUDENT
    train = recipe.train_of(arm)
    # The cheap checks come first: nobody wants to hear after minutes of loading that there is no teacher.
    teacher_weights = open_weights(find_teacher(recipe, options.out), recipe.teacher.model) if arm == "w2s" else None
    task = build_task(recipe, train=train, seed=recipe.seed, device=device, ranks=ranks)
    torch.manual_seed(seed_from(recipe.seed, list(Role).index(role)))
    model = task.build_model(role)
    if options.init_from is not None:
        load_into(model, load_weights(options.init_from), expected=recipe.model_of(role))
    teacher_model, teacher_account = None, tuple[str, ...]()
    if teacher_weights is not None:
        teacher_model, teacher_account = task.fit_model(Role.TEACHER, teacher_weights)
        teacher_model.to(device)
    model.to(device)
    if train.channels_last:
        model.to(memory_format=torch.channels_last)
    init_from = None if options.init_from is None else describe_init(options.init_from)
    return Setup(
        recipe, arm, train, role, device, task, model, teacher_weights, teacher_model, teacher_account, init_from
    )


def describe_init(path: Path) -> dict[str, str]:
    """Which weights a run began from, for its records."""
    weights = load_weights(path)
    return {"checkpoint": str(weights.path), "fingerprint": state_fingerprint(weights.state)}
