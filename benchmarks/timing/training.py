"""Engines and bare loops for the training benchmarks: endless training on a few premade batches, run step by step.

Both average the weights, clip the gradient and read the loss once per block.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch

from timing.alternating import Block, Rounds, build_parser, detail_rows, report, take_turns
from timing.workloads import Workload
from w2skd.method.schedule import DistillSchedule
from w2skd.method.teacher import FrozenTeacher, autocast
from w2skd.platform.device import open_device
from w2skd.platform.ranks import Ranks
from w2skd.recipe.train import TrainSection
from w2skd.records.rows import StepRow
from w2skd.tasks.base import Batch
from w2skd.training.compiled import Compiled
from w2skd.training.engine import Distillation, Engine
from w2skd.training.process import Process

NEVER = 10**9
EMA_DECAY = 0.999
CLIP_GRAD_NORM = 10.0


def step_parser(description: str | None, *, rounds: int, batch_size: int, steps: int) -> argparse.ArgumentParser:
    """Create a parser for a benchmark of training steps."""
    parser = build_parser(description, rounds)
    parser.add_argument("--batch-size", type=int, default=batch_size, help=f"examples per step [{batch_size}]")
    parser.add_argument("--steps", type=int, default=steps, help=f"steps per block and per log row [{steps}]")
    parser.add_argument("--device", default="cpu", help="cpu or cuda [cpu]")
    parser.add_argument("--precision", default="fp32", help="fp32, tf32, bf16 or fp16 [fp32]")
    parser.add_argument("--compile", action="store_true", help="compile the student, also in the bare loop")
    return parser


def set_up_process(options: argparse.Namespace) -> None:
    """Set the threads and, as every run of w2skd does, the allocator; both hold for all blocks."""
    torch.set_num_threads(options.threads)
    open_device(options.device, Ranks())


def train_values(options: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    """Return a ``train`` section without end, with weight averaging and gradient clipping."""
    return {
        "steps": NEVER,
        "batch_size": options.batch_size,
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
        "lr_schedule": {"name": "constant"},
        "precision": options.precision,
        "channels_last": options.device == "cuda",
        "compile": options.compile,
        "ema": {"decay": EMA_DECAY},
        "clip_grad_norm": CLIP_GRAD_NORM,
        "validate_every": f"{NEVER}step",
        "log_every": options.steps,
        **changes,
    }


class SteppedEngine:
    """An engine that advances by one log interval per call.

    Args:
        workload: models and batches.
        distill_steps: steps of distillation at weight 1; 0 trains without a teacher.
        premade: whether to take premade batches instead of those of the recipe's feed.
    """

    def __init__(self, workload: Workload, distill_steps: int = 0, *, premade: bool = True):
        process, distillation = Process(workload.device), None
        train = workload.recipe.train
        if distill_steps:
            model, compile_mode = workload.teacher(), workload.recipe.teacher.compile
            teacher = FrozenTeacher(
                model,
                device=workload.device,
                precision=train.precision,
                channels_last=train.channels_last,
                compiled=Compiled(model, compile_mode, "teacher.compile") if compile_mode else None,
                clock=process.clock,
            )
            schedule = DistillSchedule(weight=1.0, warmup_steps=0, hold_steps=distill_steps, decay_steps=0)
            distillation = Distillation(teacher, schedule)
        self.engine = Engine(
            workload.task(premade), workload.student(), train=train, seed=0, process=process, distillation=distillation
        )
        self._rows = self.engine.train()

    def __call__(self) -> None:
        """Run to the next log row."""
        while not isinstance(next(self._rows), StepRow):
            pass


class BareLoop:
    """A minimal training loop with the same arithmetic as the engine, without schedule, clock, records or seeding."""

    def __init__(self, workload: Workload, steps: int, *, premade: bool = True):
        self._task, self._device, self._steps = workload.task(premade), workload.device, steps
        self._train: TrainSection = workload.recipe.train
        model = workload.student()
        self._parameters = list(model.parameters())
        self._averages = [parameter.detach().clone() for parameter in self._parameters]
        self._buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._averaged_buffers = [buffer.clone() for buffer in self._buffers]
        options = self._train.optimizer.model_dump(exclude={"name", "decay_norms_and_biases"})
        kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[self._train.optimizer.name]
        self._optimizer = kind(self._parameters, fused=True, **options)
        self._model: Any = torch.compile(model, dynamic=False) if self._train.compile else model
        self._batches: Iterator[Batch] = self._task.train_batches(0)

    def __call__(self) -> None:
        """Take some steps, then read the mean of their losses."""
        total = torch.zeros((), device=self._device)
        for _ in range(self._steps):
            batch = next(self._batches)
            with autocast(self._device, self._train.precision):
                losses = self._task.losses(self._model, None, batch)
            loss = sum(losses.task.values())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._parameters, CLIP_GRAD_NORM)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                torch._foreach_lerp_(self._averages, self._parameters, 1 - EMA_DECAY)
                if self._buffers:
                    torch._foreach_lerp_(self._averaged_buffers, self._buffers, 1 - EMA_DECAY)
                total += loss
        float(total)


def repeat_forward(workload: Workload, steps: int) -> Block:
    """Return a block of `steps` forward passes of the teacher, each on the next batch."""
    forward, train = workload.teacher_forward(), workload.recipe.train

    def block() -> None:
        with torch.inference_mode(), autocast(workload.device, train.precision):
            for _ in range(steps):
                forward()

    return block


def time_steps(workload: Workload, *, steps: int, rounds: int, builds: int) -> Rounds:
    """Measure in the same rounds: bare, baseline and distilled steps, steps after the switch, teacher forwards."""

    def engine(distill_steps: int) -> Callable[[], Block]:
        return lambda: SteppedEngine(workload, distill_steps)

    blocks: dict[str, Callable[[], Block]] = {
        "bare": lambda: BareLoop(workload, steps),
        "baseline": engine(0),
        "distilled": engine(NEVER),
        "after the switch": engine(1),
        "teacher": lambda: repeat_forward(workload, steps),
    }
    return take_turns(blocks, rounds, builds=builds)


def report_distilled_step(options: argparse.Namespace, workload: Workload, *, target: str, builds: int) -> None:
    """Measure and print what a distilled step costs compared with a student's step plus a teacher's forward.

    Args:
        options: parsed options of `step_parser`.
        workload: models and batches.
        target: highest acceptable ratio, printed only.
        builds: how often models and batches are rebuilt.
    """
    turns = time_steps(workload, steps=options.steps, rounds=options.rounds, builds=builds)
    ratios = {
        "distilled": turns.ratio("distilled", "baseline", "teacher"),
        "after_the_switch": turns.ratio("after the switch", "baseline").inverse,
        "distilled_over_baseline": turns.ratio("distilled", "baseline"),
        "engine_over_bare": turns.ratio("baseline", "bare").inverse,
    }
    step_ms = {name: turns.seconds(name) / options.steps * 1e3 for name in turns.wall}
    rows = [
        ("distilled step / (student step + teacher forward)", f"{ratios['distilled']}", f"target at most {target}"),
        ("step rate after the switch / baseline's", f"{ratios['after_the_switch']}", "target at least 0.99"),
        ("step rate of the engine / bare loop", f"{ratios['engine_over_bare']}", "target at least 0.97"),
        ("distilled step / student step", f"{ratios['distilled_over_baseline']}", ""),
        *detail_rows(step_ms, "{:.2f} ms"),
    ]
    report(options, rows, {"ratios": ratios, "step_ms": step_ms})
