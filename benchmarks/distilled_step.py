"""What distillation costs: a distilled step against its parts, and a step after the switch against the baseline's.

A distilled step is compared with a baseline's step plus the teacher's forward alone (eval mode, inference mode, a batch
of the same size), so that what is left is the price of the loss and of the bookkeeping; target: at most 1.03. After the
switch a step must cost what it costs without a teacher; target: at least 0.99 of the baseline's rate. All four are
measured in the same rounds, on batches made beforehand.

    python benchmarks/distilled_step.py [--teacher small_cnn_weak] [--student small_cnn_strong] [--json]
"""

from collections.abc import Callable

import torch
from timing.alternating import parser, report, take_turns
from timing.training import NEVER, Premade, SteppedEngine, recipe, task

from w2skd.recipe.schema import Recipe
from w2skd.tasks.base import Role


def teacher_alone(plan: Recipe, steps: int) -> Callable[[], None]:
    """The teacher's forward, as often as a block has steps."""
    made = task(plan, Premade)
    model, batches = made.build_model(Role.TEACHER).eval(), made.train_batches(0)

    def block() -> None:
        with torch.inference_mode():
            for _ in range(steps):
                model(next(batches).images)

    return block


def main() -> None:
    arguments = parser(__doc__, rounds=240)
    arguments.add_argument("--teacher", default="small_cnn_weak")
    arguments.add_argument("--student", default="small_cnn_strong")
    arguments.add_argument("--batch-size", type=int, default=64)
    arguments.add_argument("--steps", type=int, default=2, help="steps a block, and a log row [2]")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    plan = recipe(options.teacher, options.student, batch_size=options.batch_size, log_every=options.steps)

    def engine(distill_steps: int) -> Callable[[], SteppedEngine]:
        return lambda: SteppedEngine(task(plan, Premade), plan, distill_steps)

    turns = take_turns(
        {
            "baseline": engine(0),
            "distilled": engine(NEVER),
            "after the switch": engine(1),
            "teacher": lambda: teacher_alone(plan, options.steps),
        },
        options.rounds,
    )
    distilled = turns.ratio("distilled", "baseline", "teacher")
    whole = turns.ratio("distilled", "baseline")
    after = turns.ratio("after the switch", "baseline").inverse
    step_ms = {name: turns.seconds(name) / options.steps * 1e3 for name in turns.wall}
    rows = [
        ("distilled step / (baseline step + teacher forward)", f"{distilled}", "target at most 1.03"),
        ("step rate after the switch / baseline's", f"{after}", "target at least 0.99"),
        ("distilled step / baseline step", f"{whole}", ""),
        *((f"  {name}", f"{milliseconds:.2f} ms", "") for name, milliseconds in step_ms.items()),
    ]
    ratios = {"distilled": distilled, "after_the_switch": after, "distilled_over_baseline": whole}
    report(options, rows, {"ratios": {name: each.as_dict() for name, each in ratios.items()}, "step_ms": step_ms})


if __name__ == "__main__":
    main()
