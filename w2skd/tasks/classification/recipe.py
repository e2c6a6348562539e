"""The recipe sections of image classification."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from w2skd.models.names import PUBLISHERS, is_classifier, unknown_classifier
from w2skd.recipe.duration import Duration
from w2skd.recipe.evaluation import Metric, Output
from w2skd.recipe.schema import (
    FilePath,
    Recipe,
    ReportSection,
    Section,
    Share,
    SoftenedDistillSection,
    StudentSection,
    TeacherSection,
    published_weights,
)

Augmentation = Literal["random_resized_crop", "crop", "flip", "trivial_augment", "cutout", "random_erasing"]
PositiveShare = Annotated[float, Field(gt=0, le=1)]

RESIDENT_AUGMENTATIONS = ("crop", "flip", "cutout")
DOWNLOADABLE = ("cifar10", "cifar100", "fashion_mnist")


class NormalizationSection(Section):
    """Mean and standard deviation per colour (red, green, blue) of pixels scaled to [0, 1]."""

    mean: Annotated[tuple[Share, Share, Share], Field(strict=False)]
    std: Annotated[tuple[PositiveFloat, PositiveFloat, PositiveFloat], Field(strict=False)]


class ProgressiveSection(Section):
    """Smaller images early in training, in teacher-less and distilled runs alike (Touvron et al. 2019; Tan & Le 2021).

    Attributes:
        from_px: side at the first step; it grows linearly to ``data.image_size``.
        until: when it is there.
        multiple_px: sides are rounded down to a multiple of it, so that few sizes occur.
    """

    from_px: Annotated[int, Field(ge=8, le=4096)]
    until: Duration = Duration(0.5, "run")
    multiple_px: PositiveInt = 32


class ClassificationData(Section):
    """What is learned from.

    Attributes:
        source: ``cifar10``, ``cifar100`` and ``fashion_mnist`` in torchvision's files under `root`, ``image_folder``
            with one folder a class under `root`/`train_folder` and `root`/`eval_folder`, or ``shapes``, which is
            generated.
        download: let torchvision fetch CIFAR or Fashion-MNIST if it is not under `root`.
        image_size: side in px of the squares that models see; needed by ``image_folder``, else the source's own
            (``shapes``: 32).
        eval_resize: shorter side in px to which an evaluation image is brought before its centre is taken; null is
            `image_size`, the field's 256 for 224 leaves a margin away.
        interpolation: of all resizing, but for that of growing images in a resident feed, which is bilinear.
        normalization: null is the source's own.
        train_examples: a class-balanced subset of that size; null takes all (``shapes``: 4,096).
        eval_examples: the same for the evaluation set; null takes all (``shapes``: 1,024).
        validation_share: share of the training set to hold out and evaluate on instead of the evaluation set, which
            then stays untouched; null evaluates on the evaluation set.
        split_seed: draws subset and hold-out, whatever the run's seed.
        feed: ``resident`` keeps all images as uint8 on the training device, ``streaming`` reads them when they are
            needed, in `workers` processes; ``auto`` is resident where the augmentation allows it and the images take
            at most a quarter of the device's memory.
        workers: a rank's reading processes of a streaming feed; null is its share of the cores, at most 8; 0 reads
            between the steps.
        worker_timeout_s: how long a batch may take them.
        augment: applied per example, in this order: ``random_resized_crop`` (a part of the image of random share and
            shape; Szegedy et al. 2015) or ``crop`` (reflect-pad by an eighth, random crop), ``flip`` (horizontal),
            ``trivial_augment`` (Mueller & Hutter 2021), ``cutout`` (a square of half the side, zeroed; DeVries & Taylor
            2017), ``random_erasing`` (Zhong et al. 2017). A resident feed knows ``crop``, ``flip`` and ``cutout``.
        crop_scale: smallest and largest share of the image's area for ``random_resized_crop``.
        erasing_probability: of ``random_erasing``.
        mixup: alpha of the Beta distribution from which images and labels are mixed (Zhang et al. 2018); 0 is off.
        cutmix: the same for pasted parts (Yun et al. 2019). With both, each batch takes one of them at random.
        repeats: how often a batch shows an example, each time augmented anew (Hoffer et al. 2020).
        progressive: smaller images early on; null is off.
    """

    source: Literal["cifar10", "cifar100", "fashion_mnist", "image_folder", "shapes"]
    root: FilePath = Path("data")
    download: bool = False
    train_folder: str = "train"
    eval_folder: str = "test"
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    eval_resize: Annotated[int, Field(ge=8, le=8192)] | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    normalization: NormalizationSection | None = None
    train_examples: PositiveInt | None = None
    eval_examples: PositiveInt | None = None
    validation_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    split_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    feed: Literal["auto", "resident", "streaming"] = "auto"
    workers: NonNegativeInt | None = None
    worker_timeout_s: PositiveFloat = 300.0
    augment: Annotated[tuple[Augmentation, ...], Field(strict=False)] = ("crop", "flip")
    crop_scale: Annotated[tuple[PositiveShare, PositiveShare], Field(strict=False)] = (0.08, 1.0)
    erasing_probability: Share = 0.25
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    repeats: PositiveInt = 1
    progressive: ProgressiveSection | None = None

    @model_validator(mode="after")
    def _check(self) -> "ClassificationData":
        if self.source == "image_folder" and self.image_size is None:
            raise ValueError("source: image_folder needs image_size, the side in px to which its images are brought")
        if self.download and self.source not in DOWNLOADABLE:
            raise ValueError(f"download: true is for {', '.join(DOWNLOADABLE)}, not for {self.source}")
        if len(set(self.augment)) < len(self.augment):
            raise ValueError("augment: each kind once")
        if {"crop", "random_resized_crop"} <= set(self.augment):
            raise ValueError("augment: crop and random_resized_crop exclude each other")
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale: {self.crop_scale[0]} is larger than {self.crop_scale[1]}")
        if self.eval_resize is not None and self.eval_resize < (self.image_size or 0):
            raise ValueError(f"eval_resize: {self.eval_resize} is smaller than image_size: {self.image_size}")
        if self.progressive and self.image_size and self.progressive.from_px >= self.image_size:
            raise ValueError(
                f"progressive: from_px: {self.progressive.from_px} is not smaller than image_size: {self.image_size}"
            )
        if self.feed == "resident" and self.needs_streaming:
            raise ValueError(f"feed: resident cannot do {', '.join(self.needs_streaming)}: streaming can")
        return self

    @property
    def needs_streaming(self) -> list[str]:
        """What this section asks for that only a streaming feed can do."""
        kinds = [kind for kind in self.augment if kind not in RESIDENT_AUGMENTATIONS]
        margin = ["eval_resize"] if self.eval_resize not in (None, self.image_size) else []
        resizes = self.image_size is not None and self.source != "shapes"
        other = ["interpolation: bilinear"] if self.interpolation != "bicubic" and resizes else []
        return [*kinds, *margin, *other]


class ClassificationDistill(SoftenedDistillSection):
    """How the teacher's softened distribution over the classes helps."""


