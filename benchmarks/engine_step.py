"""Step rate of the engine against a bare loop with the same model, batches and fused optimizer.

Both average the weights and clip the gradient. The bare loop has no schedule, no clock, no check for non-finite
gradients and no seeding. Both take their batches either from a resident feed (cropped and flipped) or from eight
premade batches. Target: at least 0.97 of the bare loop's rate. The script also prints the time of each part of the
engine.

    python benchmarks/engine_step.py [--student small_cnn_strong] [--batch-size 64] [--json]
"""

import timeit
from collections.abc import Callable
from statistics import median

import torch
from timing.alternating import Ratio, report, take_turns
from timing.training import BareLoop, SteppedEngine, set_up_process, step_parser, train_values
from timing.workloads import classification

from w2skd.data.counter import seed_from
from w2skd.method.teacher import autocast
from w2skd.platform.device import seed_generators
from w2skd.platform.ranks import Ranks
from w2skd.tasks.base import Losses
from w2skd.training.clock import Clock
from w2skd.training.engine import Engine, named, weigh
from w2skd.training.finite import FiniteGuard, take_step
from w2skd.training.learning_rate import lr_factor
from w2skd.training.optimizer import build_optimizer
from w2skd.training.window import Window


def microseconds(action: Callable[[], object]) -> float:
    """Time one call: the median of 30 runs of 20 calls."""
    return median(timeit.repeat(action, number=20, repeat=30)) / 20 * 1e6


def parts(engine: Engine) -> dict[str, float]:
    """Time what only the engine does, in microseconds per step."""
    clock, window, guard = Clock(), Window(), FiniteGuard([engine.student], 10, engine.loss_scale)
    device = engine.process.device
    optimizer = build_optimizer(engine.student, engine.train_section)
    for parameter in engine.student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in engine.student.parameters()]
    norm, ids, section = torch.nn.utils.get_total_norm(gradients), [torch.arange(64)], engine.train_section
    losses = Losses({"cross_entropy": torch.tensor(1.0, device=device)}, {})

    def segments() -> None:
        with clock.segment("train"), clock.segment("data"):
            pass

    def cast() -> None:
        with autocast(device, section.precision):
            pass

    def check() -> None:
        guard.check(0, norm, ids)
        guard._pending.clear()

    plain = microseconds(optimizer.step)
    average = engine.average
    assert average is not None
    return {
        "learning rate": microseconds(lambda: lr_factor(section.lr_schedule, 5, steps_per_epoch=9, total_steps=99)),
        "seeding": microseconds(lambda: seed_generators(device, seed_from(0, 5, 0))),
        "clock": microseconds(segments),
        "autocast off": microseconds(cast),
        "loss weighting": microseconds(lambda: weigh(losses, 0.0) / 1),
        "running means": microseconds(lambda: window.add({"loss": norm, **named(losses)})),
        "gradient norm": microseconds(lambda: torch.nn.utils.get_total_norm(gradients)),
        "guard": microseconds(check),
        "skippable update": microseconds(lambda: take_step(optimizer, torch.zeros((), device=device))) - plain,
        "average of the weights": microseconds(lambda: average.update_parameters(engine.student)),
        "log row, per step": microseconds(lambda: (window.take_means(Ranks()), guard.report())) / section.log_every,
    }


def main() -> None:
    parser = step_parser(__doc__, rounds=240, batch_size=64, steps=2)
    parser.add_argument("--student", default="small_cnn_strong")
    options = parser.parse_args()
    set_up_process(options)
    workload = classification((options.student, options.student), train_values(options), options.device)

    results: dict[str, Ratio] = {}
    times: dict[str, dict[str, float]] = {}
    for name, premade in (("resident feed", False), ("premade batches", True)):
        turns = take_turns(
            {
                "engine": lambda premade=premade: SteppedEngine(workload, premade=premade),
                "bare": lambda premade=premade: BareLoop(workload, options.steps, premade=premade),
            },
            options.rounds,
        )
        results[name] = turns.ratio("engine", "bare").inverse
        times[name] = {each: turns.seconds(each) / options.steps * 1e3 for each in ("engine", "bare")}
    costs = parts(SteppedEngine(workload).engine)

    rows = [(f"engine / bare loop, {name}", f"{ratio}", "target at least 0.97") for name, ratio in results.items()]
    rows += [
        (f"  time per step, {name}", f"engine {each['engine']:.2f} ms, bare {each['bare']:.2f} ms", "")
        for name, each in times.items()
    ]
    step_us = times["premade batches"]["bare"] * 1e3
    rows += [(f"  {part}", f"{cost:.1f} us", f"{cost / step_us:.2%} of a bare step") for part, cost in costs.items()]
    report(options, rows, {"ratios": results, "step_ms": times, "parts_us": costs})


if __name__ == "__main__":
    main()
