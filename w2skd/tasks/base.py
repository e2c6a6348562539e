"""The seam between the engine and a task: a task gives batches, losses and metrics, and the engine sees scalars."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from w2skd.data.identity import DataIdentity
from w2skd.method.grow import Growth
from w2skd.method.teacher import FrozenTeacher
from w2skd.recipe.evaluation import Metric
from w2skd.weights.load import Weights


class Role(StrEnum):
    """One of the recipe's two models."""

    TEACHER = "teacher"
    STUDENT = "student"


class Batch(Protocol):
    """One micro-batch on the training device; its length is the number of examples."""

    @property
    def ids(self) -> Tensor:
        """Indices of the examples in the training set, int64 [N]."""
        ...

    @property
    def model_inputs(self) -> tuple[Any, ...]:
        """Arguments of a model's forward, used to measure the model; the first is a tensor with N rows."""
        ...

    def __len__(self) -> int: ...


class Losses(NamedTuple):
    """Unweighted losses of a micro-batch.

    Attributes:
        task: name -> scalar, a mean over the micro-batch.
        distill: name -> scalar; empty without a teacher.
    """

    task: dict[str, Tensor]
    distill: dict[str, Tensor]


class FittedModel(NamedTuple):
    """A model with loaded weights.

    Attributes:
        model: takes the task's inputs and returns its outputs.
        notes: what was adapted or assumed, one line each.
    """

    model: nn.Module
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model on the whole evaluation set.

    Attributes:
        metrics: by name, equal on all ranks.
        tables: name -> rows of plain values.
        notes: what a reader of the scores must know, one line each.
        files: name of a `Recipe.outputs` entry -> function that writes it; empty unless predictions were requested.
        pictures: draws the first N examples into a folder and returns the files; None if the task draws none, or
            predictions were not requested.
        snapshot: draws one picture of the model's output into a PNG file, or None. Called at most once, on rank 0,
            after the evaluation.
    """

    metrics: dict[str, float]
    tables: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    pictures: Callable[[Path, int], list[Path]] | None = None
    snapshot: Callable[[Path], None] | None = None


class Snapshot(NamedTuple):
    """A picture of the model's output at the validation after `step` steps; `draw` writes it as a PNG file."""

    step: int
    draw: Callable[[Path], None]


class Remark(NamedTuple):
    """A line about the scores of the validation after `step` steps."""

    step: int
    text: str


class Preview(NamedTuple):
    """A training batch to look at: images uint8 [N, 3, H, W] and a caption for each."""

    images: Tensor
    captions: tuple[str, ...]


BatchT = TypeVar("BatchT", bound=Batch)


class Task(Protocol[BatchT]):
    """What a recipe trains and scores.

    A new task is a folder with two classes: a `Recipe` subclass, which `w2skd.tasks.catalog` lists, and an
    implementation of this protocol, which the recipe's ``task_type`` imports. The implementation is called as
    ``TaskType(recipe, train=..., seed=..., device=..., ranks=...)`` with the recipe, the train section of the arm, the
    seed of data order and augmentation, the device of batches, and this process among its peers.
    """

    metric: Metric

    @staticmethod
    def open_weights(checkpoint: Path, model: str, key: str | None = None) -> Weights:
        """Read the weights of a teacher.

        Args:
            checkpoint: as a recipe names it: a finished run, a file, or ``pretrained`` (``pretrained:TAG``).
            model: the recipe's name of the architecture.
            key: which of several sets of tensors in a file, see `w2skd.weights.load.load_weights`.

        Raises:
            RecipeError: there are no published weights of that model or tag.
            CheckpointError: the file is missing, damaged or unsafe, or cannot be downloaded.
        """
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per pass over the training set."""
        ...

    def describe_data(self) -> dict[str, Any]:
        """Describe the data for the run's records.

        Returns:
            ``data_fingerprint``, ``train_examples``, ``eval_examples``; optionally ``feed``, ``data_account`` (lines)
            and ``scoring`` (everything that two scores must share to be comparable).
        """
        ...

    def identify_data(self) -> DataIdentity:
        """Identify the training and the evaluation set, so that no run continues or is compared on other data.

        Raises:
            DataError: an example cannot be read.
        """
        ...

    def describe_model(self) -> dict[str, Any]:
        """Return what a model file must contain besides the recipe, so that `fit_model` can use it elsewhere."""
        ...

    def build_model(self, role: Role) -> nn.Module:
        """Build a freshly initialised model on the CPU, drawn from torch's global generator."""
        ...

    def initialize_model(self, model: nn.Module) -> None:
        """Set the weights of a freshly built model that depend on the training data, if it has any.

        Called on the CPU before training from scratch, but not if weights are loaded or a run resumes. The result must
        be the same on all ranks. The method must not draw from torch's generators.
        """
        ...

    def grow(self, student: nn.Module, teacher: nn.Module, generator: torch.Generator) -> Growth:
        """Initialise a larger student from a teacher such that both compute the same function.

        Args:
            student: freshly built, on the CPU; changed in place.
            teacher: the model that `fit_model` returned, on the CPU.
            generator: random generator on the CPU.

        Raises:
            GrowthError: the teacher cannot grow into the student.
        """
        ...

    def fit_model(self, role: Role, weights: Weights) -> FittedModel:
        """Build the model of a role with these weights, on the CPU, adapted to the task's inputs and outputs.

        Raises:
            CheckpointError: the weights belong to another architecture, or their classes do not match the data's.
        """
        ...

    def example_batch(self) -> BatchT:
        """Return a training batch of one example, for dry runs and FLOPs."""
        ...

    def preview(self) -> Preview:
        """Return the first training batch as images, with augmentation."""
        ...

    def train_batches(self, first_step: int) -> Iterator[BatchT]:
        """Yield this rank's micro-batches on the device without end, from global step `first_step` on.

        One optimizer step takes ``train.accumulate`` micro-batches. They depend on the seed and the step only.
        """
        ...

    def losses(self, student: nn.Module, teacher: FrozenTeacher | None, batch: BatchT) -> Losses:
        """Run the student once, and the teacher if there is one, on the same inputs."""
        ...

    def doubt(self, metrics: Mapping[str, float]) -> str | None:
        """Return in one line why a model with these scores knows nothing of the data; None if it does.

        Args:
            metrics: as `evaluate` returned them.
        """
        ...

    def evaluate(self, model: nn.Module, *, with_predictions: bool = False) -> Evaluation:
        """Score a model in eval mode on the evaluation set, each example once over all ranks.

        Args:
            model: in eval mode, on the device.
            with_predictions: prepare `Evaluation.files` and `Evaluation.pictures`.
        """
        ...
