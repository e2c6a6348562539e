"""What distillation costs a detector: a distilled step against a student's step and its teacher's forward alone.

The teacher's forward is what the task asks of it, without detections, and of Faster R-CNN on the student's proposals;
they and the images are made beforehand, of COCO's 80 categories with six boxes each. So what is left is the price of
the losses over all anchors and of the bookkeeping; target: at most 1.10. Both are measured in the same rounds.

    python benchmarks/detection_step.py [--teacher retinanet_resnet18] [--student retinanet_resnet34] [--json]
"""

from collections.abc import Callable, Iterator

import torch
from timing.alternating import parser, report, take_turns
from timing.training import CPU, NEVER, SteppedEngine
from torch import Tensor

from w2skd.platform.ranks import Ranks
from w2skd.recipe.load import validate_recipe
from w2skd.tasks.base import Role
from w2skd.tasks.detection.batch import Boxes, ImagesWithBoxes
from w2skd.tasks.detection.models.output import DetectorOutput
from w2skd.tasks.detection.recipe import DetectionRecipe
from w2skd.tasks.detection.task import DetectionTask

BATCHES = 4
BOXES = 6
CATEGORIES = 80


class Premade(DetectionTask):
    """The same task with COCO's number of categories, on a few batches that come round for ever."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Numbers for names."""
        return tuple(map(str, range(CATEGORIES)))

    def train_batches(self, first_step: int) -> Iterator[ImagesWithBoxes]:
        """Noise, with boxes anywhere."""
        side, count = self._recipe.data.min_size, self._train.batch_size
        torch.manual_seed(first_step)
        made = [
            ImagesWithBoxes(
                torch.randn(count, 3, side, side),
                ((side, side),) * count,
                tuple(Boxes(boxes(side), torch.randint(CATEGORIES, (BOXES,))) for _ in range(count)),
                torch.arange(count),
                0,
                torch.ones(count, 2),
            )
            for _ in range(BATCHES)
        ]
        while True:
            yield from made


def boxes(side: int) -> Tensor:
    """Random xyxy boxes of a tenth to a half of an image's side."""
    sizes = side * (0.1 + 0.4 * torch.rand(BOXES, 2))
    corners = torch.rand(BOXES, 2) * (side - sizes)
    return torch.cat([corners, corners + sizes], dim=1)


def recipe(teacher: str, student: str, *, size: int, batch_size: int, log_every: int) -> DetectionRecipe:
    """Training without an end, a validation or a checkpoint: what remains is steps."""
    made = validate_recipe(
        {
            "name": "benchmark",
            "task": "detection",
            "data": {"source": "shapes", "train_examples": 64, "eval_examples": 1, "min_size": size, "max_size": size},
            "teacher": {"model": teacher},
            "student": {"model": student},
            "train": {
                "steps": NEVER,
                "batch_size": batch_size,
                "optimizer": {"name": "sgd", "lr": 1e-4, "momentum": 0.9, "weight_decay": 1e-4},
                "lr_schedule": {"name": "constant"},
                "validate_every": f"{NEVER}step",
                "log_every": log_every,
            },
        },
        "benchmark",
    )
    assert isinstance(made, DetectionRecipe)
    return made


def task(plan: DetectionRecipe) -> Premade:
    return Premade(plan, train=plan.train, seed=0, device=CPU, ranks=Ranks())


def teacher_alone(plan: DetectionRecipe, steps: int) -> Callable[[], None]:
    """The teacher's forward, as often as a block has steps."""
    made = task(plan)
    torch.manual_seed(1)
    model = made.build_model(Role.TEACHER).eval()
    batches = made.train_batches(0)
    student = made.build_model(Role.STUDENT)
    # As many regions as a step has, whichever they are.
    regions = {}
    with torch.no_grad():
        for batch in (next(batches) for _ in range(BATCHES)):
            said: DetectorOutput = student(batch.images, batch.sizes, batch.targets)
            regions[id(batch)] = said.heads.get("proposals")

    def block() -> None:
        with torch.inference_mode():
            for _ in range(steps):
                batch = next(batches)
                model(batch.images, batch.sizes, None, regions[id(batch)], False)

    return block


def main() -> None:
    arguments = parser(__doc__, rounds=48)
    arguments.add_argument("--teacher", default="retinanet_resnet18")
    arguments.add_argument("--student", default="retinanet_resnet34")
    arguments.add_argument("--size", type=int, default=320, help="px of an image's sides [320]")
    arguments.add_argument("--batch-size", type=int, default=2)
    arguments.add_argument("--steps", type=int, default=1, help="steps a block, and a log row [1]")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    plan = recipe(
        *(options.teacher, options.student),
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
        builds=3,
    )
    distilled = turns.ratio("distilled", "baseline", "teacher")
    whole = turns.ratio("distilled", "baseline")
    step_ms = {name: turns.seconds(name) / options.steps * 1e3 for name in turns.wall}
    rows = [
        ("distilled step / (student step + teacher forward)", f"{distilled}", "target at most 1.10"),
        ("distilled step / student step", f"{whole}", ""),
        *((f"  {name}", f"{milliseconds:.1f} ms", "") for name, milliseconds in step_ms.items()),
    ]
    ratios = {"distilled": distilled, "distilled_over_baseline": whole}
    report(options, rows, {"ratios": {name: each.as_dict() for name, each in ratios.items()}, "step_ms": step_ms})


if __name__ == "__main__":
    main()
