"""The recipe sections of image classification."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from w2skd.errors import suggest
from w2skd.recipe.names import CLASSIFICATION_METRICS, CLASSIFIERS, TORCHVISION
from w2skd.recipe.schema import FilePath, Recipe, ReportSection, Section, Share, StudentSection, TeacherSection


class ClassificationData(Section):
    """What is learned from.

    Attributes:
        source: ``cifar10`` and ``cifar100`` in torchvision's files under `root`, ``image_folder`` with one folder a
            class under `root`/`train_folder` and `root`/`eval_folder`, or ``shapes``, which is generated.
        download: let torchvision fetch CIFAR if it is not under `root`.
        image_size: side in px to which images are brought (shorter side resized, centre cropped); needed by
            ``image_folder``, chosen freely by ``shapes`` (32), fixed to 32 by CIFAR.
        train_examples: a class-balanced subset of that size; null takes all (``shapes``: 4,096).
        eval_examples: the same for the evaluation set; null takes all (``shapes``: 1,024).
        validation_share: share of the training set to hold out and evaluate on instead of the evaluation set, which
            then stays untouched; null evaluates on the evaluation set.
        split_seed: draws subset and hold-out, whatever the run's seed.
        feed: ``resident`` keeps all images as uint8 on the training device.
        augment: applied per example, in this order: ``crop`` (reflect-pad by an eighth, random crop), ``flip``
            (horizontal), ``cutout`` (a square of half the side, zeroed; DeVries & Taylor 2017).
    """

    source: Literal["cifar10", "cifar100", "image_folder", "shapes"]
    root: FilePath = Path("data")
    download: bool = False
    train_folder: str = "train"
    eval_folder: str = "test"
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    train_examples: PositiveInt | None = None
    eval_examples: PositiveInt | None = None
    validation_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    split_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    feed: Literal["auto", "resident"] = "auto"
    augment: Annotated[tuple[Literal["crop", "flip", "cutout"], ...], Field(strict=False)] = ("crop", "flip")

    @model_validator(mode="after")
    def _check(self) -> "ClassificationData":
        if self.source == "image_folder" and self.image_size is None:
            raise ValueError("source: image_folder needs image_size, the side in px to which its images are brought")
        if self.source.startswith("cifar") and self.image_size not in (None, 32):
            raise ValueError(f"image_size: {self.image_size} does not fit {self.source}, whose images have 32 px")
        if self.download and not self.source.startswith("cifar"):
            raise ValueError(f"download: true is for cifar10 and cifar100, not for {self.source}")
        if len(set(self.augment)) < len(self.augment):
            raise ValueError("augment: each kind once")
        return self


class ClassificationLoss(Section):
    """The task loss, on which alone label smoothing acts: the teacher's distribution stays as it is."""

    label_smoothing: Share = 0.0


def _known_classifier(name: str) -> str:
    if name in CLASSIFIERS or TORCHVISION.fullmatch(name):
        return name
    raise ValueError(
        f"unknown model {name!r}{suggest(name, CLASSIFIERS)}; known: {', '.join(CLASSIFIERS)}, torchvision:<name>"
    )


def _known_metric(name: str) -> str:
    if name in CLASSIFICATION_METRICS:
        return name
    raise ValueError(
        f"unknown metric {name!r}{suggest(name, CLASSIFICATION_METRICS)}; known: {', '.join(CLASSIFICATION_METRICS)}"
    )


Classifier = Annotated[str, AfterValidator(_known_classifier)]


class ClassifierTeacher(TeacherSection):
    """The weaker classifier."""

    model: Classifier


class ClassifierStudent(StudentSection):
    """The classifier to be trained."""

    model: Classifier


class ClassificationReport(ReportSection):
    """What the experiment is measured by: ``top1``, ``top5`` or ``loss`` on the evaluation set."""

    metric: Annotated[str, AfterValidator(_known_metric)] = "top1"

    @model_validator(mode="after")
    def _check(self) -> "ClassificationReport":
        for threshold in self.thresholds:
            if self.metric in ("top1", "top5") and threshold.of == "number" and not 0 <= threshold.share <= 1:
                raise ValueError(f"thresholds: {threshold.name} is out of reach, {self.metric} goes from 0 to 1")
        return self


class ClassificationRecipe(Recipe):
    """An image-classification experiment."""

    task: Literal["classification"]
    data: ClassificationData
    teacher: ClassifierTeacher
    student: ClassifierStudent
    loss: ClassificationLoss = ClassificationLoss()
    report: ClassificationReport = ClassificationReport()
