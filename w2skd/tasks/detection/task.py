"""Object detection: each architecture's own losses, and distillation from the teacher's head outputs."""

from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from w2skd.data.identity import DataIdentity
from w2skd.data.normalize import to_bytes
from w2skd.data.order import BatchOrder
from w2skd.data.parts import filled
from w2skd.data.streaming import StreamingFeed, stream_once
from w2skd.data.workers import Workers
from w2skd.errors import CheckpointError
from w2skd.method.grow import Growth
from w2skd.method.teacher import FrozenTeacher
from w2skd.platform.ranks import Ranks
from w2skd.recipe.train import TrainSection
from w2skd.tasks.base import Evaluation, FittedModel, Losses, Preview, Role
from w2skd.tasks.detection.batch import ImagesWithBoxes
from w2skd.tasks.detection.box_fit import describe_boxes
from w2skd.tasks.detection.box_pictures import BoxedImage, draw_boxes
from w2skd.tasks.detection.coco_scores import CocoScorer, choose_backend
from w2skd.tasks.detection.feed import DeliverBoxes, PaddedImages, ReadBoxes, parts_of_one_shape
from w2skd.tasks.detection.growth import grow_detector
from w2skd.tasks.detection.listing import CocoListing
from w2skd.tasks.detection.losses import dense_distillation, proposal_distillation
from w2skd.tasks.detection.models.anchors import AnchorGrid
from w2skd.tasks.detection.models.catalog import (
    Detector,
    backbone_classifier,
    build_detector,
    check_same_grid,
    grid_of,
    load_backbone,
)
from w2skd.tasks.detection.models.faster_rcnn import FasterRCNN
from w2skd.tasks.detection.models.output import Detections, DetectorOutput
from w2skd.tasks.detection.models.retinanet import RetinaNet
from w2skd.tasks.detection.recipe import DetectionRecipe, DetectorStudent, DetectorTeacher
from w2skd.tasks.detection.sources import identify_detection_data, list_detection_data
from w2skd.tasks.detection.transforms import DetectionTransform
from w2skd.weights.fit import fit
from w2skd.weights.load import Weights, check_finite, load_into
from w2skd.weights.pretrained import open_weights

_SMALLEST_CROP = 0.5
"""Minimum share of each side that a random crop keeps."""

_EVALUATION_BATCH = 8
"""Maximum number of images per forward pass."""


_CHANCE_AP50 = 0.005
"""AP50 that a detector reaches by chance: an untrained one scores about 0.001 or less."""


