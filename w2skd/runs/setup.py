"""Everything before the first step: data, models, the teacher, and what they cost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import nn

from w2skd.data.counter import seed_from
from w2skd.errors import CheckpointError, UsageError
from w2skd.method.grow import Growth
from w2skd.method.teacher import FrozenTeacher, autocast, state_fingerprint
from w2skd.models.measure import activation_bytes, count_parameters, counted_flops, single_valued_norms
from w2skd.models.modes import in_eval_mode, in_train_mode
from w2skd.models.plugin import load_plugin, plugin_fingerprint
from w2skd.platform.device import open_device
from w2skd.platform.ranks import Ranks
from w2skd.recipe.arms import TEACHER, Arm
from w2skd.recipe.schema import Recipe
from w2skd.recipe.train import TrainSection
from w2skd.records.rundir import find_teacher
from w2skd.runs.options import RunOptions
from w2skd.tasks.base import Batch, Role, Task
from w2skd.training.clock import Clock
from w2skd.training.compiled import Compiled
from w2skd.weights.load import Weights, load_into, load_weights

_GROWTH = 2
"""Index of the random stream for growing; streams 0 and 1 initialise the models of both roles."""


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher before it is frozen.

    Attributes:
        model: on the device, answering in the task's terms.
        weights: as read from its checkpoint.
        notes: what was adapted or assumed, one line each.
    """

    model: nn.Module
    weights: Weights
    notes: tuple[str, ...]

    def frozen(self, setup: "Setup", clock: Clock) -> FrozenTeacher:
        """Return the frozen teacher, with the precision and compilation of its recipe section."""
        train, section = setup.train, setup.recipe.teacher
        return FrozenTeacher(
            self.model,
            device=setup.device,
            precision=section.precision or train.precision,
            channels_last=train.channels_last,
            compiled=Compiled(self.model, section.compile, "teacher.compile") if section.compile else None,
            clock=clock,
        )

    def check_started(self, checkpoint: Mapping[str, Any]) -> None:
        """Check that a run started with this teacher, unless distillation has already ended.

        Raises:
            CheckpointError: it started with another teacher.
        """
        known, fingerprint = checkpoint["teacher"], state_fingerprint(self.weights.state)
        if known["fingerprint"] != fingerprint and checkpoint["engine"]["schedule"]["switched_off"] is None:
            raise CheckpointError(
                f"{self.weights.path}: not the teacher that this run started with "
                f"({known['checkpoint']}, sha256 {known['fingerprint'][:12]})"
            )


