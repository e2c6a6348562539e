"""Recipe sections of data that several tasks share."""

# ruff: noqa: D102  # the attributes of `ImageSection` are documented in the sections

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from w2skd.recipe.duration import Duration
from w2skd.recipe.schema import FilePath, Section, Share

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


class ImageDataSection(DataSection):
    """Labelled images. Subsets are class-balanced; null takes 4,096 and 1,024 examples of ``shapes``.

    Attributes:
        source: ``cifar10``, ``cifar100`` and ``fashion_mnist`` in torchvision's files under `root`, ``image_folder``
            with one folder per class under `root`/`train_folder` and `root`/`eval_folder`, or ``shapes``, which is
            generated.
        download: let torchvision download CIFAR or Fashion-MNIST if it is not under `root`.
        train_folder: folder of the training images, below `root`.
        eval_folder: folder of the evaluation images, below `root`.
        feed: ``resident`` keeps all images as uint8 on the training device, ``streaming`` reads each batch in data
            workers; ``auto`` is resident if the augmentation allows it and the images take at most a quarter of the
            device's memory.
    """

    source: Literal["cifar10", "cifar100", "fashion_mnist", "image_folder", "shapes"]
    download: bool = False
    train_folder: str = "train"
    eval_folder: str = "test"
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    feed: Literal["auto", "resident", "streaming"] = "auto"

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.source == "image_folder" and self.image_size is None:
            raise ValueError("source: image_folder needs image_size, the side in px to which its images are brought")
        if self.download and self.source not in DOWNLOADABLE:
            raise ValueError(f"download: true is for {', '.join(DOWNLOADABLE)}, not for {self.source}")
        return self


class ImageSection(Protocol):
    """Everything that the data feeds read from a section of labelled images.

    A task's section derives from `ImageDataSection` and adds the rest as recipe keys or as constants.
    """

    @property
    def source(self) -> str: ...
    @property
    def root(self) -> Path: ...
    @property
    def download(self) -> bool: ...
    @property
    def train_folder(self) -> str: ...
    @property
    def eval_folder(self) -> str: ...
    @property
    def image_size(self) -> int | None: ...
    @property
    def eval_resize(self) -> int | None: ...
    @property
    def interpolation(self) -> str: ...
    @property
    def normalization(self) -> NormalizationSection | None: ...
    @property
    def train_examples(self) -> int | None: ...
    @property
    def eval_examples(self) -> int | None: ...
    @property
    def validation_share(self) -> float | None: ...
    @property
    def split_seed(self) -> int: ...
    @property
    def feed(self) -> str: ...
    @property
    def workers(self) -> int | None: ...
    @property
    def worker_timeout_s(self) -> float: ...
    @property
    def augment(self) -> tuple[str, ...]: ...
    @property
    def crop_scale(self) -> tuple[float, float]: ...
    @property
    def erasing_probability(self) -> float: ...
    @property
    def repeats(self) -> int: ...
    @property
    def progressive(self) -> ProgressiveSection | None: ...
    @property
    def needs_streaming(self) -> Sequence[str]: ...
    def __hash__(self) -> int: ...