class DetectionTask:
    """Object detection, see `w2skd.tasks.base.Task`.

    Args:
        recipe: the experiment.
        train: training section of this run (the teacher's differs from the student's).
        seed: of data order and augmentation.
        device: device of the batches.
        ranks: this process among its peers.

    Raises:
        DataError: the annotations are damaged or inconsistent, or images are missing.
        UsageError: the scoring package is not installed.
    """

    def __init__(self, recipe: DetectionRecipe, *, train: TrainSection, seed: int, device: torch.device, ranks: Ranks):
        self.metric = recipe.metric
        self._recipe = recipe
        self._train = train
        self._seed = seed
        self._device = device
        self._ranks = ranks
        choose_backend(recipe.eval.backend)
        self._listing = list_detection_data(recipe.data)
        self._deliver = DeliverBoxes(self._listing.normalization, device, train.channels_last)
        data = recipe.data
        self._workers = Workers.of(data.workers, data.worker_timeout_s)
        self._transform = DetectionTransform(
            data.min_size,
            data.max_size,
            flip="flip" in data.augment,
            jitter=data.scale_range if "scale" in data.augment else (1.0, 1.0),
            crop=(_SMALLEST_CROP, 1.0) if "crop" in data.augment else None,
        )

    open_weights = staticmethod(open_weights)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per pass over the training set."""
        return self._feed.steps_per_epoch

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the categories in label order."""
        return self._listing.train.categories

    def describe_data(self) -> dict[str, Any]:
        """Return fingerprints, sizes and box statistics of the data for the run's records."""
        train, evaluation = self._listing.train, self._listing.evaluation
        return {
            "data_fingerprint": f"{train.fingerprint()[:16]}/{evaluation.fingerprint()[:16]}",
            "train_examples": len(train),
            "eval_examples": len(evaluation),
            "data_account": [
                *(f"{listing.name}: {line}" for listing in (train, evaluation) for line in listing.notes),
                *self._listing.notes,
                *describe_boxes(train, self._transform.plain, self._grid),
            ],
        }

    def identify_data(self) -> DataIdentity:
        """Identify images and boxes of both sets."""
        return identify_detection_data(self._recipe.data)

    def describe_model(self) -> dict[str, list[Any]]:
        """Return the categories in label order, and mean and standard deviation of the normalisation."""
        normalization = self._listing.normalization
        return {"classes": list(self.classes), "normalization": [*normalization.mean, *normalization.std]}

    def build_model(self, role: Role) -> nn.Module:
        """Build the recipe's detector of that role, with its initial backbone weights if the recipe names any.

        Raises:
            CheckpointError: these weights are missing, damaged, or of another architecture.
        """
        section: DetectorTeacher | DetectorStudent = (
            self._recipe.teacher if role is Role.TEACHER else self._recipe.student
        )
        detector = self._build(section.model, self._recipe.detector.anchor_scale)
        if section.backbone is not None:
            weights = open_weights(section.backbone, backbone_classifier(section.model) or section.model)
            check_finite(weights.path, weights.state, {})
            try:
                load_backbone(detector, section.model, weights.state)
            except CheckpointError as error:
                raise CheckpointError(f"{weights.path}: {error}") from None
        return detector

    def initialize_model(self, model: nn.Module) -> None:
        """Do nothing: the initial weights of detectors do not depend on the data."""

    def fit_model(self, role: Role, weights: Weights) -> FittedModel:
        """Build the recipe's detector of that role with these weights.

        It keeps the anchors that it was trained with, if the checkpoint has a recipe.

        Raises:
            RecipeError: a teacher's anchors differ from the student's.
            CheckpointError: the weights are of another architecture, or their categories or normalisation are not
                those of the data.
        """
        name = self._recipe.model_of(role)
        notes = []
        theirs = weights.details.get("classes")
        if theirs is None:
            notes.append(
                f"{weights.path.name} does not name its categories: assuming those of the data in the same order"
            )
        elif list(theirs) != list(self.classes):
            raise CheckpointError(f"{weights.path}: {self._label_difference(list(theirs))}")
        normalization = weights.details.get("normalization")
        if normalization not in (None, self.describe_model()["normalization"]):
            raise CheckpointError(f"{weights.path}: trained with another image normalisation than that of the data")
        anchor_scale = self._recipe.detector.anchor_scale
        known = (weights.recipe or {}).get("detector", {}).get("anchor_scale", anchor_scale)
        if known != anchor_scale:
            anchor_scale = known
            notes.append(f"keeping the anchors it was trained with (anchor_scale {anchor_scale:g})")
        detector = self._build(name, anchor_scale)
        count = _categories_in(detector, weights)
        if count not in (None, len(self.classes)):
            raise CheckpointError(f"{weights.path}: it has {count} categories, the data {len(self.classes)}")
        notes += load_into(detector, weights, expected=name)
        if role is Role.TEACHER:
            with torch.device("meta"):
                student = self._build(self._recipe.student.model, self._recipe.detector.anchor_scale)
            check_same_grid(student, detector)
        return FittedModel(detector, tuple(notes))

    def grow(self, student: nn.Module, teacher: nn.Module, generator: torch.Generator) -> Growth:
        """Grow a detector with a deeper body; see `grow_detector`."""
        assert isinstance(student, RetinaNet | FasterRCNN), type(student)
        assert isinstance(teacher, RetinaNet | FasterRCNN), type(teacher)
        return grow_detector(student, teacher, generator)

    def example_batch(self) -> ImagesWithBoxes:
        """Return one training image."""
        return self._feed.example()

    def preview(self) -> Preview:
        """Return the first training batch, augmented but not normalised, with the number of boxes per image."""
        batch = next(self.train_batches(0))
        captions = [f"{len(target)} box{'es' if len(target) != 1 else ''}" for target in batch.targets]
        return Preview(to_bytes(batch.images, self._listing.normalization), tuple(captions))

    def train_batches(self, first_step: int) -> Iterator[ImagesWithBoxes]:
        """Iterate over the augmented micro-batches of this rank."""
        return self._feed.micro_batches(first_step, self._ranks, self._train.accumulate)

    def losses(self, student: nn.Module, teacher: FrozenTeacher | None, batch: ImagesWithBoxes) -> Losses:
        """Compute the architecture's own losses and, with a teacher, distillation losses on the same pixels."""
        output: DetectorOutput = student(batch.images, batch.sizes, batch.targets)
        if teacher is None:
            return Losses(output.losses, {})
        # A two-stage teacher evaluates the student's proposals.
        target: DetectorOutput = teacher(batch.images, batch.sizes, None, output.heads.get("proposals"), False)
        return Losses(output.losses, self._distill_losses(output.heads, target.heads, batch.step))

    def evaluate(self, model: nn.Module, *, with_predictions: bool = False) -> Evaluation:
        """Compute COCO's twelve metrics on the evaluation set, and a table of categories."""
        listing = self._listing.evaluation
        scorer = CocoScorer(self._ground_truth, listing.category_ids, listing.image_ids)
        parts = self._ranks.share(parts_of_one_shape(listing.sizes, self._transform.plain, _EVALUATION_BATCH))
        batches = stream_once(
            self._read(listing).plain, self._deliver, [part.ids for part in parts], workers=self._workers
        )
        for part, batch in zip(parts, batches, strict=True):
            sizes = (*batch.sizes, *batch.sizes[-1:] * (part.size - len(batch)))
            found: list[Detections] = model(filled(batch.images, part.size), sizes).detections
            scorer.add(batch.ids, found[: len(batch)], batch.scales)
        scorer.merge(self._ranks)
        result = self._ranks.on_main(partial(scorer.result, self._recipe.eval.backend))
        files = {"results": scorer.write_results} if with_predictions else {}
        return Evaluation(
            result.numbers,
            {"classes": result.classes},
            notes=(f"scored by {result.backend}", *result.notes),
            files=files,
            pictures=partial(self._draw, model) if with_predictions else None,
        )

    def doubt(self, metrics: Mapping[str, float]) -> str | None:
        """Compare AP50 with `_CHANCE_AP50`."""
        if metrics["ap50"] > _CHANCE_AP50:
            return None
        return f"ap50 {metrics['ap50']:.2%} is no better than chance: it finds next to nothing"

    def _draw(self, model: nn.Module, folder: Path, count: int) -> list[Path]:
        """Draw the first evaluation images with predicted and ground-truth boxes."""
        listing = self._listing.evaluation
        chosen = listing.select(torch.arange(min(count, len(listing))))
        paths = []
        for index, batch in enumerate(
            stream_once(self._read(chosen).plain, self._deliver, [[i] for i in range(len(chosen))])
        ):
            with torch.inference_mode():
                (found,) = model(batch.images, batch.sizes).detections
            height, width = batch.sizes[0]
            image = to_bytes(batch.images[0, :, :height, :width], self._listing.normalization)
            truth, name = batch.targets[0], chosen.examples.name(index)
            path = folder / f"{index + 1:03d}_{Path(name).stem}.png"  # names may repeat across folders
            boxed = BoxedImage(image, found, (truth.boxes, truth.labels), name)
            draw_boxes([boxed], path, classes=self.classes, title=self._recipe.name)
            paths.append(path)
        return paths

    def _distill_losses(self, student: dict[str, Any], teacher: dict[str, Any], step: int) -> dict[str, torch.Tensor]:
        """Compute the parts of the distillation loss times their weights, without those of weight 0."""
        section = self._recipe.distill
        if "objectness" in student:
            total_steps = self._train.total_steps(self.steps_per_epoch)
            temperature = section.temperature_at(step, self.steps_per_epoch, total_steps)
            parts = proposal_distillation(student, teacher, temperature=temperature)
        else:
            parts = dense_distillation(
                student["class_logits"], teacher["class_logits"], student["box_deltas"], teacher["box_deltas"]
            )
        weights = {
            "class": section.class_weight,
            "box": section.box_weight,
            "objectness": section.objectness_weight,
            "rpn_box": section.rpn_box_weight,
        }
        return {name: weights[name] * value for name, value in parts.items() if weights[name] > 0}

    @cached_property
    def _feed(self) -> StreamingFeed[PaddedImages, ImagesWithBoxes]:
        listing = self._listing.train
        order = BatchOrder(len(listing), self._train.batch_size, seed=self._seed)
        return StreamingFeed(order, self._read(listing), self._deliver, self._workers)

    def _read(self, listing: CocoListing) -> ReadBoxes:
        return ReadBoxes(listing.examples, listing.table, self._transform, self._seed)

    @cached_property
    def _ground_truth(self) -> dict[str, Any]:
        return self._listing.evaluation.ground_truth()

    @property
    def _grid(self) -> AnchorGrid:
        """The student's anchors."""
        return grid_of(self._recipe.student.model, self._recipe.detector.anchor_scale)

    def _build(self, name: str, anchor_scale: float) -> Detector:
        section = self._recipe.detector
        return build_detector(
            name,
            len(self.classes),
            frozen_norm=section.frozen_norm,
            anchor_scale=anchor_scale,
            max_detections=section.max_detections,
        )

    def _label_difference(self, theirs: list[str]) -> str:
        if len(theirs) != len(self.classes):
            return f"it has {len(theirs)} categories, the data {len(self.classes)}"
        place, pair = next(
            (place, pair) for place, pair in enumerate(zip(theirs, self.classes, strict=True)) if len(set(pair)) > 1
        )
        return f"its label map differs from the data's: category {place + 1} is '{pair[0]}', in the data '{pair[1]}'"


def _categories_in(detector: Detector, weights: Weights) -> int | None:
    """Return the number of categories from the shape of the last layer; None for weights of another family."""
    state = fit(detector, weights.state).state
    if isinstance(detector, RetinaNet):
        scores = state.get("head.classification_head.cls_logits.bias")
        return None if scores is None else len(scores) // detector.anchor_generator.num_anchors_per_location()[0]
    scores = state.get("roi_heads.box_predictor.cls_score.bias")
    return None if scores is None else len(scores) - 1
