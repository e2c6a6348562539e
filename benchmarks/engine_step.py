"""Steps of the engine against a bare loop, written by hand with the same model, batch and fused optimizer.

The bare loop has no schedule, clock, log, guard against non-finite gradients or seeding of its draws: next(batch),
forward, loss, backward, optimizer.step, zero_grad. Both take their batches either from a resident feed each (cropped
and flipped), or from eight tensors made beforehand. Target: at least 0.97 of the bare loop's rate. Below the rates
stands what each of the engine's parts takes on its own.

    python benchmarks/engine_step.py [--student small_cnn_strong] [--batch-size 64] [--json]
"""

import timeit
from collections.abc import Callable
from statistics import median

import torch
from timing.alternating import Ratio, parser, report, take_turns
from timing.training import CPU, Premade, SteppedEngine, recipe, student, task
from torch.nn import functional

from w2skd.data.counter import seed_from
from w2skd.method.teacher import autocast
from w2skd.platform.device import seed_generators
from w2skd.platform.ranks import Ranks
from w2skd.tasks.base import Losses
from w2skd.tasks.classification.task import ClassificationTask
from w2skd.training.clock import Clock
from w2skd.training.engine import Engine, named, weigh
from w2skd.training.finite import FiniteGuard, take_step
from w2skd.training.learning_rate import lr_factor
from w2skd.training.optimizer import build_optimizer
from w2skd.training.window import Window


class BareLoop:
    """What one would write for oneself."""

    def __init__(self, task: ClassificationTask, steps: int):
        self.model = student(task)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True
        )
        self.batches = task.train_batches(0)
        self.steps = steps

    def __call__(self) -> None:
        for _ in range(self.steps):
            batch = next(self.batches)
            loss = functional.cross_entropy(self.model(batch.images), batch.labels)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def microseconds(action: Callable[[], object]) -> float:
    """One call, the median of 30 runs of 20."""
    return median(timeit.repeat(action, number=20, repeat=30)) / 20 * 1e6


def parts(engine: Engine) -> dict[str, float]:
    """Microseconds a step of what the engine does and the bare loop does not."""
    clock, window, guard = Clock(), Window(), FiniteGuard([engine.student], 10)
    optimizer = build_optimizer(engine.student, engine.train_section)
    for parameter in engine.student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in engine.student.parameters()]
    norm, ids, section = torch.nn.utils.get_total_norm(gradients), [torch.arange(64)], engine.train_section
    losses = Losses({"cross_entropy": torch.tensor(1.0)}, {})

    def segments() -> None:
        with clock.segment("train"), clock.segment("data"):
            pass

    def cast() -> None:
        with autocast(CPU, section.precision):
            pass

    def check() -> None:
        guard.check(0, norm, ids)
        guard._pending.clear()

    plain = microseconds(optimizer.step)
    return {
        "learning rate": microseconds(lambda: lr_factor(section.lr_schedule, 5, steps_per_epoch=9, total_steps=99)),
        "seeding": microseconds(lambda: seed_generators(CPU, seed_from(0, 5, 0))),
        "clock": microseconds(segments),
        "autocast off": microseconds(cast),
        "weighing": microseconds(lambda: weigh(losses, 0.0) / 1),
        "window of means": microseconds(lambda: window.add({"loss": norm, **named(losses)})),
        "gradient norm": microseconds(lambda: torch.nn.utils.get_total_norm(gradients)),
        "guard": microseconds(check),
        "suppressible update": microseconds(lambda: take_step(optimizer, torch.zeros(()))) - plain,
        "a log row, per step": microseconds(lambda: (window.take_means(Ranks()), guard.report())) / section.log_every,
    }


def main() -> None:
    arguments = parser(__doc__, rounds=240)
    arguments.add_argument("--student", default="small_cnn_strong")
    arguments.add_argument("--batch-size", type=int, default=64)
    arguments.add_argument("--steps", type=int, default=2, help="steps a block, and a log row [2]")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    plan = recipe("small_cnn_weak", options.student, batch_size=options.batch_size, log_every=options.steps)

    results: dict[str, Ratio] = {}
    times: dict[str, dict[str, float]] = {}
    for name, kind in (("resident feed", ClassificationTask), ("premade tensors", Premade)):
        turns = take_turns(
            {
                "engine": lambda kind=kind: SteppedEngine(task(plan, kind), plan),
                "bare": lambda kind=kind: BareLoop(task(plan, kind), options.steps),
            },
            options.rounds,
        )
        results[name] = turns.ratio("engine", "bare").inverse
        times[name] = {each: turns.seconds(each) / options.steps * 1e3 for each in ("engine", "bare")}
    costs = parts(SteppedEngine(task(plan), plan).engine)

    rows = [(f"engine / bare loop, {name}", f"{ratio}", "target at least 0.97") for name, ratio in results.items()]
    rows += [
        (f"  a step, {name}", f"engine {each['engine']:.2f} ms, bare {each['bare']:.2f} ms", "")
        for name, each in times.items()
    ]
    step_us = times["premade tensors"]["bare"] * 1e3
    rows += [(f"  {part}", f"{cost:.1f} us", f"{cost / step_us:.2%} of a bare step") for part, cost in costs.items()]
    values = {
        "ratios": {name: ratio.as_dict() for name, ratio in results.items()},
        "step_ms": times,
        "parts_us": costs,
    }
    report(options, rows, values)


if __name__ == "__main__":
    main()
