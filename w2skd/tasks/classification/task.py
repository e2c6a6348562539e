"""Image classification: cross-entropy, plus the KL divergence from the teacher's softened distribution."""

from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from w2skd.data.batch import LabelledImages
from w2skd.data.feeds import ImageFeeds
from w2skd.data.identity import DataIdentity
from w2skd.data.normalize import to_bytes
from w2skd.data.parts import filled
from w2skd.errors import CheckpointError, GrowthError, RecipeError, UsageError
from w2skd.method.grow import Growth
from w2skd.method.losses import distillation_kl
from w2skd.method.teacher import FrozenTeacher
from w2skd.models.catalog import build_classifier
from w2skd.models.data_dependent import DataDependent
from w2skd.models.growth.catalog import grow
from w2skd.models.image_size import require_logits
from w2skd.models.plugin import describe_plugin_error
from w2skd.platform.ranks import Ranks
from w2skd.recipe.train import TrainSection
from w2skd.tasks.base import Evaluation, FittedModel, Losses, Preview, Role
from w2skd.tasks.classification.accuracy import TOP_K, Accuracy
from w2skd.tasks.classification.adapted import AdaptedClassifier
from w2skd.tasks.classification.confusion_picture import draw_confusion
from w2skd.tasks.classification.mixing import mix_batches
from w2skd.tasks.classification.predictions import Prediction, count_confusion, write_predictions
from w2skd.tasks.classification.recipe import ClassificationRecipe
from w2skd.weights.classes import match_classes
from w2skd.weights.load import Weights, load_into, number_of_classes
from w2skd.weights.pretrained import open_weights


