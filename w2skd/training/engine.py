"""The training loop: the only one, for every task and every arm. It reads from top to bottom and knows no task."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from w2skd.data.counter import seed_from
from w2skd.errors import TrainingError
from w2skd.method.schedule import DistillSchedule, SwitchedOff
from w2skd.method.teacher import FrozenTeacher, autocast
from w2skd.platform.device import seed_generators
from w2skd.platform.ranks import Ranks
from w2skd.recipe.schema import TrainSection
from w2skd.records.rows import EvalRow, EventRow, Row, StepRow
from w2skd.tasks.base import Batch, Evaluation, Losses, Remark, Snapshot, Task
from w2skd.training.clock import Clock
from w2skd.training.finite import FiniteGuard, take_step
from w2skd.training.learning_rate import lr_factor
from w2skd.training.network import Network
from w2skd.training.optimizer import build_average, build_optimizer
from w2skd.training.precision import LossScale
from w2skd.training.window import Window


@dataclass(frozen=True)
class SaveDue:
    """Asks whoever drains the engine to write a checkpoint now.

    Attributes:
        best: the student is at its best so far.
        stopping: nothing comes after this, since a stop was asked for.
    """

    best: bool
    stopping: bool


class Engine:
    """Trains a student, with a teacher's help for as long as the schedule says.

    Args:
        task: gives batches, losses and metrics.
        student: on its device; wrapped for data parallelism, and compiled, here.
        train: the recipe's section for this arm.
        seed: of everything random in training.
        device: where it all happens.
        ranks: this process among its peers.
        clock: counts where the seconds go.
        teacher: None in the baseline. Let go of at the switch, also when a resume finds that it has been.
        schedule: lambda and the switch; None in the baseline.
        should_stop: asked after every step (with several ranks: at log rows); True ends the run with a checkpoint.
    """

    def __init__(
        self,
        task: Task[Any],
        student: nn.Module,
        *,
        train: TrainSection,
        seed: int,
        device: torch.device,
        ranks: Ranks,
        clock: Clock,
        teacher: FrozenTeacher | None = None,
        schedule: DistillSchedule | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ):
        self.task = task
        self.train_section = train
        self.device = device
        self.ranks = ranks
        self.clock = clock
        self.teacher = teacher
        self.schedule = schedule
        self.should_stop = should_stop
        self.seed = seed
        self.step = 0
        self.total_steps = train.total_steps(task.steps_per_epoch)
        self.best: float | None = None
        self.best_step = 0

        self.student = student
        lengths = {"steps_per_epoch": task.steps_per_epoch, "total_steps": self.total_steps}
        self.average = build_average(student, train.ema, **lengths)
        self.network = Network(student, ranks=ranks, compiled=train.compile)
        self._parameters = list(student.parameters())
        self.optimizer = build_optimizer(student, train)
        self.loss_scale = LossScale(device, enabled=train.precision == "fp16")
        self.guard = FiniteGuard(self._stateful(), train.max_non_finite_steps, self.loss_scale)
        self.learning_rate = 0.0
        self._window = Window()
        self._lambda = 0.0
        self._validate_every = max(1, train.validate_every.steps(task.steps_per_epoch, self.total_steps))
        self._save_every = (
            max(1, train.checkpoint_every.steps(task.steps_per_epoch, self.total_steps))
            if train.checkpoint_every
            else 0
        )

    @property
    def evaluated_model(self) -> nn.Module:
        """The weights that validations, switch and the finished model use: the average where there is one."""
        return self.student if self.average is None else self.average.module

    def train(self) -> Iterator[Row | Remark | Snapshot | SaveDue]:
        """Train to the end, yielding what happens. The state is complete, and may be saved, at every `SaveDue`.

        Raises:
            TrainingError: loss or gradient stayed non-finite.
        """
        batches = self.task.train_batches(self.step)
        while self.step < self.total_steps:
            self._take_step(batches)
            done = self.step == self.total_steps
            validate = done or self.step % self._validate_every == 0
            save = validate or (self._save_every > 0 and self.step % self._save_every == 0)
            log = save or self.step % self.train_section.log_every == 0
            stop = False
            if log or self.ranks.world == 1:
                stop = self.ranks.any(self.should_stop()) and not done
            if save or stop:  # before the log, whose guard remembers the statistics that a resume will find
                with self.clock.segment("train"):
                    self.ranks.average_buffers_(self._stateful())
            if log or stop:
                yield from self._log()
            improved = False
            if validate:
                before = self.best
                yield from self._validate()
                improved = self.best != before
            if self.schedule is not None:
                yield from self._end_distillation(self.schedule.finish_step(self.step))
            if save or stop:
                yield SaveDue(best=improved, stopping=stop)
            if stop:
                return

    def _take_step(self, batches: Iterator[Batch]) -> None:
        """One optimizer step: `accumulate` micro-batches, one weighting, one update."""
        section, lambda_ = self.train_section, 0.0
        if self.schedule is not None:
            lambda_ = self.schedule.weight_at(self.step)
        self.learning_rate = section.optimizer.lr * lr_factor(
            section.lr_schedule, self.step, steps_per_epoch=self.task.steps_per_epoch, total_steps=self.total_steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        batch, ids = self._wait_for(batches), []
        with self.clock.segment("compile" if self.network.meets(batch.model_inputs) else "train"):
            for micro in range(section.accumulate):
                if micro > 0:
                    batch = self._wait_for(batches)
                ids.append(batch.ids)
                draw = micro * self.ranks.world + self.ranks.rank
                seed_generators(self.device, seed_from(self.seed, self.step, draw))
                with self.network.sync_gradients(last=micro == section.accumulate - 1):
                    with autocast(self.device, section.precision):
                        losses = self.task.losses(self.network.module, self.teacher if lambda_ > 0 else None, batch)
                    loss = weigh(losses, lambda_)
                    self.loss_scale.scaled(loss / section.accumulate).backward()  # type: ignore[no-untyped-call]
                self._window.add({"loss": loss, **named(losses)})
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            norm = self.loss_scale.unscaled(torch.nn.utils.get_total_norm(gradients))
            if section.clip_grad_norm is not None:  # by a factor, which scaled gradients take as well
                torch.nn.utils.clip_grads_with_norm_(self._parameters, section.clip_grad_norm, norm)
            found_inf = self.guard.check(self.step, norm, ids)
            take_step(self.optimizer, found_inf, self.loss_scale.value)
            self.loss_scale.update(found_inf)
            self.optimizer.zero_grad(set_to_none=True)
            if self.average is not None:
                self.average.update_parameters(self.student)
        self._lambda = lambda_
        self.step += 1

    def _wait_for(self, batches: Iterator[Batch]) -> Batch:
        with self.clock.segment("data"):
            return next(batches)

    def _log(self) -> Iterator[Row]:
        """Say how the steps since the last row went. The only place where a step's results reach the host."""
        with self.clock.segment("train"):
            parts = self._window.take_means(self.ranks)
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
            clock=self.clock.read(),
        )
        yield from self.guard.events(self.step, bad_steps, self.ranks)
        if self.guard.exceeded:
            raise TrainingError(
                f"loss or gradient was non-finite for {self.guard.in_a_row} steps in a row, "
                f"last at step {bad_steps[-1].step}, at learning rate {self.learning_rate:.3g}"
            )

    def _validate(self) -> Iterator[Row | Remark | Snapshot]:
        """Score the student, remember its best, and let the switch see the result."""
        with self.clock.segment("evaluate"):
            evaluation = evaluate(self.task, self.evaluated_model, self.device, self.train_section.precision)
        value = self.ranks.decide(evaluation.metrics[self.task.metric.name])
        if not math.isnan(value) and (self.best is None or self.task.metric.is_better(value, self.best)):
            self.best, self.best_step = value, self.step
        yield EvalRow(self.step, self._epoch, self._examples, evaluation.metrics, self.clock.read())
        yield from (Remark(self.step, line) for line in evaluation.account)
        if evaluation.snapshot is not None:
            yield Snapshot(self.step, evaluation.snapshot)
        if self.schedule is not None:
            yield from self._end_distillation(self.schedule.observe(self.step, value))

    def _end_distillation(self, off: SwitchedOff | None) -> Iterator[Row]:
        """Let go of the teacher for good."""
        if off is not None:
            if self.teacher is not None:
                with self.clock.segment("train"):
                    self.teacher.settle()
            self.teacher = None
            details = {"reason": off.reason, "student": off.student, "teacher": off.teacher, "patience": off.patience}
            yield EventRow(off.step, "distillation_off", {**details, "epoch": self._epoch})

    def _stateful(self) -> list[nn.Module]:
        return [self.student] if self.average is None else [self.student, self.average]

    @property
    def _epoch(self) -> float:
        return round(self.step / self.task.steps_per_epoch, 4)

    @property
    def _examples(self) -> int:
        return self.step * self.train_section.batch_size

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs to go on as if nothing had happened; the teacher is not part of it."""
        return {
            "step": self.step,
            "model": self.student.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "guard": self.guard.state_dict(),
            "loss_scale": self.loss_scale.state_dict(),
            "best": self.best,
            "best_step": self.best_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.step = state["step"]
        self.student.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
            if self.schedule.switched_off is not None:
                self.teacher = None
        self.guard.load_state_dict(state["guard"])
        self.loss_scale.load_state_dict(state.get("loss_scale"))  # runs of older versions had none
        self.best, self.best_step = state["best"], state["best_step"]


def weigh(losses: Losses, lambda_: float) -> Tensor:
    """L_task + lambda * L_distill: the one place where losses are weighted and summed."""
    total = reduce(add, losses.task.values())
    return total + lambda_ * reduce(add, losses.distill.values()) if losses.distill else total


def named(losses: Losses) -> dict[str, Tensor]:
    """The parts under the names that rows give them: ``task.cross_entropy``, ``distill.kl``."""
    parts = {f"task.{name}": value for name, value in losses.task.items()}
    return parts | {f"distill.{name}": value for name, value in losses.distill.items()}


def evaluate(
    task: Task[Any], model: nn.Module, device: torch.device, precision: str, *, with_predictions: bool = False
) -> Evaluation:
    """Score a model in eval mode, whatever mode it is in, and put it back."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(device, precision):
            return task.evaluate(model, with_predictions=with_predictions)
    finally:
        model.train(was_training)
