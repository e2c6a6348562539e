"""The training loop, shared by all tasks and all arms. It knows no task."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from w2skd.data.counter import seed_from
from w2skd.errors import TrainingError
from w2skd.method.schedule import DistillSchedule, SwitchedOff
from w2skd.method.teacher import FrozenTeacher, autocast
from w2skd.platform.device import seed_generators
from w2skd.recipe.train import TrainSection
from w2skd.records.rows import EvalRow, EventRow, Row, StepRow
from w2skd.tasks.base import Batch, Evaluation, Losses, Remark, Snapshot, Task
from w2skd.training.finite import FiniteGuard, take_step
from w2skd.training.learning_rate import lr_factor
from w2skd.training.network import Network
from w2skd.training.optimizer import build_average, build_optimizer
from w2skd.training.precision import LossScale
from w2skd.training.process import Process
from w2skd.training.window import Window


@dataclass(frozen=True)
class SaveDue:
    """Request to the engine's caller to write a checkpoint now.

    Attributes:
        best: the student has just reached its best score so far.
        stopping: the run ends after this checkpoint because a stop was requested.
    """

    best: bool
    stopping: bool


class Distillation(NamedTuple):
    """A teacher, and the schedule of its weight."""

    teacher: FrozenTeacher
    schedule: DistillSchedule


class Engine:
    """Trains a student, with or without distillation.

    Attributes:
        save_at: steps after which to request a checkpoint in addition to the regular ones.

    Args:
        task: provides batches, losses and metrics.
        student: the model on its device. The engine wraps it for data parallelism and compiles it.
        train: the recipe's training section for this arm.
        seed: base of every random draw in training.
        process: device, ranks, clock and stop requests.
        distillation: None trains without a teacher. The engine drops its teacher at the switch, or when it resumes a
            run whose distillation is over; if the caller keeps no reference, that frees the memory.
    """

    def __init__(
        self,
        task: Task[Any],
        student: nn.Module,
        *,
        train: TrainSection,
        seed: int,
        process: Process,
        distillation: Distillation | None = None,
    ):
        self.task = task
        self.student = student
        self.train_section = train
        self.seed = seed
        self.process = process
        self.teacher = distillation.teacher if distillation else None
        self.schedule = distillation.schedule if distillation else None
        self.step = 0
        self.total_steps = train.total_steps(task.steps_per_epoch)
        self.best: float | None = None
        self.best_step = 0
        self.save_at: Collection[int] = ()
        self.average = build_average(student, train.ema, task.steps_per_epoch, self.total_steps)
        self._stateful = [student] if self.average is None else [student, self.average]
        compiled_teacher = self.teacher is not None and self.teacher.is_compiled
        self.network = Network(student, ranks=process.ranks, compiled=train.compile, teacher_compiled=compiled_teacher)
        self._parameters = list(student.parameters())
        # A gradient that a CUDA graph has written lies in the graph's memory, which the next micro-batch overwrites. So
        # they are added to tensors of their own (github.com/pytorch/pytorch/issues/169545).
        self._keeps_gradients = train.compile == "reduce-overhead" and train.accumulate > 1
        if self._keeps_gradients:
            for parameter in self._parameters:
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        self.optimizer = build_optimizer(student, train)
        self.loss_scale = LossScale(process.device, enabled=train.precision == "fp16")
        self.guard = FiniteGuard(self._stateful, train.max_non_finite_steps, self.loss_scale)
        # In the order of loading: the guard copies the buffers of the restored modules.
        self._parts: dict[str, Any] = {
            **{"model": student, "average": self.average, "optimizer": self.optimizer, "schedule": self.schedule},
            **{"guard": self.guard, "loss_scale": self.loss_scale},
        }
        self.learning_rate = 0.0
        self._lambda = 0.0
        self._window = Window()
        self._validate_every, self._save_every = (
            max(1, interval.steps(task.steps_per_epoch, self.total_steps))
            for interval in (train.validate_every, train.checkpoint_every or train.validate_every)
        )

    @property
    def evaluated_model(self) -> nn.Module:
        """The weights that are validated and published: the moving average if there is one, else the student."""
        return self.student if self.average is None else self.average.module

    def average_from_start(self) -> None:
        """Start the moving average with the current weights instead of those after the first step."""
        if self.average is not None:
            self.average.update_parameters(self.student)

    def train(self) -> Iterator[Row | Remark | Snapshot | SaveDue]:
        """Train to the end and yield the records. At every `SaveDue`, `state_dict` returns a complete state.

        Raises:
            TrainingError: the loss or the gradient stayed non-finite.
        """
        batches, ranks = self.task.train_batches(self.step), self.process.ranks
        while self.step < self.total_steps:
            self._take_step(batches)
            done = self.step == self.total_steps
            validate = done or self.step % self._validate_every == 0
            save = validate or self.step % self._save_every == 0 or self.step in self.save_at
            log = save or self.step % self.train_section.log_every == 0
            stop = (log or ranks.world == 1) and ranks.any(self.process.should_stop()) and not done
            if save or stop:  # before the log, where the guard copies the statistics that a resume will load
                with self.process.clock.segment("train"):
                    ranks.average_buffers_(self._stateful)
            if log or stop:
                yield from self._log()
            if validate:
                yield from self._validate()
            if self.schedule is not None:
                yield from self._end_distillation(self.schedule.finish_step(self.step))
            if save or stop:
                yield SaveDue(best=self.best_step == self.step, stopping=stop)
            if stop:
                return

    def _take_step(self, batches: Iterator[Batch]) -> None:
        """Take one optimizer step over `accumulate` micro-batches."""
        section, device, ranks = self.train_section, self.process.device, self.process.ranks
        self._lambda = 0.0 if self.schedule is None else self.schedule.weight_at(self.step)
        teacher = self.teacher if self._lambda > 0 else None
        self.learning_rate = section.optimizer.lr * lr_factor(
            section.lr_schedule, self.step, steps_per_epoch=self.task.steps_per_epoch, total_steps=self.total_steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        batch, ids = self._wait_for(batches), []
        new = self.network.meets(batch.model_inputs, with_teacher=teacher is not None)
        with self.process.clock.segment("compile" if new else "train"):
            for micro in range(section.accumulate):
                if micro > 0:
                    batch = self._wait_for(batches)
                ids.append(batch.ids)
                seed_generators(device, seed_from(self.seed, self.step, micro * ranks.world + ranks.rank))
                self.network.begin_pass()
                with self.network.sync_gradients(last=micro == section.accumulate - 1):
                    with autocast(device, section.precision):
                        losses = self.task.losses(self.network.module, teacher, batch)
                    loss = weigh(losses, self._lambda)
                    part = loss / section.accumulate if section.accumulate > 1 else loss
                    self.loss_scale.scaled(part).backward()  # type: ignore[no-untyped-call]
                self._window.add({"loss": loss, **named(losses)})
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            norm = self.loss_scale.unscaled(torch.nn.utils.get_total_norm(gradients))
            if section.clip_grad_norm is not None:  # multiplies by a ratio of norms, so gradients may stay scaled
                torch.nn.utils.clip_grads_with_norm_(self._parameters, section.clip_grad_norm, norm)
            found_inf = self.guard.check(self.step, norm, ids)
            take_step(self.optimizer, found_inf, self.loss_scale.value)
            self.loss_scale.update(found_inf)
            self.optimizer.zero_grad(set_to_none=not self._keeps_gradients)
            if self.average is not None:
                self.average.update_parameters(self.student)
        self.step += 1

    def _wait_for(self, batches: Iterator[Batch]) -> Batch:
        with self.process.clock.segment("data"):
            return next(batches)

    def _log(self) -> Iterator[Row]:
        """Yield the records of the steps since the last log row. Only here do results of steps reach the host."""
        with self.process.clock.segment("train"):
            parts = self._window.take_means(self.process.ranks)
            bad_steps = self.guard.report()
            if self.teacher is not None:
                self.teacher.settle()
        yield StepRow(
            step=self.step,
            epoch=self._epoch,
            examples=self._examples,
            loss=parts.pop("loss"),
            parts=parts,
            lambda_=self._lambda,
            lr=self.learning_rate,
            clock=self.process.clock.read(),
        )
        yield from self.guard.events(self.step, bad_steps, self.process.ranks)
        if self.guard.exceeded:
            raise TrainingError(
                f"loss or gradient was non-finite for {self.guard.in_a_row} steps in a row, "
                f"last at step {bad_steps[-1].step}, at learning rate {self.learning_rate:.3g}"
            )

    def _validate(self) -> Iterator[Row | Remark | Snapshot]:
        """Score the student, update its best score and pass the score to the switch."""
        with self.process.clock.segment("evaluate"):
            evaluation = evaluate(self.task, self.evaluated_model, self.process.device, self.train_section.precision)
        value = self.process.ranks.decide(evaluation.metrics[self.task.metric.name])
        if not math.isnan(value) and (self.best is None or self.task.metric.is_better(value, self.best)):
            self.best, self.best_step = value, self.step
        yield EvalRow(self.step, self._epoch, self._examples, evaluation.metrics, self.process.clock.read())
        yield from (Remark(self.step, line) for line in evaluation.notes)
        if evaluation.snapshot is not None:
            yield Snapshot(self.step, evaluation.snapshot)
        if self.schedule is not None:
            yield from self._end_distillation(self.schedule.observe(self.step, value))

    def _end_distillation(self, off: SwitchedOff | None) -> Iterator[Row]:
        """Drop the teacher permanently if `off` says that distillation is over."""
        if off is not None:
            if self.teacher is not None:
                with self.process.clock.segment("train"):
                    self.teacher.settle()
            self.teacher = None
            details = {"reason": off.reason, "student": off.student, "teacher": off.teacher, "patience": off.patience}
            yield EventRow(off.step, "distillation_off", {**details, "epoch": self._epoch})

    @property
    def _epoch(self) -> float:
        return round(self.step / self.task.steps_per_epoch, 4)

    @property
    def _examples(self) -> int:
        return self.step * self.train_section.batch_size

    def state_dict(self) -> dict[str, Any]:
        """Return the state that an identical engine needs to resume. It does not contain the teacher."""
        parts = {name: None if part is None else part.state_dict() for name, part in self._parts.items()}
        return {"step": self.step, **parts, "best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the result of `state_dict`."""
        self.step, self.best, self.best_step = state["step"], state["best"], state["best_step"]
        for name, part in self._parts.items():
            if part is not None:
                part.load_state_dict(state.get(name))  # older checkpoints have no loss scale
        if self.schedule is not None and self.schedule.switched_off is not None:
            self.teacher = None


def weigh(losses: Losses, lambda_: float) -> Tensor:
    """Return L_task + lambda * L_distill, 0-d. Losses are weighted and summed nowhere else."""
    total = reduce(add, losses.task.values())
    return total + lambda_ * reduce(add, losses.distill.values()) if losses.distill else total


def named(losses: Losses) -> dict[str, Tensor]:
    """Return the parts under their names in ``metrics.jsonl``, such as ``task.cross_entropy`` and ``distill.kl``."""
    parts = {f"task.{name}": value for name, value in losses.task.items()}
    return parts | {f"distill.{name}": value for name, value in losses.distill.items()}


def evaluate(
    task: Task[Any], model: nn.Module, device: torch.device, precision: str, *, with_predictions: bool = False
) -> Evaluation:
    """Score a model in eval mode and restore its mode."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(device, precision):
            return task.evaluate(model, with_predictions=with_predictions)
    finally:
        model.train(was_training)
