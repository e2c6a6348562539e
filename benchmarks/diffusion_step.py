"""Overhead of distillation for a denoising network: a distilled step against a student's step plus a teacher's forward.

Images are prepared in advance, for the teacher's forward also their noise. The remaining overhead is the second squared
error and the bookkeeping; target: at most 1.05. All variants are measured in the same rounds.

    python benchmarks/diffusion_step.py [--teacher unet_mini_nc16_rb1] [--student unet_mini_nc32_rb2] [--json]
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from timing.alternating import parser, report, take_turns
from timing.training import CPU, NEVER, SteppedEngine
from timing.training import recipe as classification_recipe

from w2skd.models.catalog import build_classifier
from w2skd.platform.ranks import Ranks
from w2skd.recipe.load import validate_recipe
from w2skd.tasks.base import Role
from w2skd.tasks.catalog import recipe_types
from w2skd.tasks.diffusion.batch import ImagesToNoise
from w2skd.tasks.diffusion.recipe import DiffusionRecipe
from w2skd.tasks.diffusion.task import DiffusionTask
from w2skd.weights.load import save_model

BATCHES = 4
CLASSES = 10


class Premade(DiffusionTask):
    """The task with a few batches that repeat endlessly."""

    def train_batches(self, first_step: int) -> Iterator[ImagesToNoise]:
        """Repeat the feed's first batches."""
        batches = super().train_batches(first_step)
        made = [next(batches) for _ in range(BATCHES)]
        while True:
            yield from made


def recipe(teacher: str, student: str, judge: Path, *, size: int, batch_size: int, log_every: int) -> DiffusionRecipe:
    """A training run without end, validations or checkpoints."""
    made = validate_recipe(
        {
            "name": "benchmark",
            "task": "diffusion",
            "data": {"source": "shapes", "image_size": size, "train_examples": 512, "eval_examples": 10},
            "fid": {"extractor": f"checkpoint:{judge}"},
            "teacher": {"model": teacher},
            "student": {"model": student},
            "train": {
                "steps": NEVER,
                "batch_size": batch_size,
                "optimizer": {"name": "adamw", "lr": 1e-4},
                "lr_schedule": {"name": "constant"},
                "validate_every": f"{NEVER}step",
                "log_every": log_every,
            },
        },
        "benchmark",
        recipe_types(),
    )
    assert isinstance(made, DiffusionRecipe)
    return made


def write_judge(path: Path) -> Path:
    """Write an untrained classifier: the task requires one, but training steps do not use it."""
    about = {"classes": [str(number) for number in range(CLASSES)], "normalization": [0.5] * 6}
    plan = classification_recipe("small_cnn_weak", "small_cnn_weak", batch_size=8, log_every=1)
    save_model(path, build_classifier("small_cnn_weak", CLASSES, 32).state_dict(), plan, "student", about)
    return path


def task(plan: DiffusionRecipe) -> Premade:
    return Premade(plan, train=plan.train, seed=0, device=CPU, ranks=Ranks())


def teacher_alone(plan: DiffusionRecipe, steps: int) -> Callable[[], None]:
    """Run the teacher's forward once per step of a block."""
    made = task(plan)
    torch.manual_seed(1)
    model, batches = made.build_model(Role.TEACHER).eval(), made.train_batches(0)
    timesteps = torch.randint(plan.diffusion.timesteps, (plan.train.batch_size,))

    def block() -> None:
        with torch.inference_mode():
            for _ in range(steps):
                model(next(batches).images, timesteps)

    return block


def main() -> None:
    arguments = parser(__doc__, rounds=48)
    arguments.add_argument("--teacher", default="unet_mini_nc16_rb1")
    arguments.add_argument("--student", default="unet_mini_nc32_rb2")
    arguments.add_argument("--size", type=int, default=16, help="side of the images in px [16]")
    arguments.add_argument("--batch-size", type=int, default=16)
    arguments.add_argument("--steps", type=int, default=1, help="steps per block and per log row [1]")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        plan = recipe(
            *(options.teacher, options.student, write_judge(Path(folder) / "judge.safetensors")),
            **{"size": options.size, "batch_size": options.batch_size, "log_every": options.steps},
        )

        def engine(distill_steps: int) -> Callable[[], SteppedEngine]:
            return lambda: SteppedEngine(task(plan), plan, distill_steps)

        turns = take_turns(
            {
                "baseline": engine(0),
                "distilled": engine(NEVER),
                "teacher": lambda: teacher_alone(plan, options.steps),
            },
            options.rounds,
        )
    distilled = turns.ratio("distilled", "baseline", "teacher")
    whole = turns.ratio("distilled", "baseline")
    step_ms = {name: turns.seconds(name) / options.steps * 1e3 for name in turns.wall}
    rows = [
        ("distilled step / (student step + teacher forward)", f"{distilled}", "target at most 1.05"),
        ("distilled step / student step", f"{whole}", ""),
        *((f"  {name}", f"{milliseconds:.1f} ms", "") for name, milliseconds in step_ms.items()),
    ]
    ratios = {"distilled": distilled, "distilled_over_baseline": whole}
    report(options, rows, {"ratios": {name: each.as_dict() for name, each in ratios.items()}, "step_ms": step_ms})


if __name__ == "__main__":
    main()