class ClassificationLoss(Section):
    """The task loss, on which alone label smoothing acts: the teacher's distribution stays as it is."""

    label_smoothing: Share = 0.0


def _known_classifier(name: str) -> str:
    if is_classifier(name):
        return name
    raise ValueError(unknown_classifier(name))


Classifier = Annotated[str, AfterValidator(_known_classifier)]


class ClassifierTeacher(TeacherSection):
    """The weaker classifier.

    Attributes:
        image_size: side in px of the images that the teacher sees while it teaches; null is the student's. Smaller
            ones make its forward cheaper.
        normalization: by which its images were normalised, where its checkpoint does not say.
    """

    model: Classifier
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    normalization: NormalizationSection | None = None

    @model_validator(mode="after")
    def _check(self) -> "ClassifierTeacher":
        published = self.checkpoint is not None and published_weights(self.checkpoint)[0]
        if published and not self.model.startswith(PUBLISHERS):
            known = " and ".join(f"{publisher}<name>" for publisher in PUBLISHERS)
            raise ValueError(f"checkpoint: {self.checkpoint} is for models {known}, not for {self.model}")
        return self


class ClassifierStudent(StudentSection):
    """The classifier to be trained."""

    model: Classifier


class ClassificationReport(ReportSection):
    """What the experiment is measured by: ``top1``, ``top5`` or ``loss`` on the evaluation set."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("top1", higher_is_better=True, is_share=True),
        Metric("top5", higher_is_better=True, is_share=True),
        Metric("loss", higher_is_better=False),
    )
    metric: str = "top1"


class ClassificationRecipe(Recipe):
    """An image-classification experiment."""

    outputs: ClassVar[Mapping[str, Output]] = {
        "predictions": Output("Write the prediction for each example: .csv or .jsonl.", (".csv", ".jsonl", ".json")),
        "confusion": Output("Draw the confusion matrix: .png.", (".png",)),
    }
    task: Literal["classification"]
    data: ClassificationData
    teacher: ClassifierTeacher
    student: ClassifierStudent
    loss: ClassificationLoss = ClassificationLoss()
    distill: ClassificationDistill = ClassificationDistill()
    report: ClassificationReport = ClassificationReport()

    @classmethod
    def task_type(cls) -> type[Any]:
        """See `Recipe.task_type`."""
        from w2skd.tasks.classification.task import ClassificationTask

        return ClassificationTask

    def prepared_as(self, details: Mapping[str, Any]) -> tuple[Self, tuple[str, ...]]:
        """Score published weights in fp32 on images prepared as their library prepares them.

        Args:
            details: of the weights; without ``preprocessing`` the recipe stays as it is. That is ``resize_px``,
                ``crop_px`` and ``interpolation``; ``normalization`` is three means, then three deviations.
        """
        if "preprocessing" not in details:
            return self, ()
        preprocessing, normalization = details["preprocessing"], details["normalization"]
        resize_px, crop_px = preprocessing["resize_px"], preprocessing["crop_px"]
        values = {
            "image_size": crop_px,
            "eval_resize": resize_px,  # may be smaller: timm's volo models see black edges
            "interpolation": preprocessing["interpolation"],
            "normalization": NormalizationSection.model_validate({"mean": normalization[:3], "std": normalization[3:]}),
            "feed": "streaming",
            "progressive": None,
        }
        cut = f", their middle {crop_px} px taken" if crop_px != resize_px else ", their middle taken"
        how = f"shorter side to {resize_px} px ({preprocessing['interpolation']}){cut}; in fp32"
        account = [f"images as its library prepares them: {how}"]
        if preprocessing.get("crop_mode") == "squash":
            account.append(
                "its library squashes whole images to a square, here their middle is taken: expect other scores"
            )
        train = self.train.model_copy(update={"precision": "fp32"})
        own = {key: value for key, value in self.teacher.train.items() if key != "precision"}
        teacher = self.teacher.model_copy(update={"image_size": None, "train": own})
        data = self.data.model_copy(update=values)
        return self.model_copy(update={"data": data, "teacher": teacher, "train": train}), tuple(account)
