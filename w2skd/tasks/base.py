"""The seam between engine and task: a task gives batches, losses and metrics, the engine sees scalars."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor, nn

from w2skd.method.teacher import FrozenTeacher
from w2skd.recipe.evaluation import Metric
from w2skd.weights.load import Weights


class Role(StrEnum):
    """Which of the recipe's two models."""

    TEACHER = "teacher"
    STUDENT = "student"


class Batch(Protocol):
    """One micro-batch on the training device, with its number of examples as length."""

    @property
    def ids(self) -> Tensor:
        """Which examples of the training set these are, int64 [N]."""
        ...

    @property
    def model_inputs(self) -> tuple[Any, ...]:
        """What a model's forward takes, for measuring it: the first of them a tensor of the examples."""
        ...

    def __len__(self) -> int: ...


class Losses(NamedTuple):
    """Named scalars, each a mean over the micro-batch, not yet weighted; `distill` is empty without a teacher."""

    task: dict[str, Tensor]
    distill: dict[str, Tensor]


class FittedModel(NamedTuple):
    """A model that holds weights from elsewhere.

    Attributes:
        model: takes the task's inputs and answers in its terms.
        account: what was done, or assumed, to make it so; a line each, for people.
    """

    model: nn.Module
    account: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """How a model did on the whole evaluation set.

    Attributes:
        metrics: by name, equal on all ranks.
        tables: rows of plain values behind them.
        account: what a reader of the numbers must know; a line each.
        files: what else can be written, by name: each writes one file. Empty unless predictions were asked for.
        pictures: draws the first so many examples into a folder, and says which files it made; None where there is
            nothing to draw, or predictions were not asked for.
        snapshot: draws one picture of what the model gives, a PNG file; None where that tells nothing. It is called
            after the evaluation, on rank 0 alone, if at all.
    """

    metrics: dict[str, float]
    tables: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    account: tuple[str, ...] = ()
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    pictures: Callable[[Path, int], list[Path]] | None = None
    snapshot: Callable[[Path], None] | None = None


class Snapshot(NamedTuple):
    """A picture of what the model gave at the validation after `step` steps, yet to be drawn into a PNG file."""

    step: int
    draw: Callable[[Path], None]


class Remark(NamedTuple):
    """A line that the validation after `step` steps has on its numbers."""

    step: int
    text: str


class Preview(NamedTuple):
    """A training batch for the eye: images uint8 [n, 3, H, W], and what to write below each."""

    images: Tensor
    captions: tuple[str, ...]


BatchT = TypeVar("BatchT", bound=Batch)


class Task(Protocol[BatchT]):
    """What an experiment is about. A new task is one implementation of this."""

    metric: Metric

    @staticmethod
    def open_weights(checkpoint: Path, model: str) -> Weights:
        """Read the weights of a teacher: a finished run, a file, or ``pretrained`` (``pretrained:TAG``).

        Args:
            checkpoint: as a recipe names it.
            model: the recipe's name of the architecture.

        Raises:
            RecipeError: there are no published weights of that model or tag.
            CheckpointError: the file is missing, damaged or unsafe, or cannot be fetched.
        """
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per pass over the training set."""
        ...

    def describe_data(self) -> dict[str, Any]:
        """What the examples are, for the run's records: data_fingerprint, train_examples, eval_examples, and more."""
        ...

    def describe_model(self) -> dict[str, Any]:
        """What a model file must say besides the recipe, so that `fit_model` can make use of it elsewhere."""
        ...

    def build_model(self, role: Role) -> nn.Module:
        """A freshly initialised model on the CPU, drawn from torch's global generator."""
        ...

    def fit_model(self, role: Role, weights: Weights) -> FittedModel:
        """A model of that role with these weights, on the CPU, that sees and answers as the task's own models do.

        Raises:
            CheckpointError: the weights are another architecture's, or their classes are not the data's.
        """
        ...

    def example_batch(self) -> BatchT:
        """A training batch of one example, for dry runs and FLOPs."""
        ...

    def preview(self) -> Preview:
        """The first training batch, augmented."""
        ...

    def train_batches(self, first_step: int) -> Iterator[BatchT]:
        """Endless micro-batches on the device, this rank's share, from global step `first_step` on.

        One optimizer step takes ``train.accumulate`` of them. They depend on seed and step only, not on what was
        drawn before.
        """
        ...

    def losses(self, student: nn.Module, teacher: FrozenTeacher | None, batch: BatchT) -> Losses:
        """One forward of the student, and of the teacher where there is one, on the same inputs."""
        ...

    def evaluate(self, model: nn.Module, *, with_predictions: bool = False) -> Evaluation:
        """Score a model that is in eval mode on the evaluation set, every example once over all ranks."""
        ...
