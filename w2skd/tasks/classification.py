"""Image classification: cross-entropy, and the teacher's softened distribution beside it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from w2skd.data.resident import LabelledImages, ResidentFeed, evaluation_batches
from w2skd.data.sources import load_image_data
from w2skd.distill import distillation_kl
from w2skd.distributed import Ranks
from w2skd.metrics.accuracy import Accuracy
from w2skd.models.catalog import build_classifier
from w2skd.recipe.classification import ClassificationRecipe
from w2skd.recipe.names import CLASSIFICATION_METRICS
from w2skd.recipe.schema import TrainSection
from w2skd.schedule import temperature_at
from w2skd.tasks.base import Evaluation, Losses, Metric, Role
from w2skd.teacher import FrozenTeacher

EVALUATION_BATCH = 500


class ClassificationTask:
    """See `w2skd.tasks.base.Task`.

    Args:
        recipe: the experiment.
        train: the section of this arm (the teacher's differs from the student's).
        seed: of data order and augmentation.
        device: where batches live.
        ranks: this process among its peers.

    Raises:
        DataError: the examples are missing or damaged.
        UsageError: the batch cannot be shared evenly among ranks and micro-batches.
    """

    def __init__(
        self, recipe: ClassificationRecipe, *, train: TrainSection, seed: int, device: torch.device, ranks: Ranks
    ):
        self.metric = Metric(recipe.report.metric, CLASSIFICATION_METRICS[recipe.report.metric])
        self._recipe = recipe
        self._train = train
        self._device = device
        self._ranks = ranks
        self._data = load_image_data(recipe.data)
        self._feed = ResidentFeed(
            self._data.train,
            self._data.normalization,
            batch_size=train.batch_size,
            augment=recipe.data.augment,
            seed=seed,
            device=device,
            channels_last=train.channels_last,
        )
        self.steps_per_epoch = self._feed.steps_per_epoch
        self._total_steps = train.total_steps(self.steps_per_epoch)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return self._data.train.classes

    def describe_data(self) -> dict[str, str | int]:
        """What the examples are, for the run's records."""
        return {
            "data_fingerprint": f"{self._data.train.fingerprint()[:16]}/{self._data.evaluation.fingerprint()[:16]}",
            "train_examples": len(self._data.train),
            "eval_examples": len(self._data.evaluation),
        }

    def describe_model(self) -> dict[str, list[Any]]:
        """The classes, in the order of the outputs, and mean and deviation by which its images are normalised."""
        normalization = self._data.normalization
        return {"classes": list(self.classes), "normalization": [*normalization.mean, *normalization.std]}

    def build_model(self, role: Role) -> nn.Module:
        """The recipe's classifier of that role, freshly initialised."""
        section = self._recipe.teacher if role is Role.TEACHER else self._recipe.student
        return build_classifier(section.model, len(self.classes))

    def example_batch(self) -> LabelledImages:
        """One training image."""
        return self._feed.example()

    def train_batches(self, first_step: int) -> Iterator[LabelledImages]:
        """Augmented micro-batches of this rank."""
        return self._feed.micro_batches(
            first_step, rank=self._ranks.rank, ranks=self._ranks.world, accumulate=self._train.accumulate
        )

    def losses(self, student: nn.Module, teacher: FrozenTeacher | None, batch: LabelledImages) -> Losses:
        """Cross-entropy with label smoothing; with a teacher, its KL divergence on the very same pixels."""
        logits = student(batch.images).float()
        smoothing = self._recipe.loss.label_smoothing
        task = {"cross_entropy": functional.cross_entropy(logits, batch.labels, label_smoothing=smoothing)}
        if teacher is None:
            return Losses(task, {})
        temperature = temperature_at(self._recipe.distill, batch.step, self.steps_per_epoch, self._total_steps)
        return Losses(task, {"kl": distillation_kl(logits, teacher(batch.images), temperature)})

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Top-1, top-5 and cross-entropy on the evaluation set, and a table of classes."""
        accuracy = Accuracy(len(self.classes), self._device)
        batches = evaluation_batches(
            self._data.evaluation,
            self._data.normalization,
            device=self._device,
            batch_size=EVALUATION_BATCH,
            rank=self._ranks.rank,
            ranks=self._ranks.world,
            channels_last=self._train.channels_last,
        )
        for batch in batches:
            accuracy.add(model(batch.images), batch.labels)
        self._ranks.sum_(accuracy.sums)
        per_class = [{**row, "class": name} for name, row in zip(self.classes, accuracy.per_class(), strict=True)]
        return Evaluation(accuracy.result(), {"classes": per_class})
