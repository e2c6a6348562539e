"""Recipe sections of the diffusion task: a denoising network generates images, which are scored by FID."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from w2skd.errors import suggest
from w2skd.recipe.data import ImageDataSection, ImagePreparation, NormalizationSection
from w2skd.recipe.evaluation import Metric, Output
from w2skd.recipe.schema import (
    LARGEST_SEED,
    DistillSection,
    Place,
    Recipe,
    ReportSection,
    StudentSection,
    TeacherSection,
    published_weights,
)
from w2skd.recipe.section import FilePath, Section

DENOISERS = (
    "unet_nc64_rb2",
    "unet_nc128_rb3",
    "unet_nc160_rb3",
    "unet_mini_nc16_rb1",
    "unet_mini_nc24_rb1",
    "unet_mini_nc32_rb1",
    "unet_mini_nc32_rb2",
    "unet_mini_nc64_rb2",
)
"""Names of U-Nets. nc: channels at the first resolution; rb: residual blocks per resolution; mini: two resolutions
instead of four."""

FEATURE_EXTRACTORS = (
    "inception-v3-compat",
    "vgg16",
    "clip-rn50",
    "clip-rn101",
    "clip-rn50x4",
    "clip-rn50x16",
    "clip-rn50x64",
    "clip-vit-b-32",
    "clip-vit-b-16",
    "clip-vit-l-14",
    "clip-vit-l-14-336px",
    "dinov2-vit-s-14",
    "dinov2-vit-b-14",
    "dinov2-vit-l-14",
    "dinov2-vit-g-14",
)
"""torch-fidelity's names."""

UNTRAINED = "untrained"
"""Extractor that needs no file; its scores mean nothing beyond smoke tests."""


def unknown_denoiser(name: str) -> str:
    """Return the error message for a name that is not a U-Net's."""
    return f"unknown model {name!r}{suggest(name, DENOISERS)}; known: {', '.join(DENOISERS)}, diffusers:<folder>"


def _known_denoiser(name: str) -> str:
    if name in DENOISERS or _is_path_after("diffusers:", name):
        return name
    raise ValueError(unknown_denoiser(name))


def _known_extractor(name: str) -> str:
    names = (*FEATURE_EXTRACTORS, UNTRAINED)
    if name in names or _is_path_after("checkpoint:", name):
        return name
    raise ValueError(f"unknown extractor {name!r}{suggest(name, names)}; known: {', '.join(names)}, checkpoint:<run>")


def _is_path_after(prefix: str, name: str) -> bool:
    return name.startswith(prefix) and bool(name.removeprefix(prefix).strip())


Denoiser = Annotated[str, AfterValidator(_known_denoiser)]
"""The name of a U-Net."""

SidePx = Annotated[int, Field(ge=8, le=1024)]
TimestepWeighting = Literal["uniform", "min_snr"]


class DiffusionData(ImageDataSection):
    """Training images, see `ImageDataSection`; pixels are scaled to [-1, 1].

    Attributes:
        image_size: side in px of the squares that are learned and generated; required for image folders, else the
            source's own (``shapes``: 32).
        augment: ``flip`` (horizontal), or empty.
    """

    image_size: SidePx | None = None
    augment: Annotated[tuple[Literal["flip"], ...], Field(strict=False, max_length=1)] = ("flip",)

    @property
    def preparation(self) -> ImagePreparation:
        """How diffusion prepares these images."""
        return ImagePreparation(self.augment, normalization=NormalizationSection(mean=(0.5,) * 3, std=(0.5,) * 3))


class DiffusionSection(Section):
    """The noising process that teacher and student learn to invert (Ho et al. 2020), and what they predict.

    Attributes:
        timesteps: length of the noising process.
        beta_schedule: variance of the added noise: ``linear`` from 0.0001 to 0.02 (Ho et al. 2020), or ``cosine``
            (Nichol & Dhariwal 2021).
        prediction: ``epsilon``, the noise, or ``v`` (Salimans & Ho 2022).
        class_conditional: condition the networks on each image's class.
    """

    timesteps: Annotated[int, Field(ge=2, le=10_000)] = 1000
    beta_schedule: Literal["linear", "cosine"] = "linear"
    prediction: Literal["epsilon", "v"] = "epsilon"
    class_conditional: bool = False


class SamplerSection(Section):
    """How images are generated: DDIM without added noise (Song et al. 2021).

    Sample k starts from noise that depends on the seed and k only.

    Attributes:
        steps: forward passes per image.
        spacing: which timesteps are used: ``trailing`` includes the last timestep, which is closest to pure noise;
            ``leading`` includes the first (compared by Lin et al. 2023).
        clip: clip the estimate of the clean image to [-1, 1] at every step.
        seed: of the starting noise; independent of the run's seed.
        batch_size: maximum number of images per forward pass; affects speed, memory and the last digits of scores.
    """

    steps: PositiveInt = 50
    spacing: Literal["trailing", "leading"] = "trailing"
    clip: bool = True
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = 0
    batch_size: PositiveInt = 256


