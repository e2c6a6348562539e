"""Recipe sections of object detection."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from w2skd.errors import suggest
from w2skd.recipe.data import DataSection
from w2skd.recipe.evaluation import Metric, Output
from w2skd.recipe.schema import Recipe, ReportSection, SoftenedDistillSection, StudentSection, TeacherSection
from w2skd.recipe.section import FilePath, Section

DETECTORS = (
    "retinanet_resnet18",
    "retinanet_resnet34",
    "retinanet_resnet50",
    "retinanet_resnet101",
    "retinanet_mobilenet_v2",
    "retinanet_slim",
    "fasterrcnn_resnet18",
    "fasterrcnn_resnet34",
    "fasterrcnn_resnet50",
    "fasterrcnn_resnet101",
    "fasterrcnn_mobilenet_v2",
    "fasterrcnn_slim",
)
"""Names of the detectors: family, underscore, body. Teacher and student must be of one family."""

SidePx = Annotated[int, Field(ge=32, le=8192)]


class DetectionData(DataSection):
    """Images with boxes, see `DataSection`. Subsets are random; null takes 1,024 and 256 examples of ``shapes``.

    Attributes:
        source: ``coco``, files in COCO's format below `root`, or ``shapes``, which is generated.
        train_images: folder of the training images, below `root`.
        train_annotations: their ``instances_*.json``, below `root`.
        eval_images: folder of the evaluation images, below `root`.
        eval_annotations: their ``instances_*.json``, below `root`.
        min_size: px to which an image's shorter side is resized.
        max_size: maximum of its longer side in px; an image that would exceed it is resized to a smaller size.
        augment: applied per image, in this order: ``crop`` (a random part of at least half of either side), ``scale``
            (resize by a random factor within `scale_range`), ``flip`` (horizontal).
        scale_range: smallest and largest factor of ``scale``.
    """

    source: Literal["coco", "shapes"]
    train_images: str = "train2017"
    train_annotations: str = "annotations/instances_train2017.json"
    eval_images: str = "val2017"
    eval_annotations: str = "annotations/instances_val2017.json"
    min_size: SidePx = 800
    max_size: SidePx = 1333
    augment: Annotated[tuple[Literal["crop", "scale", "flip"], ...], Field(strict=False)] = ("flip",)
    scale_range: Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)] = (0.8, 1.25)

    @model_validator(mode="after")
    def _check(self) -> "DetectionData":
        if self.min_size > self.max_size:
            raise ValueError(f"min_size: {self.min_size} is larger than max_size: {self.max_size}")
        if len(set(self.augment)) < len(self.augment):
            raise ValueError("augment: each kind once")
        if self.scale_range[0] > self.scale_range[1]:
            raise ValueError(f"scale_range: {self.scale_range[0]} is larger than {self.scale_range[1]}")
        return self


def _known_detector(name: str) -> str:
    if name in DETECTORS:
        return name
    raise ValueError(f"unknown model {name!r}{suggest(name, DETECTORS)}; known: {', '.join(DETECTORS)}")


Detector = Annotated[str, AfterValidator(_known_detector)]
"""Name of a detector, one of `DETECTORS`."""


class DetectorTeacher(TeacherSection):
    """The weak teacher.

    Attributes:
        backbone: ImageNet classifier weights that initialise its backbone for training: a w2skd run, a file, or
            ``pretrained`` (``pretrained:TAG``) for torchvision's; null means random initialisation.
    """

    model: Detector
    backbone: FilePath | None = None


class DetectorStudent(StudentSection):
    """The student.

    Attributes:
        backbone: as in `DetectorTeacher`; all arms start from these weights.
    """

    model: Detector
    backbone: FilePath | None = None


class DetectorSection(Section):
    """Settings that teacher and student share.

    Attributes:
        frozen_norm: freeze the statistics and scales of the backbone's batch normalisation, as is common with
            pretrained backbones and small batches. Requires initial weights: in a randomly initialised backbone, frozen
            batch normalisation would normalise nothing.
        anchor_scale: factor of all anchors' sides; 1 is torchvision's setting for COCO at 800 px.
        max_detections: highest-scoring detections kept per image.
    """

    frozen_norm: bool = False
    anchor_scale: PositiveFloat = 1.0
    max_detections: PositiveInt = 100


class DetectionDistill(SoftenedDistillSection):
    """Distillation from the teacher's head outputs, with one relative weight per part; 0 disables a part.

    The temperature applies to the softmax over classes of Faster R-CNN's proposals only; all other outputs are
    sigmoids.

    Attributes:
        class_weight: class scores of anchors (RetinaNet) or of the student's proposals (Faster R-CNN).
        box_weight: box offsets of the same.
        objectness_weight: objectness of the region proposal network (Faster R-CNN).
        rpn_box_weight: box offsets of the region proposal network (Faster R-CNN).
    """

    class_weight: NonNegativeFloat = 1.0
    box_weight: NonNegativeFloat = 1.0
    objectness_weight: NonNegativeFloat = 1.0
    rpn_box_weight: NonNegativeFloat = 1.0


class DetectionEval(Section):
    """Evaluation of detections.

    Attributes:
        backend: scoring package: ``pycocotools``, the reference; ``faster`` for faster-coco-eval; ``auto`` uses
            faster-coco-eval if it is installed.
    """

    backend: Literal["auto", "pycocotools", "faster"] = "auto"


COCO_METRICS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
"""COCO's twelve metrics in its order: average precision over IoU 0.50 to 0.95, at 0.50, at 0.75, and by area (small up
to 32^2 px, large from 96^2 px); average recall with 1, 10 and 100 detections per image and category, and by area."""


class DetectionReport(ReportSection):
    """The experiment's metric, one of `COCO_METRICS`, from 0 to 1."""

    metrics: ClassVar[tuple[Metric, ...]] = tuple(
        Metric(name, higher_is_better=True, is_share=True) for name in COCO_METRICS
    )
    metric: str = "ap50"


