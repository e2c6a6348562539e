"""Image classification: cross-entropy, and the teacher's softened distribution beside it."""

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from w2skd.data.batch import LabelledImages
from w2skd.data.feeds import ImageFeeds
from w2skd.data.normalize import to_bytes
from w2skd.errors import CheckpointError, RecipeError
from w2skd.method.losses import distillation_kl
from w2skd.method.teacher import FrozenTeacher
from w2skd.models.catalog import build_classifier
from w2skd.models.image_size import require_logits
from w2skd.platform.ranks import Ranks
from w2skd.recipe.schema import TrainSection
from w2skd.tasks.base import Evaluation, FittedModel, Losses, Preview, Role
from w2skd.tasks.classification.accuracy import TOP_K, Accuracy
from w2skd.tasks.classification.confusion_picture import draw_confusion
from w2skd.tasks.classification.predictions import Prediction, count_confusion, write_predictions
from w2skd.tasks.classification.recipe import ClassificationRecipe
from w2skd.weights.classes import AdaptedClassifier, match_classes
from w2skd.weights.load import Weights, load_into, number_of_classes
from w2skd.weights.pretrained import open_weights


class ClassificationTask:
    """See `w2skd.tasks.base.Task`.

    Args:
        recipe: the experiment.
        train: the section of this arm (the teacher's differs from the student's).
        seed: of data order and augmentation.
        device: where batches live.
        ranks: this process among its peers.

    Raises:
        DataError: the examples are missing or contradictory. Damaged ones are found when they are read.
    """

    def __init__(
        self, recipe: ClassificationRecipe, *, train: TrainSection, seed: int, device: torch.device, ranks: Ranks
    ):
        self.metric = recipe.metric
        self._recipe = recipe
        self._train = train
        self._device = device
        self._ranks = ranks
        self._feeds = ImageFeeds(
            recipe.data,
            batch_size=train.batch_size,
            seed=seed,
            device=device,
            channels_last=train.channels_last,
            run_steps=train.total_steps,
        )

    open_weights = staticmethod(open_weights)

    @cached_property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per pass over the training set."""
        return self._feeds.train.steps_per_epoch

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return self._feeds.train_listing.classes

    def describe_data(self) -> dict[str, Any]:
        """What the examples are and how they come, for the run's records."""
        facts: dict[str, Any] = {
            "data_fingerprint": self._feeds.fingerprint(),
            "train_examples": len(self._feeds.train_listing),
            "eval_examples": len(self._feeds.evaluation_listing),
            "feed": self._feeds.kind,
        }
        return facts | ({"image_sizes_vary": True} if self._recipe.data.progressive else {})

    def preview(self) -> Preview:
        """The first training batch, as models see it but for its normalisation."""
        batch = next(self.train_batches(0))
        labels = [self.classes[label] for label in batch.labels.tolist()]
        if batch.partner_labels is not None:
            partners = [self.classes[label] for label in batch.partner_labels.tolist()]
            if batch.share < 0.5:  # the picture shows the larger part best, and a caption its beginning
                labels, partners = partners, labels
            larger = max(batch.share, 1 - batch.share)
            labels = [f"{larger:.0%} {a}, {b}" for a, b in zip(labels, partners, strict=True)]
        return Preview(to_bytes(batch.images, self._feeds.normalization), tuple(labels))

    def describe_model(self) -> dict[str, list[Any]]:
        """The classes, in the order of the outputs, and mean and deviation by which its images are normalised."""
        return {"classes": list(self.classes), "normalization": self._normalization}

    def build_model(self, role: Role) -> nn.Module:
        """The recipe's classifier of that role, freshly initialised, which can be trained on the data's images.

        Raises:
            RecipeError: it can't take one of their sizes.
        """
        return self._build(role, len(self.classes), sizes_px={self._feeds.size_px, self._feeds.smallest_px})

    def fit_model(self, role: Role, weights: Weights) -> FittedModel:
        """The recipe's classifier of that role with these weights, however many classes and whatever normalisation."""
        name, size_px = self._recipe.model_of(role), self._size_px(role)
        # Images that are resized for it have one size only.
        sizes_px = {self._feeds.smallest_px} if size_px == self._feeds.size_px else {size_px}
        model = self._build(role, len(self.classes), sizes_px)
        heads = number_of_classes(model, weights, len(self.classes)) or len(self.classes)
        details = weights.details
        account = [f"{weights.path.name} says nothing of itself: {details['source']}"] if details.get("assumed") else []
        if heads != len(self.classes):
            model = self._build(role, heads, sizes_px)
        load_into(model, weights, expected=name)
        try:
            match = match_classes(details.get("classes"), details.get("class_ids"), self.classes, heads)
        except CheckpointError as error:
            raise CheckpointError(f"{weights.path}: {'; '.join([str(error), *account])}") from None
        account += [match.account] if match.columns is not None or match.assumed else []
        theirs, assumption = self._normalization_of(role, weights)
        account += [assumption] if assumption else []
        if size_px != self._feeds.size_px:
            account.append(f"sees images of {size_px} px, the student of {self._feeds.size_px} px")
        if match.columns is None and theirs == self._normalization and size_px == self._feeds.size_px:
            return FittedModel(model, tuple(account))
        adapted = AdaptedClassifier(
            model,
            ours=_mean_and_std(self._normalization),
            theirs=_mean_and_std(theirs),
            image_size_px=size_px if size_px != self._feeds.size_px else None,
            interpolation=self._recipe.data.interpolation,
            columns=match.columns,
        )
        return FittedModel(adapted, tuple(account))

    def example_batch(self) -> LabelledImages:
        """One training image."""
        return self._feeds.train.example()

    def train_batches(self, first_step: int) -> Iterator[LabelledImages]:
        """Augmented micro-batches of this rank."""
        return self._feeds.train_batches(
            first_step, rank=self._ranks.rank, ranks=self._ranks.world, accumulate=self._train.accumulate
        )

    def losses(self, student: nn.Module, teacher: FrozenTeacher | None, batch: LabelledImages) -> Losses:
        """Cross-entropy with label smoothing; with a teacher, its KL divergence on the very same pixels."""
        logits = student(batch.images).float()
        task = {"cross_entropy": self._cross_entropy(logits, batch)}
        if teacher is None:
            return Losses(task, {})
        temperature = self._recipe.distill.temperature_at(batch.step, self.steps_per_epoch, self._total_steps)
        return Losses(task, {"kl": distillation_kl(logits, teacher(batch.images), temperature)})

    def _cross_entropy(self, logits: Tensor, batch: LabelledImages) -> Tensor:
        """Of labels as they are, or of two labels in the proportion in which their images were mixed."""
        smoothing = self._recipe.loss.label_smoothing
        loss = functional.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
        if batch.partner_labels is None:
            return loss
        other = functional.cross_entropy(logits, batch.partner_labels, label_smoothing=smoothing)
        return batch.share * loss + (1 - batch.share) * other

    def evaluate(self, model: nn.Module, *, with_predictions: bool = False) -> Evaluation:
        """Top-1, top-5 and cross-entropy on the evaluation set, and a table of classes."""
        accuracy = Accuracy(len(self.classes), self._device)
        found: list[Prediction] = []
        for batch in self._feeds.evaluation_batches(rank=self._ranks.rank, ranks=self._ranks.world):
            logits = model(batch.images)
            accuracy.add(logits, batch.labels)
            if with_predictions:
                found += self._predictions(logits, batch)
        self._ranks.sum_(accuracy.sums)
        if with_predictions:
            found = [prediction for part in self._ranks.gather(found) for prediction in part]
        per_class = [{**row, "class": name} for name, row in zip(self.classes, accuracy.per_class(), strict=True)]
        files = {
            "predictions": partial(write_predictions, predictions=found),
            "confusion": partial(self._draw_confusion, found),
        }
        return Evaluation(accuracy.result(), {"classes": per_class}, files=files if with_predictions else {})

    def _draw_confusion(self, predictions: list[Prediction], path: Path) -> None:
        title = f"{self._recipe.name}: what is taken for what"
        draw_confusion(count_confusion(predictions, self.classes), self.classes, path, title=title)

    def _predictions(self, logits: Tensor, batch: LabelledImages) -> list[Prediction]:
        """What a batch got, read back from the device."""
        # Sorted as accuracy ranks them, ties too, which bf16 often makes and whose order `topk` leaves open.
        places = logits.float().sort(dim=1, descending=True, stable=True).indices[:, :TOP_K]
        shares = logits.float().softmax(dim=1).gather(1, places)
        examples, rows = self._feeds.evaluation_listing.examples, []
        for index, label, best, confidence in zip(
            batch.ids.tolist(), batch.labels.tolist(), places.tolist(), shares.tolist(), strict=True
        ):
            top = tuple((self.classes[place], share) for place, share in zip(best, confidence, strict=True))
            rows.append(Prediction(examples.name(index), self.classes[label], top[0][0], top[0][1], top))
        return rows

    @cached_property
    def _total_steps(self) -> int:
        return self._train.total_steps(self.steps_per_epoch)

    def _build(self, role: Role, classes: int, sizes_px: set[int]) -> nn.Module:
        """Built for the size that its role sees, and tried on the others that it meets: some models take one only."""
        name, size_px = self._recipe.model_of(role), self._size_px(role)
        model = build_classifier(name, classes, size_px)
        for other_px in sizes_px - {size_px}:
            try:
                require_logits(name, model, classes, other_px)
            except RecipeError as error:
                key = "data.progressive" if other_px < self._feeds.size_px else "teacher.image_size"
                raise RecipeError(f"{key}: {error}") from None
        return model

    @property
    def _normalization(self) -> list[float]:
        """Three means, then three deviations."""
        return [*self._feeds.normalization.mean, *self._feeds.normalization.std]

    def _size_px(self, role: Role) -> int:
        """Side of the images that a model of that role sees."""
        own = self._recipe.teacher.image_size if role is Role.TEACHER else None
        return own or self._feeds.size_px

    def _normalization_of(self, role: Role, weights: Weights) -> tuple[list[float], str | None]:
        """By what the images of these weights were normalised, and what had to be assumed."""
        known = weights.details.get("normalization")
        told = self._recipe.teacher.normalization if role is Role.TEACHER else None
        if known is not None:
            return list(known), None
        if told is not None:
            return [*told.mean, *told.std], None
        where = ": teacher.normalization can tell" if role is Role.TEACHER else ""
        return self._normalization, f"how its images were normalised is not on record: taken for the data's own{where}"


def _mean_and_std(normalization: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(normalization[:3]), tuple(normalization[3:])