class FidSection(Section):
    """How generated images are compared with real ones.

    Attributes:
        samples: images generated at every validation.
        reference: the real images, ``train`` or ``eval``, with the data section's subset and size, not augmented.
        extractor: the network that maps images to features: ``inception-v3-compat``, the field's standard, another one
            of torch-fidelity's, or ``checkpoint:RUN`` for the penultimate layer of a classifier trained with w2skd.
            ``untrained`` is a small random network for smoke tests, which needs no file; its scores mean nothing.
        weights: file with the extractor's weights; null takes them from torch's cache, or downloads them.
        kid_subsets: number of subsets that KID is averaged over.
        kid_subset_size: images per subset; limited by the number of samples and of real images.
        cache: folder for the real images' features; null is ``w2skd/fid`` in the user's cache (XDG_CACHE_HOME).
        batch_size: images per forward pass of the extractor; affects speed, memory and the last digits of scores.
    """

    samples: Annotated[int, Field(ge=2)] = 10_000
    reference: Literal["train", "eval"] = "train"
    extractor: Annotated[str, AfterValidator(_known_extractor)] = "inception-v3-compat"
    weights: FilePath | None = None
    kid_subsets: PositiveInt = 100
    kid_subset_size: Annotated[int, Field(ge=2)] = 1000
    cache: FilePath | None = None
    batch_size: PositiveInt = 64

    @model_validator(mode="after")
    def _check(self) -> "FidSection":
        if self.weights is not None and self.extractor.startswith(("checkpoint:", UNTRAINED)):
            raise ValueError(f"weights: {self.extractor} has its own weights: remove fid.weights")
        return self


class DenoiserTeacher(TeacherSection):
    """The weaker U-Net."""

    model: Denoiser

    @model_validator(mode="after")
    def _check(self) -> "DenoiserTeacher":
        published = self.checkpoint is not None and published_weights(self.checkpoint)[0]
        if published and not self.model.startswith("diffusers:"):
            raise ValueError(f"checkpoint: {self.checkpoint} needs a model diffusers:<folder>, not {self.model}")
        return self


class DenoiserStudent(StudentSection):
    """The U-Net to be trained."""

    model: Denoiser


class DiffusionLoss(Section):
    """The task loss: mean squared error of the prediction.

    Attributes:
        timestep_weighting: as in `DiffusionDistill`.
    """

    timestep_weighting: TimestepWeighting = "uniform"


class DiffusionDistill(DistillSection):
    """The distillation loss: mean squared distance from the teacher's prediction for the same noised image.

    Attributes:
        timestep_weighting: ``uniform``, or ``min_snr`` (Hang et al. 2023, gamma 5), which reduces the weight of
            timesteps with little noise and, for v, also of those with the most noise.
    """

    timestep_weighting: TimestepWeighting = "uniform"


class DiffusionReport(ReportSection):
    """The metric of the experiment: ``fid`` or ``kid`` between generated and real images; lower is better."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("fid", higher_is_better=False),
        Metric("kid", higher_is_better=False),
    )
    metric: str = "fid"


class DiffusionRecipe(Recipe):
    """An image-generation experiment."""

    outputs: ClassVar[Mapping[str, Output]] = {
        "samples": Output("Write every generated image into this new or empty folder.")
    }
    draws_pictures: ClassVar[bool] = True
    places: ClassVar[Mapping[str, Place]] = {
        **Recipe.places,
        "fid.cache": Place("cache"),
        "fid.weights": Place("runs", depth=2),
        "fid.extractor": Place("runs", prefix="checkpoint:", depth=2),
        "teacher.model": Place("models", prefix="diffusers:"),
        "student.model": Place("models", prefix="diffusers:"),
    }
    speed_only: ClassVar[tuple[str, ...]] = (
        *Recipe.speed_only,
        *("fid.cache", "fid.weights"),  # scoring records the weights' hash
    )
    scoring: ClassVar[tuple[str, ...]] = ("sampler", "fid")
    task: Literal["diffusion"]
    data: DiffusionData
    diffusion: DiffusionSection = DiffusionSection()
    sampler: SamplerSection = SamplerSection()
    fid: FidSection = FidSection()
    teacher: DenoiserTeacher
    student: DenoiserStudent
    loss: DiffusionLoss = DiffusionLoss()
    distill: DiffusionDistill = DiffusionDistill()
    report: DiffusionReport = DiffusionReport()

    @model_validator(mode="after")
    def _check(self) -> "DiffusionRecipe":
        if self.sampler.steps > self.diffusion.timesteps:
            raise ValueError(
                f"sampler.steps: {self.sampler.steps} is larger than diffusion.timesteps: {self.diffusion.timesteps}"
            )
        return self

    @classmethod
    def task_type(cls) -> type[Any]:
        """See `Recipe.task_type`."""
        from w2skd.tasks.diffusion.task import DiffusionTask

        return DiffusionTask