class ClassificationTask:
    """See `w2skd.tasks.base.Task`.

    Args:
        recipe: recipe of the experiment.
        train: train section of the arm (the teacher's differs from the student's).
        seed: seed of data order and augmentation.
        device: device of the batches.
        ranks: this process among its peers.

    Raises:
        DataError: examples are missing or contradictory. Damaged ones are detected when they are read.
    """

    def __init__(
        self, recipe: ClassificationRecipe, *, train: TrainSection, seed: int, device: torch.device, ranks: Ranks
    ):
        self.metric = recipe.metric
        self._recipe = recipe
        self._train = train
        self._seed = seed
        self._device = device
        self._ranks = ranks
        self._feeds = ImageFeeds(recipe.data, train, seed=seed, device=device)

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
        """Describe the examples and the data feed, for the run's records."""
        facts: dict[str, Any] = {
            "data_fingerprint": self._feeds.fingerprint(),
            "train_examples": len(self._feeds.train_listing),
            "eval_examples": len(self._feeds.evaluation_listing),
            "feed": self._feeds.kind,
            "data_account": self._feeds.notes,
        }
        return facts | ({"image_sizes_vary": True} if self._recipe.data.progressive else {})

    def preview(self) -> Preview:
        """Return the first training batch with augmentation, without normalisation."""
        batch = next(self.train_batches(0))
        labels = [self.classes[label] for label in batch.labels.tolist()]
        if batch.partner_labels is not None:
            partners = [self.classes[label] for label in batch.partner_labels.tolist()]
            if batch.share < 0.5:  # the caption names the dominant class first
                labels, partners = partners, labels
            larger = max(batch.share, 1 - batch.share)
            labels = [f"{larger:.0%} {a}, {b}" for a, b in zip(labels, partners, strict=True)]
        return Preview(to_bytes(batch.images, self._feeds.normalization), tuple(labels))

    def identify_data(self) -> DataIdentity:
        """Identify the images and labels of both sets."""
        return self._feeds.identity()

    def describe_model(self) -> dict[str, list[Any]]:
        """Return the classes in the order of the outputs, and the normalisation of the images."""
        return {"classes": list(self.classes), "normalization": self._normalization}

    def build_model(self, role: Role) -> nn.Module:
        """Build the recipe's classifier of a role, freshly initialised.

        Raises:
            RecipeError: it cannot process one of the image sizes of training.
        """
        return self._build(role, len(self.classes), sizes_px={self._feeds.size_px, self._feeds.smallest_px})

    def initialize_model(self, model: nn.Module) -> None:
        """Pass unaugmented training images to a `DataDependent` model, such as one that whitens its inputs.

        Raises:
            DataError: an image cannot be read.
            UsageError: a plug-in's code fails.
        """
        if not isinstance(model, DataDependent):
            return
        images = self._feeds.sample()
        try:
            model.initialize_from(images)
        except Exception as error:  # plug-ins can raise any exception
            plugin_error = describe_plugin_error(error)
            if plugin_error is None:
                raise
            raise UsageError(f"a model cannot be initialised from the training images: {plugin_error}") from error

    def fit_model(self, role: Role, weights: Weights) -> FittedModel:
        """Build the recipe's classifier of a role with these weights, adapting classes, normalisation and image size.

        Raises:
            RecipeError: the model cannot process one of the image sizes.
            CheckpointError: the weights belong to another architecture, or their classes do not match the data's.
        """
        size_px, own_size = self._size_px(role), self._size_px(role) == self._feeds.size_px
        # Images that are resized for the model have one size only.
        sizes_px = {self._feeds.smallest_px} if own_size else {size_px}
        model = self._build(role, len(self.classes), sizes_px)
        heads = number_of_classes(model, weights, len(self.classes)) or len(self.classes)
        if heads != len(self.classes):
            model = self._build(role, heads, sizes_px)
        details, notes = weights.details, list(load_into(model, weights, expected=self._recipe.model_of(role)))
        if details.get("assumed"):
            notes.append(f"{weights.path.name} has no metadata: {details['source']}")
        try:
            match = match_classes(details.get("classes"), details.get("class_ids"), self.classes, heads)
        except CheckpointError as error:
            raise CheckpointError(f"{weights.path}: {'; '.join([str(error), *notes])}") from None
        if match.columns is not None or match.assumed:
            notes.append(match.note)
        theirs = self._normalization_of(role, weights)
        if theirs is None:
            remedy = "; set teacher.normalization if it differs" if role is Role.TEACHER else ""
            notes.append(f"its image normalisation is not recorded: assumed to be the data's{remedy}")
            theirs = self._normalization
        if not own_size:
            notes.append(f"sees images of {size_px} px, the student of {self._feeds.size_px} px")
        if match.columns is not None or theirs != self._normalization or not own_size:
            model = AdaptedClassifier(
                model,
                ours=self._normalization,
                theirs=theirs,
                image_size_px=None if own_size else size_px,
                interpolation=self._recipe.data.interpolation,
                columns=match.columns,
            )
        return FittedModel(model, tuple(notes))

    def grow(self, student: nn.Module, teacher: nn.Module, generator: torch.Generator) -> Growth:
        """Grow a classifier; see `w2skd.models.growth.catalog.grow`.

        Raises:
            GrowthError: the teacher has other classes or inputs than the student, or the architectures do not match.
        """
        if isinstance(teacher, AdaptedClassifier):
            raise GrowthError(f"teacher: {teacher.adapted}, so the student cannot start from its weights")
        return grow(student, teacher, generator)

    def example_batch(self) -> LabelledImages:
        """Return a batch of one training image."""
        return self._feeds.train.example()

    def train_batches(self, first_step: int) -> Iterator[LabelledImages]:
        """Yield this rank's augmented micro-batches."""
        data = self._recipe.data
        batches = self._feeds.train.micro_batches(first_step, self._ranks, self._train.accumulate)
        if data.mixup == 0 and data.cutmix == 0:
            return batches
        return mix_batches(batches, mixup=data.mixup, cutmix=data.cutmix, seed=self._seed)

    def losses(self, student: nn.Module, teacher: FrozenTeacher | None, batch: LabelledImages) -> Losses:
        """Compute cross-entropy with label smoothing and, with a teacher, the KL divergence on the same pixels."""
        logits = student(batch.images).float()
        task = {"cross_entropy": self._cross_entropy(logits, batch)}
        if teacher is None:
            return Losses(task, {})
        total_steps = self._train.total_steps(self.steps_per_epoch)
        temperature = self._recipe.distill.temperature_at(batch.step, self.steps_per_epoch, total_steps)
        return Losses(task, {"kl": distillation_kl(logits, teacher(batch.images), temperature)})

    def _cross_entropy(self, logits: Tensor, batch: LabelledImages) -> Tensor:
        """Compute the mean cross-entropy; for mixed images, weight both labels by their share of the image."""
        smoothing = self._recipe.loss.label_smoothing
        loss = functional.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
        if batch.partner_labels is None:
            return loss
        other = functional.cross_entropy(logits, batch.partner_labels, label_smoothing=smoothing)
        return batch.share * loss + (1 - batch.share) * other

    def evaluate(self, model: nn.Module, *, with_predictions: bool = False) -> Evaluation:
        """Compute top-1, top-5, cross-entropy and a table of classes on the evaluation set."""
        accuracy = Accuracy(len(self.classes), len(self._feeds.evaluation_listing), self._device)
        found: list[tuple[int, Prediction]] = []
        for batch in self._feeds.evaluation_batches(self._ranks):
            logits = model(filled(batch.images, self._feeds.evaluation_batch))[: len(batch)]
            accuracy.add(logits, batch.labels, batch.ids)
            if with_predictions:
                found += self._predictions(logits, batch)
        self._ranks.sum_(accuracy.sums)
        if with_predictions:
            found = sorted(pair for part in self._ranks.gather(found) for pair in part)
        predictions = [prediction for _, prediction in found]
        per_class = [{**row, "class": name} for name, row in zip(self.classes, accuracy.per_class(), strict=True)]
        files = {
            "predictions": partial(write_predictions, predictions=predictions),
            "confusion": partial(self._draw_confusion, predictions),
        }
        return Evaluation(accuracy.result(), {"classes": per_class}, files=files if with_predictions else {})

    def doubt(self, metrics: Mapping[str, float]) -> str | None:
        """Compare top-1 and cross-entropy with those of a guess from the frequencies of the classes.

        Top-1 must be better by two standard errors, or the cross-entropy lower: a teacher that was hardly trained may
        know a little before it is right more often.
        """
        labels = self._feeds.evaluation_listing.labels
        shares = labels.bincount().double() / len(labels)
        chance, entropy = float(shares.max()), float(torch.special.entr(shares).sum())
        margin = 2 * (chance * (1 - chance) / len(labels)) ** 0.5
        if metrics["top1"] > chance + margin or metrics["loss"] < entropy:
            return None
        return f"top1 {metrics['top1']:.1%} is no better than chance ({chance:.1%} for the most frequent class)"

    def _draw_confusion(self, predictions: list[Prediction], path: Path) -> None:
        title = f"{self._recipe.name}: confusion matrix"
        draw_confusion(count_confusion(predictions, self.classes), self.classes, path, title=title)

    def _predictions(self, logits: Tensor, batch: LabelledImages) -> list[tuple[int, Prediction]]:
        """Return the index of each example of a batch and the prediction for it, copied from the device."""
        # A stable sort ranks ties as `Accuracy` does; they are frequent in bf16, and `topk` leaves them undefined.
        places = logits.float().sort(dim=1, descending=True, stable=True).indices[:, :TOP_K]
        shares = logits.float().softmax(dim=1).gather(1, places)
        examples, rows = self._feeds.evaluation_listing.examples, []
        for index, label, best, confidence in zip(
            batch.ids.tolist(), batch.labels.tolist(), places.tolist(), shares.tolist(), strict=True
        ):
            top = tuple((self.classes[place], share) for place, share in zip(best, confidence, strict=True))
            rows.append((index, Prediction(examples.name(index), self.classes[label], top[0][0], top[0][1], top)))
        return rows

    def _build(self, role: Role, classes: int, sizes_px: set[int]) -> nn.Module:
        """Build a role's model for its image size and test it on the other sizes: some models support only one."""
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
        """Three means, then three standard deviations."""
        return [*self._feeds.normalization.mean, *self._feeds.normalization.std]

    def _size_px(self, role: Role) -> int:
        """Return the side of the images that a role's model sees."""
        own = self._recipe.teacher.image_size if role is Role.TEACHER else None
        return own or self._feeds.size_px

    def _normalization_of(self, role: Role, weights: Weights) -> list[float] | None:
        """Return the normalisation that these weights were trained with, or None if it is unknown."""
        if weights.details.get("normalization") is not None:
            return list(weights.details["normalization"])
        section = self._recipe.teacher.normalization if role is Role.TEACHER else None
        return None if section is None else [*section.mean, *section.std]
