"""Recipe sections of data that several tasks share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from w2skd.recipe.duration import Duration
from w2skd.recipe.section import FilePath, Section, Share

DOWNLOADABLE = ("cifar10", "cifar100", "fashion_mnist")
"""Sources that torchvision can download."""


class NormalizationSection(Section):
    """Mean and standard deviation per colour (red, green, blue) of pixels scaled to [0, 1]."""

    mean: Annotated[tuple[Share, Share, Share], Field(strict=False)]
    std: Annotated[tuple[PositiveFloat, PositiveFloat, PositiveFloat], Field(strict=False)]


class ProgressiveSection(Section):
    """Smaller images early in training, in teacher-less and distilled runs alike (Touvron et al. 2019; Tan & Le 2021).

    Attributes:
        from_px: side at the first step; it grows linearly to ``data.image_size``.
        until: when the side reaches ``data.image_size``.
        multiple_px: sides are rounded down to a multiple of this, which limits the number of different sizes.
    """

    from_px: Annotated[int, Field(ge=8, le=4096)]
    until: Duration = Duration(0.5, "run")
    multiple_px: PositiveInt = 32


class DataSection(Section):
    """Training and evaluation examples of any task.

    Attributes:
        source: name of the data set or of its file format.
        root: folder of the data set.
        train_examples: size of a subset of the training set; null takes the whole set.
        eval_examples: size of a subset of the evaluation set; null takes the whole set.
        split_seed: seed of the subsets, independent of the run's seed.
        workers: data workers per rank; null is the rank's share of the cores, at most 8; 0 reads in the main process.
        worker_timeout_s: maximum time to wait for a batch from the workers.
    """

    source: str
    root: FilePath = Path("data")
    train_examples: PositiveInt | None = None
    eval_examples: PositiveInt | None = None
    split_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    workers: NonNegativeInt | None = None
    worker_timeout_s: PositiveFloat = 300.0


@dataclass(frozen=True)
class ImagePreparation:
    """How a task prepares its images; the keys of `ClassificationData` document the values.

    The defaults are the behaviour of tasks without such keys.
    """

    augment: tuple[str, ...] = ()
    crop_px: int | None = None
    crop_scale: tuple[float, float] = (0.08, 1.0)
    erasing_probability: float = 0.25
    repeats: int = 1
    progressive: ProgressiveSection | None = None
    eval_resize: int | None = None
    interpolation: str = "bicubic"
    normalization: NormalizationSection | None = None
    validation_share: float | None = None
    decode: str = "full"
    needs_streaming: Sequence[str] = ()


class ImageDataSection(DataSection):
    """Labelled images. Subsets are class-balanced; null takes 4,096 and 1,024 examples of ``shapes``.

    Attributes:
        source: ``cifar10``, ``cifar100`` and ``fashion_mnist`` in torchvision's files under `root`, ``image_folder``
            with one folder per class under `root`/`train_folder` and `root`/`eval_folder`, ``packed``, written to
            `root` by ``w2skd pack``, or ``shapes``, which is generated.
        download: let torchvision download CIFAR or Fashion-MNIST if it is not under `root`.
        train_folder: folder of the training images, below `root`.
        eval_folder: folder of the evaluation images, below `root`.
        feed: ``resident`` keeps all images as uint8 on the training device, ``streaming`` reads each batch in data
            workers; ``auto`` is resident if the augmentation allows it and the images take at most a quarter of the
            device's memory.
    """

    source: Literal["cifar10", "cifar100", "fashion_mnist", "image_folder", "packed", "shapes"]
    download: bool = False
    train_folder: str = "train"
    eval_folder: str = "test"
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    feed: Literal["auto", "resident", "streaming"] = "auto"

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.source in ("image_folder", "packed") and self.image_size is None:
            raise ValueError(f"source: {self.source} needs image_size, the side in px of its resized images")
        if self.download and self.source not in DOWNLOADABLE:
            raise ValueError(f"download: true is for {', '.join(DOWNLOADABLE)}, not for {self.source}")
        return self

    @property
    def preparation(self) -> ImagePreparation:
        """How the task prepares these images."""
        return ImagePreparation()
