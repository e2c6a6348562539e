"""Cost of distillation for a detector: a distilled step against a student's step plus a teacher's forward.

The teacher's forward is the one that the task runs: without detections, and for Faster R-CNN on the student's
proposals. Proposals and images are prepared in advance, with COCO's 80 categories and six boxes per image. The
difference is the cost of the losses over all anchors and of the bookkeeping; target: at most 1.10. All variants are
measured in the same rounds.

    python benchmarks/detection_step.py [--teacher retinanet_resnet18] [--student retinanet_resnet34] [--json]
"""

from collections.abc import Callable, Iterator
from itertools import cycle

import torch
from timing.training import build_student, build_task, build_teacher, endless_recipe, report_distilled_step, step_parser
from torch import Tensor

from w2skd.tasks.detection.batch import Boxes, ImagesWithBoxes
from w2skd.tasks.detection.task import DetectionTask

BATCHES = 4
BOXES = 6
CATEGORIES = 80


class RandomScenes(DetectionTask):
    """The task with COCO's number of categories, on a few premade batches that repeat endlessly."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Return numbers as class names."""
        return tuple(map(str, range(CATEGORIES)))

    def train_batches(self, first_step: int) -> Iterator[ImagesWithBoxes]:
        """Repeat batches of noise with random boxes."""
        side, count = self._recipe.data.min_size, self._train.batch_size
        torch.manual_seed(first_step)
        return cycle([random_batch(side, count) for _ in range(BATCHES)])


def random_batch(side: int, count: int) -> ImagesWithBoxes:
    return ImagesWithBoxes(
        torch.randn(count, 3, side, side),
        ((side, side),) * count,
        tuple(Boxes(random_boxes(side), torch.randint(CATEGORIES, (BOXES,))) for _ in range(count)),
        torch.arange(count),
        0,
        torch.ones(count, 2),
    )


def random_boxes(side: int) -> Tensor:
    """Draw xyxy boxes with sides of a tenth to a half of the image's side."""
    sizes = side * (0.1 + 0.4 * torch.rand(BOXES, 2))
    corners = torch.rand(BOXES, 2) * (side - sizes)
    return torch.cat([corners, corners + sizes], dim=1)


def main() -> None:
    parser = step_parser(__doc__, rounds=48, batch_size=2, steps=1)
    parser.add_argument("--teacher", default="retinanet_resnet18")
    parser.add_argument("--student", default="retinanet_resnet34")
    parser.add_argument("--size", type=int, default=320, help="side of the images in px [320]")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = endless_recipe(
        options,
        {"name": "sgd", "lr": 1e-4, "momentum": 0.9, "weight_decay": 1e-4},
        task="detection",
        data={
            **{"source": "shapes", "train_examples": 64, "eval_examples": 1},
            **{"min_size": options.size, "max_size": options.size},
        },
        teacher={"model": options.teacher},
        student={"model": options.student},
    )

    def forward() -> Callable[[], object]:
        task = build_task(recipe, RandomScenes)
        model, student, batches = build_teacher(task), build_student(task), task.train_batches(0)
        prepared = []
        with torch.no_grad():
            for _ in range(BATCHES):
                batch = next(batches)
                # Only the number of proposals matters for the time, so that an untrained student's will do.
                output = student(batch.images, batch.sizes, batch.targets)
                prepared.append((batch.images, batch.sizes, None, output.heads.get("proposals"), False))
        inputs = cycle(prepared)
        return lambda: model(*next(inputs))

    report_distilled_step(options, recipe, lambda: build_task(recipe, RandomScenes), forward, target="1.10", builds=3)


if __name__ == "__main__":
    main()