class DetectionRecipe(Recipe):
    """An object-detection experiment.

    Two ranks train like one process with twice the ``train.accumulate``. The number of micro-batches per step affects
    training slightly: distillation losses are normalised by the teacher's confidence within a micro-batch, Faster R-CNN
    samples proposals per micro-batch, and images are padded to the largest of their micro-batch. RetinaNet's own losses
    are means over images and do not change.
    """

    outputs: ClassVar[Mapping[str, Output]] = {
        "results": Output("Write all detections in COCO format: .json.", (".json",))
    }
    draws_pictures: ClassVar[bool] = True
    speed_only: ClassVar[tuple[str, ...]] = (*Recipe.speed_only, "eval.backend")
    scoring: ClassVar[tuple[str, ...]] = ("eval",)
    task: Literal["detection"]
    data: DetectionData
    detector: DetectorSection = DetectorSection()
    teacher: DetectorTeacher
    student: DetectorStudent
    distill: DetectionDistill = DetectionDistill()
    eval: DetectionEval = DetectionEval()
    report: DetectionReport = DetectionReport()

    @model_validator(mode="after")
    def _check(self) -> "DetectionRecipe":
        families = [model.partition("_")[0] for model in (self.teacher.model, self.student.model)]
        if families[0] != families[1]:
            raise ValueError(
                f"teacher.model: a {families[0]} cannot teach a {families[1]}: their outputs differ; use one family"
            )
        for where, compiles in (
            ("train", self.train.compile),
            ("teacher", self.teacher.compile),
            ("teacher.train", self.teacher.train.get("compile")),
        ):
            if compiles:
                value = "true" if compiles is True else compiles
                raise ValueError(f"{where}.compile: {value} would recompile for every image size: remove it")
        if self.detector.frozen_norm:
            weights = {"student": self.student.backbone, "teacher": self.teacher.backbone or self.teacher.checkpoint}
            missing = [f"{role}.backbone" for role, source in weights.items() if source is None]
            if missing:
                raise ValueError(
                    f"detector.frozen_norm: true needs initial weights, but {' and '.join(missing)} "
                    f"{'is' if len(missing) == 1 else 'are'} null: give weights there, or remove frozen_norm"
                )
        parts = [self.distill.class_weight, self.distill.box_weight]
        if families[0] == "fasterrcnn":
            parts += [self.distill.objectness_weight, self.distill.rpn_box_weight]
        if self.distill.weight > 0 and not any(parts):
            raise ValueError("distill: the weights of all parts are 0: raise one of them, or set weight: 0")
        return self

    @classmethod
    def task_type(cls) -> type[Any]:
        """See `Recipe.task_type`."""
        from w2skd.tasks.detection.task import DetectionTask

        return DetectionTask
