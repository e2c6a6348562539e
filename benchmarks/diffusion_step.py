"""Cost of distillation for a denoising network: a distilled step against a student's step plus a teacher's forward.

Images are prepared in advance, and for the teacher's forward also their noise. The difference is the cost of the
second squared error and of the bookkeeping; target: at most 1.05. All variants are measured in the same rounds.

    python benchmarks/diffusion_step.py [--teacher unet_mini_nc16_rb1] [--student unet_mini_nc32_rb2] [--json]
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from timing.training import SGD, SHAPES, build_teacher, endless_recipe, premade, report_distilled_step, step_parser

from w2skd.models.catalog import build_classifier
from w2skd.weights.load import save_model

BATCHES = 4
CLASSES = 10


def write_judge(path: Path, options) -> Path:
    """Write an untrained classifier: the task requires one for FID, but training steps do not use it."""
    models = {"teacher": {"model": "small_cnn_weak"}, "student": {"model": "small_cnn_weak"}}
    recipe = endless_recipe(options, SGD, task="classification", data=SHAPES, **models)
    about = {"classes": [str(number) for number in range(CLASSES)], "normalization": [0.5] * 6}
    save_model(path, build_classifier("small_cnn_weak", CLASSES, 32).state_dict(), recipe, "student", about)
    return path


def main() -> None:
    parser = step_parser(__doc__, rounds=48, batch_size=16, steps=1)
    parser.add_argument("--teacher", default="unet_mini_nc16_rb1")
    parser.add_argument("--student", default="unet_mini_nc32_rb2")
    parser.add_argument("--size", type=int, default=16, help="side of the images in px [16]")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    with tempfile.TemporaryDirectory() as folder:
        judge = write_judge(Path(folder) / "judge.safetensors", options)
        recipe = endless_recipe(
            options,
            {"name": "adamw", "lr": 1e-4},
            task="diffusion",
            data={**SHAPES, "image_size": options.size, "train_examples": 512},
            fid={"extractor": f"checkpoint:{judge}"},
            teacher={"model": options.teacher},
            student={"model": options.student},
        )

        def forward() -> Callable[[], object]:
            task = premade(recipe, BATCHES)
            model, batches = build_teacher(task), task.train_batches(0)
            timesteps = torch.randint(recipe.diffusion.timesteps, (options.batch_size,))
            return lambda: model(next(batches).images, timesteps)

        report_distilled_step(options, recipe, lambda: premade(recipe, BATCHES), forward, target="1.05", builds=6)


if __name__ == "__main__":
    main()
