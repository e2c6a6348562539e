"""Workloads of the training benchmarks: models and premade batches of each task."""

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from w2skd.models.catalog import build_classifier
from w2skd.platform.ranks import Ranks
from w2skd.recipe.load import validate_recipe
from w2skd.recipe.schema import Recipe
from w2skd.tasks.base import Batch, Role, Task
from w2skd.tasks.catalog import recipe_types
from w2skd.tasks.detection.batch import Boxes, ImagesWithBoxes
from w2skd.tasks.detection.task import DetectionTask
from w2skd.weights.load import save_model

Models = tuple[str, str]
"""Names of the teacher and the student."""

TRAIN_EXAMPLES = 2048
BOXES = 6
CATEGORIES = 80
CLASSES = 10


class Workload:
    """A task, its models and a few training batches that repeat endlessly.

    Args:
        recipe: recipe with models, batch size and precision.
        device: device of models and batches.
        batches: number of different batches.
        task_type: replaces the recipe's task.
    """

    def __init__(
        self, recipe: Recipe, device: torch.device, *, batches: int = 4, task_type: type[Task[Any]] | None = None
    ):
        self.recipe = recipe
        self.device = device
        self._batches = batches
        self._task_type = task_type or recipe.task_type()

    def task(self, premade: bool = True) -> Task[Any]:
        """Build the student's training task, with premade batches or with the batches of its feed."""
        task: Task[Any] = self._task_type(
            self.recipe, train=self.recipe.train, seed=0, device=self.device, ranks=Ranks()
        )
        if premade:
            first = list(islice(task.train_batches(0), self._batches))
            task.train_batches = lambda first_step: cycle(first)
        return task

    def student(self) -> nn.Module:
        return self._build(Role.STUDENT)

    def teacher(self) -> nn.Module:
        return self._build(Role.TEACHER).eval().requires_grad_(False)

    def teacher_forward(self) -> Callable[[], object]:
        """Return a function that runs the teacher on the next batch, with the inputs of a distilled step."""
        model, batches = self.teacher(), self.task().train_batches(0)
        inputs = cycle([self.teacher_inputs(next(batches)) for _ in range(self._batches)])
        return lambda: model(*next(inputs))

    def teacher_inputs(self, batch: Batch) -> tuple[Any, ...]:
        return batch.model_inputs

    def _build(self, role: Role) -> nn.Module:
        torch.manual_seed(list(Role).index(role))
        model = self.task().build_model(role).to(self.device)
        if self.recipe.train.channels_last:
            model.to(memory_format=torch.channels_last)
        return model


class Denoising(Workload):
    """The diffusion task: a teacher takes images and timesteps."""

    def teacher_inputs(self, batch: Batch) -> tuple[Any, ...]:
        timesteps = torch.randint(self.recipe.diffusion.timesteps, (len(batch),), device=self.device)
        return batch.images, timesteps


class Detecting(Workload):
    """The detection task: a teacher returns no detections; a two-stage teacher takes the student's proposals."""

    def teacher_inputs(self, batch: Batch) -> tuple[Any, ...]:
        with torch.no_grad():  # the time depends on the number of proposals only, so the student can be untrained
            output = self.student()(batch.images, batch.sizes, batch.targets)
        return batch.images, batch.sizes, None, output.heads.get("proposals"), False


class RandomScenes(DetectionTask):
    """The detection task on images of noise with random boxes, with COCO's number of categories."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Return numbers as class names."""
        return tuple(map(str, range(CATEGORIES)))

    def train_batches(self, first_step: int) -> Iterator[ImagesWithBoxes]:
        torch.manual_seed(first_step)
        while True:
            yield _random_batch(self._recipe.data.min_size, self._train.batch_size, self._device)


def classification(
    models: Models, train: dict[str, Any], device: str, *, size_px: int = 32, compile_teacher: Any = False
) -> Workload:
    """Classify generated images."""
    examples = min(TRAIN_EXAMPLES, 8 * train["batch_size"])
    data = {"source": "shapes", "train_examples": examples, "eval_examples": 10, "image_size": size_px}
    recipe = _recipe("classification", models, train, data=data, compile_teacher=compile_teacher)
    return Workload(recipe, torch.device(device), batches=8)


def detection(models: Models, train: dict[str, Any], device: str, *, size_px: int = 320) -> Workload:
    """Detect random boxes of COCO's number of categories in noise."""
    data = {
        **{"source": "shapes", "train_examples": 64, "eval_examples": 1},
        **{"min_size": size_px, "max_size": size_px, "workers": 0},
    }
    recipe = _recipe("detection", models, {**train, "compile": False}, data=data)
    return Detecting(recipe, torch.device(device), task_type=RandomScenes)


def diffusion(models: Models, train: dict[str, Any], device: str, *, size_px: int = 16) -> Workload:
    """Predict the noise in generated images."""
    examples = max(512, train["batch_size"])
    data = {"source": "shapes", "train_examples": examples, "eval_examples": 10, "image_size": size_px}
    recipe = _recipe("diffusion", models, train, data=data, fid={"extractor": f"checkpoint:{_judge()}"})
    return Denoising(recipe, torch.device(device))


def _recipe(
    task: str, models: Models, train: dict[str, Any], *, compile_teacher: Any = False, **sections: Any
) -> Recipe:
    teacher, student = models
    values = {
        **{"name": "benchmark", "task": task, "train": train, **sections},
        **{"teacher": {"model": teacher, "compile": compile_teacher}, "student": {"model": student}},
    }
    return validate_recipe(values, "benchmark", recipe_types())


@cache
def _judge() -> Path:
    """Write an untrained classifier: the task requires one for FID, but training steps do not use it."""
    path = Path(tempfile.mkdtemp()) / "judge.safetensors"
    train = {
        **{"steps": 1, "batch_size": 1, "optimizer": {"name": "sgd", "lr": 0.1}},
        "lr_schedule": {"name": "constant"},
    }
    model = "small_cnn_weak"
    recipe = _recipe("classification", (model, model), train, data={"source": "shapes"})
    about = {"classes": [str(number) for number in range(CLASSES)], "normalization": [0.5] * 6}
    save_model(path, build_classifier(model, CLASSES, 32).state_dict(), recipe, "student", about)
    return path


def _random_batch(side: int, count: int, device: torch.device) -> ImagesWithBoxes:
    targets = tuple(
        Boxes(_random_boxes(side).to(device), torch.randint(CATEGORIES, (BOXES,)).to(device)) for _ in range(count)
    )
    images = torch.randn(count, 3, side, side).to(device)
    if device.type == "cuda":
        images = images.contiguous(memory_format=torch.channels_last)
    sizes, ids = ((side, side),) * count, torch.arange(count, device=device)
    return ImagesWithBoxes(images, sizes, targets, ids, 0, torch.ones(count, 2))


def _random_boxes(side: int) -> Tensor:
    """Draw xyxy boxes with sides of a tenth to a half of the image's side."""
    sizes = side * (0.1 + 0.4 * torch.rand(BOXES, 2))
    corners = torch.rand(BOXES, 2) * (side - sizes)
    return torch.cat([corners, corners + sizes], dim=1)
