"""The recipe sections of image classification."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveInt,
    model_validator,
)

from w2skd.models.names import PUBLISHERS, is_classifier, unknown_classifier
from w2skd.recipe.data import ImageDataSection, ImagePreparation, NormalizationSection, ProgressiveSection
from w2skd.recipe.evaluation import Metric, Output
from w2skd.recipe.schema import (
    Recipe,
    ReportSection,
    SoftenedDistillSection,
    StudentSection,
    TeacherSection,
    published_weights,
)
from w2skd.recipe.section import Section, Share

Augmentation = Literal[
    "random_resized_crop", "crop", "flip", "alternating_flip", "trivial_augment", "cutout", "random_erasing"
]
PositiveShare = Annotated[float, Field(gt=0, le=1)]

RESIDENT_AUGMENTATIONS = ("crop", "flip", "alternating_flip", "cutout")
NVJPEG_AUGMENTATIONS = ("random_resized_crop", "flip")

_SMALLEST_SOURCE_PX = 28  # Fashion-MNIST


class ClassificationData(ImageDataSection):
    """Labelled images, see `ImageDataSection`.

    Attributes:
        image_size: side in px of the squares that models see; required for image folders, else the source's own
            (``shapes``: 32).
        eval_resize: shorter side in px to which an evaluation image is resized before its center crop; null is
            `image_size` (the field's 256 for 224 crops a margin away).
        interpolation: of all resizing except that of progressive resolution in a resident feed, which is bilinear.
        normalization: null is the source's own.
        validation_share: share of the training set to hold out and evaluate on instead of the evaluation set, which
            then stays unused; null evaluates on the evaluation set. `split_seed` draws the hold-out, too.
        augment: applied per example, in this order: ``random_resized_crop`` (a part of the image of random share and
            shape; Szegedy et al. 2015) or ``crop`` (reflect-pad by `crop_px`, random crop), ``flip`` (horizontal) or
            ``alternating_flip`` (horizontal: random in the first epoch, then alternating from epoch to epoch; Jordan
            2024), ``trivial_augment`` (Mueller & Hutter 2021), ``cutout`` (a square of half the side, zeroed; DeVries &
            Taylor 2017), ``random_erasing`` (Zhong et al. 2017). A resident feed supports ``crop``, the flips and
            ``cutout``.
        crop_px: largest shift of ``crop`` in px; null is an eighth of the side.
        crop_scale: smallest and largest share of the image's area for ``random_resized_crop``.
        erasing_probability: of ``random_erasing``.
        mixup: alpha of the Beta distribution from which images and labels are mixed (Zhang et al. 2018); 0 is off.
        cutmix: the same for pasted parts (Yun et al. 2019). With both, each batch takes one of them at random.
        repeats: how often a batch contains an example, with new augmentation each time (Hoffer et al. 2020).
        progressive: smaller images early in training; null is off.
        decode: how to decode the JPEG files of an ``image_folder``. ``full`` decodes whole images in the data workers.
            ``reduced`` decodes them at a half, a quarter or an eighth of their size if this keeps at least the
            resolution of the output, which is faster for images larger than about twice the output; pixels differ
            slightly. ``nvjpeg`` decodes, crops and resizes on the GPU; it supports ``random_resized_crop`` and
            ``flip`` only.
    """

    eval_resize: Annotated[int, Field(ge=8, le=8192)] | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    normalization: NormalizationSection | None = None
    validation_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    augment: Annotated[tuple[Augmentation, ...], Field(strict=False)] = ("crop", "flip")
    crop_px: PositiveInt | None = None
    crop_scale: Annotated[tuple[PositiveShare, PositiveShare], Field(strict=False)] = (0.08, 1.0)
    erasing_probability: Share = 0.25
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    repeats: PositiveInt = 1
    progressive: ProgressiveSection | None = None
    decode: Literal["full", "reduced", "nvjpeg"] = "full"

    @model_validator(mode="after")
    def _check(self) -> "ClassificationData":
        if len(set(self.augment)) < len(self.augment):
            raise ValueError("augment: each kind once")
        if {"crop", "random_resized_crop"} <= set(self.augment):
            raise ValueError("augment: crop and random_resized_crop exclude each other")
        if {"flip", "alternating_flip"} <= set(self.augment):
            raise ValueError("augment: flip and alternating_flip exclude each other")
        if self.crop_px is not None:
            self._check_crop(self.crop_px)
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale: {self.crop_scale[0]} is larger than {self.crop_scale[1]}")
        if self.eval_resize is not None and self.eval_resize < (self.image_size or 0):
            raise ValueError(f"eval_resize: {self.eval_resize} is smaller than image_size: {self.image_size}")
        if self.progressive and self.image_size and self.progressive.from_px >= self.image_size:
            raise ValueError(
                f"progressive: from_px: {self.progressive.from_px} is not smaller than image_size: {self.image_size}"
            )
        if self.decode != "full" and self.source != "image_folder":
            raise ValueError(f"decode: {self.decode} is for source: image_folder, not for {self.source}")
        others = [kind for kind in self.augment if kind not in NVJPEG_AUGMENTATIONS]
        if self.decode == "nvjpeg" and others:
            known = " and ".join(NVJPEG_AUGMENTATIONS)
            raise ValueError(
                f"decode: nvjpeg supports {known}, not augment: {', '.join(others)}; set decode: full or reduced"
            )
        if self.feed == "resident" and self.needs_streaming:
            raise ValueError(f"feed: resident cannot do {', '.join(self.needs_streaming)}: streaming can")
        return self

    def _check_crop(self, crop_px: int) -> None:
        if "crop" not in self.augment:
            raise ValueError(f"crop_px: {crop_px} has no effect without crop in augment")
        smallest_px = self.progressive.from_px if self.progressive else self.image_size or _SMALLEST_SOURCE_PX
        if crop_px > smallest_px // 2:
            raise ValueError(f"crop_px: {crop_px} is more than half the side of images of {smallest_px} px")

    @property
    def preparation(self) -> ImagePreparation:
        """How classification prepares these images."""
        return ImagePreparation(**{field.name: getattr(self, field.name) for field in fields(ImagePreparation)})

    @property
    def needs_streaming(self) -> list[str]:
        """Settings of this section that only a streaming feed supports."""
        kinds = [kind for kind in self.augment if kind not in RESIDENT_AUGMENTATIONS]
        margin = ["eval_resize"] if self.eval_resize not in (None, self.image_size) else []
        resizes = self.image_size is not None and self.source != "shapes"
        other = ["interpolation: bilinear"] if self.interpolation != "bicubic" and resizes else []
        decode = [f"decode: {self.decode}"] if self.decode != "full" else []
        return [*kinds, *margin, *other, *decode]


class ClassificationDistill(SoftenedDistillSection):
    """Distillation from the teacher's softened distribution over the classes."""


class ClassificationLoss(Section):
    """The task loss. Label smoothing does not change the teacher's distribution."""

    label_smoothing: Share = 0.0


def _known_classifier(name: str) -> str:
    if is_classifier(name):
        return name
    raise ValueError(unknown_classifier(name))


Classifier = Annotated[str, AfterValidator(_known_classifier)]


class ClassifierTeacher(TeacherSection):
    """The weak classifier.

    Attributes:
        image_size: side in px of the images that the teacher sees during distillation; null is the student's. Smaller
            images make its forward pass cheaper.
        normalization: normalisation that the teacher was trained with, if its checkpoint does not record it.
    """

    model: Classifier
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    normalization: NormalizationSection | None = None

    @model_validator(mode="after")
    def _check(self) -> "ClassifierTeacher":
        published = self.checkpoint is not None and published_weights(self.checkpoint)[0]
        if published and not self.model.startswith(PUBLISHERS):
            known = " or ".join(f"{publisher}<name>" for publisher in PUBLISHERS)
            raise ValueError(f"checkpoint: {self.checkpoint} needs a model {known}, not {self.model}")
        return self


class ClassifierStudent(StudentSection):
    """The classifier to train."""

    model: Classifier


class ClassificationReport(ReportSection):
    """The report's metric: ``top1``, ``top5`` or ``loss`` on the evaluation set."""

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
        """Change the recipe so that published weights are scored in fp32 with their library's preprocessing.

        Args:
            details: metadata of the weights. ``preprocessing`` has ``resize_px``, ``crop_px`` and ``interpolation``;
                ``normalization`` is three means, then three standard deviations.

        Returns:
            The changed recipe and one note per change; the recipe itself and no notes if the
            details contain no ``preprocessing``.
        """
        if "preprocessing" not in details:
            return self, ()
        preprocessing, normalization = details["preprocessing"], details["normalization"]
        resize_px, crop_px = preprocessing["resize_px"], preprocessing["crop_px"]
        data = self.data.model_copy(
            update={
                "image_size": crop_px,
                "eval_resize": resize_px,  # may be smaller than the crop: timm's volo models see black borders
                "interpolation": preprocessing["interpolation"],
                "normalization": NormalizationSection(mean=tuple(normalization[:3]), std=tuple(normalization[3:])),
                "feed": "streaming",
                "progressive": None,
                "decode": "full",
            }
        )
        overrides = {key: value for key, value in self.teacher.train.items() if key != "precision"}
        teacher = self.teacher.model_copy(update={"image_size": None, "train": overrides})
        train = self.train.model_copy(update={"precision": "fp32"})
        crop = f"center crop of {crop_px} px" if crop_px != resize_px else "center crop"
        resize = f"resize of the shorter side to {resize_px} px ({preprocessing['interpolation']})"
        notes = [f"preprocessing of its library: {resize}, {crop}; in fp32"]
        if preprocessing.get("crop_mode") == "squash":
            notes.append("its library squashes whole images to a square; a center crop is used here, so scores differ")
        return self.model_copy(update={"data": data, "teacher": teacher, "train": train}), tuple(notes)
