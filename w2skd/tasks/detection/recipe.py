"""The recipe sections of object detection."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from w2skd.errors import suggest
from w2skd.recipe.evaluation import Metric, Output
from w2skd.recipe.schema import (
    FilePath,
    Recipe,
    ReportSection,
    Section,
    SoftenedDistillSection,
    StudentSection,
    TeacherSection,
)

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
"""Family, underscore, body; detectors of one family can teach one another."""

SidePx = Annotated[int, Field(ge=32, le=8192)]


class DetectionData(Section):
    """What is learned from.

    Attributes:
        source: ``coco``, files in COCO's format below `root`, or ``shapes``, which is generated.
        train_images: folder of the training images, below `root`.
        train_annotations: their ``instances_*.json``, below `root`.
        eval_images: folder of the evaluation images, below `root`.
        eval_annotations: their ``instances_*.json``, below `root`.
        min_size: px to which an image's shorter side is brought.
        max_size: px that its longer side may have then; where it would have more, the image becomes smaller.
        train_examples: a random subset of that size; null takes all (``shapes``: 1,024).
        eval_examples: the same for the evaluation set; null takes all (``shapes``: 256).
        split_seed: draws the subsets, whatever the run's seed.
        workers: reading processes of a rank; null is its share of the cores, at most 8; 0 reads between the steps.
        worker_timeout_s: how long a batch may take them.
        augment: applied per image, in this order: ``crop`` (a random part of at least half of either side), ``scale``
            (its sizes by a random factor out of `scale_range`), ``flip`` (horizontal).
        scale_range: smallest and largest factor of ``scale``.
    """

    source: Literal["coco", "shapes"]
    root: FilePath = Path("data")
    train_images: str = "train2017"
    train_annotations: str = "annotations/instances_train2017.json"
    eval_images: str = "val2017"
    eval_annotations: str = "annotations/instances_val2017.json"
    min_size: SidePx = 800
    max_size: SidePx = 1333
    train_examples: PositiveInt | None = None
    eval_examples: PositiveInt | None = None
    split_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    workers: NonNegativeInt | None = None
    worker_timeout_s: PositiveFloat = 300.0
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
"""A detector's name. Its family, before the first underscore, is what teacher and student must share."""


class DetectorTeacher(TeacherSection):
    """The weaker detector.

    Attributes:
        backbone: weights of an ImageNet classifier from which its own training starts: a run of w2skd, a file, or
            ``pretrained`` (``pretrained:TAG``) for torchvision's; null starts afresh.
    """

    model: Detector
    backbone: FilePath | None = None


class DetectorStudent(StudentSection):
    """The detector to be trained.

    Attributes:
        backbone: as in `DetectorTeacher`; both arms start from it.
    """

    model: Detector
    backbone: FilePath | None = None


class DetectorSection(Section):
    """What teacher and student have in common.

    Attributes:
        frozen_norm: batch normalisation of the backbone keeps the statistics and scales it starts with, as the field
            does with pretrained backbones and small batches. So there must be weights to start with: a fresh backbone
            would have no normalisation at all.
        anchor_scale: factor of all anchors' sides, 1 being those that torchvision made for COCO at 800 px.
        max_detections: of one image, the best by score.
    """

    frozen_norm: bool = False
    anchor_scale: PositiveFloat = 1.0
    max_detections: PositiveInt = 100


class DetectionDistill(SoftenedDistillSection):
    """How the teacher's final outputs help; each part's weight beside the others, 0 leaves it out.

    The temperature softens the class scores of Faster R-CNN's proposals; all other scores are sigmoids, taken as they
    are.

    Attributes:
        class_weight: class scores, of anchors (RetinaNet) or of the student's proposals (Faster R-CNN).
        box_weight: box offsets, of the same.
        objectness_weight: objectness of the region proposal network (Faster R-CNN).
        rpn_box_weight: its box offsets.
    """

    class_weight: NonNegativeFloat = 1.0
    box_weight: NonNegativeFloat = 1.0
    objectness_weight: NonNegativeFloat = 1.0
    rpn_box_weight: NonNegativeFloat = 1.0


class DetectionEval(Section):
    """How detections are scored.

    Attributes:
        backend: ``pycocotools``, the reference; ``faster``, faster-coco-eval; ``auto`` takes the faster where it is
            installed.
    """

    backend: Literal["auto", "pycocotools", "faster"] = "auto"


class DetectionReport(ReportSection):
    """What the experiment is measured by: ``ap``, ``ap50``, ... as COCO defines them, as shares from 0 to 1."""

    metrics: ClassVar[tuple[Metric, ...]] = tuple(
        Metric(name, higher_is_better=True, is_share=True)
        for name in (
            *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
            *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
        )
    )
    metric: str = "ap50"


class DetectionRecipe(Recipe):
    """An object-detection experiment.

    Two ranks learn what one process learns with twice the ``train.accumulate``. Another number of slices changes the
    learning a little: distillation is divided by the teacher's confidence in a slice, Faster R-CNN draws its samples
    slice by slice, and images are padded to the largest of theirs. RetinaNet's own losses are means over images, and
    stay.
    """

    outputs: ClassVar[Mapping[str, Output]] = {
        "results": Output("Write all detections in COCO's format: .json.", (".json",))
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
            raise ValueError(f"teacher.model: a {families[0]} cannot teach a {families[1]}: their outputs do not match")
        for where, section in (("train", self.train.model_dump()), ("teacher.train", self.teacher.train)):
            if section.get("compile"):
                raise ValueError(f"{where}.compile: true would compile anew for every size of images: leave it out")
        if self.detector.frozen_norm:
            starts = {"student": self.student.backbone, "teacher": self.teacher.backbone or self.teacher.checkpoint}
            fresh = [f"{role}.backbone" for role, start in starts.items() if start is None]
            if fresh:
                raise ValueError(
                    f"detector.frozen_norm: true keeps what a backbone starts with, but {' and '.join(fresh)} "
                    f"{'is' if len(fresh) == 1 else 'are'} null: name weights there, or leave frozen_norm out"
                )
        parts = [self.distill.class_weight, self.distill.box_weight]
        if families[0] == "fasterrcnn":
            parts += [self.distill.objectness_weight, self.distill.rpn_box_weight]
        if self.distill.weight > 0 and not any(parts):
            raise ValueError("distill: the teacher's parts all have weight 0: give one of them more, or weight: 0")
        return self

    @classmethod
    def task_type(cls) -> type[Any]:
        """See `Recipe.task_type`."""
        from w2skd.tasks.detection.task import DetectionTask

        return DetectionTask