@dataclass
class Setup:
    """Everything before the first step.

    Attributes:
        recipe: with the seed of this run and the changes of its arm.
        arm: which arm of the experiment.
        train: the arm's own train section.
        role: which of the recipe's models is trained.
        device: of models and batches.
        task: with its data listed.
        model: the one that is trained, on the device.
        teacher: None in arms without one, and where `set_up` need not find it. Taken out when training starts, so that
            the engine holds the only reference.
        init_from: path and fingerprint of the weights that `model` starts from, if any.
        init_notes: what was assumed about these, one line each.
        growth: how `model` was grown from the teacher; None if it was not, or if a checkpoint replaces its weights.
    """

    recipe: Recipe
    arm: Arm
    train: TrainSection
    role: Role
    device: torch.device
    task: Task[Any]
    model: nn.Module
    teacher: LoadedTeacher | None
    init_from: dict[str, str] | None
    init_notes: tuple[str, ...]
    growth: Growth | None = None

    @property
    def total_steps(self) -> int:
        """Length of the run in optimizer steps."""
        return self.train.total_steps(self.task.steps_per_epoch)

    def describe(self, ranks: Ranks) -> dict[str, Any]:
        """Return parameters, forward FLOPs per example, and the least cost of a distilled step.

        Raises:
            UsageError: a model cannot take the recipe's inputs, or cannot be trained with micro-batches of one example.
        """
        distills = self.teacher is not None and self.recipe.helps(self.arm, "distill")
        models = {"student": self.model} | ({"teacher": self.teacher.model} if self.teacher else {})
        batch = self.task.example_batch()
        inputs = batch.model_inputs
        try:
            flops = self._flops(batch, with_teacher=distills)
        except (RuntimeError, ValueError) as error:
            shape = "x".join(str(size) for size in inputs[0].shape[1:])
            reason = str(error).splitlines()[0]
            raise UsageError(f"a model of this recipe cannot take inputs of {shape}: {reason}") from None
        if self.train.batch_size == ranks.world * self.train.accumulate:
            self._check_norms(inputs)
        facts: dict[str, Any] = {
            **self.task.describe_data(),
            "steps_per_epoch": self.task.steps_per_epoch,
            "total_steps": self.total_steps,
            "parameters": {name: count_parameters(model) for name, model in models.items()},
            "forward_flops": flops,
        }
        start = [*self.init_notes, *((self.growth.summary, *self.growth.notes) if self.growth else ())]
        if start:
            facts["start_account"] = start
        if distills:
            # A backward pass costs about twice a forward pass, and the teacher has none.
            facts["distilled_step_floor"] = round((3 * flops["student"] + flops["teacher"]) / (3 * flops["student"]), 4)
        if self.teacher:
            facts["teacher_account"] = list(self.teacher.notes)
        if self.growth:
            facts["growth"] = asdict(self.growth)
        if (plugin := plugin_fingerprint()) is not None:
            facts["plugin"] = plugin
        return facts

    def _flops(self, batch: Batch, *, with_teacher: bool) -> dict[str, int]:
        """Return the FLOPs of the forward passes that one example takes in training.

        They are counted in the task's losses, since a detector may do less or more there than in evaluation.
        """
        with in_train_mode(self.model), torch.random.fork_rng(devices=[]):
            student = counted_flops(lambda: self.task.losses(self.model, None, batch))
            if self.teacher is None or not with_teacher:
                return {"student": student}
            with in_eval_mode(self.teacher.model):
                asked = cast(FrozenTeacher, self.teacher.model)
                both = counted_flops(lambda: self.task.losses(self.model, asked, batch))
        return {"student": student, "teacher": both - student}

    def _check_norms(self, inputs: tuple[Any, ...]) -> None:
        norms = single_valued_norms(self.model, inputs)
        if norms:
            more = f" and {len(norms) - 1} others" if len(norms) > 1 else ""
            raise UsageError(
                f"train.batch_size: micro-batches of one example leave the batch norm '{norms[0]}'{more} a single "
                "value per channel; set a larger train.batch_size, a smaller train.accumulate, or fewer ranks"
            )

    def with_identity(self, facts: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
        """Add ``data_identity`` and remarks about the data to what `describe` returned. Rank 0 reads the data."""
        identity = ranks.on_main(self.task.identify_data)
        account = [*facts.get("data_account", ()), *identity.notes]
        return {**facts, "data_identity": identity.facts, "data_account": account}

    def memory(self, ranks: Ranks) -> dict[str, int]:
        """Estimate the device memory of training in bytes, without resident images and workspaces of kernels.

        Returns:
            ``weights`` (with gradients, optimizer state and average), ``activations`` and ``teacher``.
        """
        weights = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
        copies = {"sgd": 3, "adamw": 4}[self.train.optimizer.name] + (self.train.ema is not None)
        examples = self.train.batch_size // (ranks.world * self.train.accumulate)
        with autocast(self.device, self.train.precision):
            one = activation_bytes(self.model, self.task.example_batch().model_inputs)
        distills = self.teacher is not None and self.recipe.helps(self.arm, "distill")
        teacher = count_parameters(self.teacher.model) * 4 if self.teacher and distills else 0
        return {"weights": weights * copies, "activations": one * examples, "teacher": teacher}


def set_up(
    recipe: Recipe, arm: Arm, options: RunOptions, ranks: Ranks, *, needs_teacher: bool = True, fresh: bool = True
) -> Setup:
    """Load data, build the models and load the teacher. Nothing is written.

    Args:
        recipe: with the seed of this run and the changes of its arm, see `Recipe.for_arm`.
        arm: which arm of the experiment.
        options: of the command.
        ranks: this process among its peers.
        needs_teacher: whether the arm's teacher must exist.
        fresh: whether training starts with these weights; false if a checkpoint will replace them.

    Raises:
        UserError: this recipe cannot run on this machine.
    """
    device = open_device(options.device, ranks)
    if options.plugin is not None:
        load_plugin(options.plugin)
    role = Role.TEACHER if arm == TEACHER else Role.STUDENT
    train = recipe.train_of(role)
    _check_graphs(recipe, train, arm, ranks)
    task_type = recipe.task_type()
    weights = None
    grows = fresh and recipe.helps(arm, "grow")
    if grows and options.init_from is not None:
        raise UsageError(f"--init-from {options.init_from}: the arm {arm} starts from its teacher's weights instead")
    if needs_teacher and (grows or recipe.helps(arm, "distill")):  # first: it is cheap, and loading data is not
        checkpoint = find_teacher(recipe, options.out, options.teacher_seed)
        weights = task_type.open_weights(checkpoint, recipe.teacher.model, recipe.teacher.weights)
    task: Task[Any] = task_type(recipe, train=train, seed=recipe.seed, device=device, ranks=ranks)
    torch.manual_seed(seed_from(recipe.seed, list(Role).index(role)))
    model = task.build_model(role)
    init_from, init_notes = None, tuple[str, ...]()
    if options.init_from is not None:
        start = load_weights(options.init_from, options.init_weights)
        init_notes = load_into(model, start, expected=recipe.model_of(role))
        init_from = describe_init(start)
    elif fresh:
        task.initialize_model(model)
    teacher, growth = None, None
    if weights is not None:
        fitted = task.fit_model(Role.TEACHER, weights)
        if grows:
            generator = torch.Generator().manual_seed(seed_from(recipe.seed, _GROWTH))
            growth = task.grow(model, fitted.model, generator)
        teacher = LoadedTeacher(fitted.model.to(device), weights, fitted.notes)
    model.to(device)
    if train.channels_last:
        model.to(memory_format=torch.channels_last)
    return Setup(recipe, arm, train, role, device, task, model, teacher, init_from, init_notes, growth)


def _check_graphs(recipe: Recipe, train: TrainSection, arm: Arm, ranks: Ranks) -> None:
    """Refuse CUDA graphs with several ranks, where they are untested."""
    distills = recipe.helps(arm, "distill")
    wanted = {"train.compile": train.compile, "teacher.compile": distills and recipe.teacher.compile}
    for key, value in wanted.items():
        if value == "reduce-overhead" and ranks.world > 1:
            raise UsageError(f"{key}: reduce-overhead is for a single GPU, not for {ranks.world} ranks; set it to true")


def describe_init(weights: Weights) -> dict[str, str]:
    """Return path and fingerprint of the weights that a run starts from, for its records."""
    return {"checkpoint": str(weights.path), "fingerprint": state_fingerprint(weights.state)}
