"""The recipe: a frozen, typed description of an experiment that all of its arms share.

Unknown keys are refused and values are not converted: a quoted number is an error. This module has the sections that
all tasks share. Each task adds its own in its ``recipe.py``, such as `w2skd.tasks.classification.recipe`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from w2skd.errors import suggest
from w2skd.recipe.arms import TEACHER
from w2skd.recipe.compilation import Compile
from w2skd.recipe.duration import Duration
from w2skd.recipe.evaluation import Metric, Output
from w2skd.recipe.overlay import overlay
from w2skd.recipe.threshold import Threshold

LARGEST_SEED = 2**31 - 1

Share = Annotated[float, Field(ge=0, le=1)]
FilePath = Annotated[Path, Field(strict=False)]


class Section(BaseModel):
    """Base class of all sections."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class StudentSection(Section):
    """The model to train."""

    model: str


class TeacherSection(Section):
    """The weaker model that the student is distilled from early in training.

    Attributes:
        model: name of the architecture.
        checkpoint: a finished run, a file with weights, or ``pretrained`` (``pretrained:TAG``) for weights that
            torchvision or timm publish for this model; null takes the teacher that ``train-teacher`` trained in this
            experiment.
        weights: which of several sets of weights in the checkpoint's file, such as ``model_ema``; null chooses.
        train: keys of `TrainSection` that differ when the teacher itself is trained.
        precision: precision of the teacher's forward pass: ``fp32``, ``bf16`` or ``fp16``; null is ``train.precision``.
        compile: whether to use `torch.compile` for the teacher, as in `TrainSection`. The teacher runs during a part of
            training only, so compilation pays off in long runs.
    """

    model: str
    checkpoint: FilePath | None = None
    weights: str | None = None
    train: dict[str, Any] = Field(default_factory=dict)
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    compile: Compile = False


def published_weights(checkpoint: Path) -> tuple[bool, str | None]:
    """Return whether a checkpoint is ``pretrained`` or ``pretrained:TAG``, and the tag; None means the best weights."""
    word, _, tag = str(checkpoint).partition(":")
    return word == "pretrained", tag or None


class SgdSection(Section):
    """Stochastic gradient descent, as in `torch.optim.SGD`.

    Attributes:
        decay_norms_and_biases: false excludes parameters with fewer than two dimensions (scales, offsets, biases) and
            those that the model lists in ``no_weight_decay()`` from weight decay.
    """

    name: Literal["sgd"]
    lr: PositiveFloat
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 0.0
    decay_norms_and_biases: bool = True
    nesterov: bool = False

    @model_validator(mode="after")
    def _check(self) -> "SgdSection":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: true requires a momentum above 0")
        return self


class AdamWSection(Section):
    """Adam with decoupled weight decay, as in `torch.optim.AdamW`.

    Attributes:
        decay_norms_and_biases: as in `SgdSection`.
    """

    name: Literal["adamw"]
    lr: PositiveFloat
    betas: Annotated[tuple[Share, Share], Field(strict=False)] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.01
    decay_norms_and_biases: bool = True


class CosineSection(Section):
    """Linear warm-up, then half a cosine from the peak down to `final_ratio` of it."""

    name: Literal["cosine"]
    warmup: Duration = Duration(0, "step")
    final_ratio: Share = 0.0


class OneCycleSection(Section):
    """Cosine from `initial_ratio` of the peak up to it, then down to `final_ratio` of it (Smith & Topin 2018)."""

    name: Literal["one_cycle"]
    warmup: Duration = Duration(0.3, "run")
    initial_ratio: Share = 0.04
    final_ratio: Share = 0.0


class TriangularSection(Section):
    """Linear rise from `initial_ratio` of the peak to the peak, then linear fall to `final_ratio` (Smith 2017)."""

    name: Literal["triangular"]
    warmup: Duration = Duration(0.3, "run")
    initial_ratio: Share = 0.0
    final_ratio: Share = 0.0


class MultiStepSection(Section):
    """Linear warm-up, then a multiplication by `gamma` at every milestone."""

    name: Literal["multi_step"]
    milestones: Annotated[tuple[Duration, ...], Field(strict=False, min_length=1)]
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup: Duration = Duration(0, "step")


class ConstantSection(Section):
    """Linear warm-up, then the peak."""

    name: Literal["constant"]
    warmup: Duration = Duration(0, "step")


OptimizerSection = Annotated[SgdSection | AdamWSection, Field(discriminator="name")]
LrScheduleSection = Annotated[
    CosineSection | OneCycleSection | TriangularSection | MultiStepSection | ConstantSection,
    Field(discriminator="name"),
]


class EmaSection(Section):
    """An exponential moving average of the weights, used by validations, the switch and the final model.

    Attributes:
        decay: share of the average that each step keeps; exclusive with `half_life`.
        half_life: time after which the weight of a step has halved.
        ramp_up: limits the half-life to this share of the steps so far, so that the average quickly forgets the
            untrained weights; 0.05 in Karras et al. (2022, EDM). Null sets no limit.
    """

    decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    half_life: Duration | None = None
    ramp_up: PositiveFloat | None = None

    @model_validator(mode="after")
    def _check(self) -> "EmaSection":
        if (self.decay is None) == (self.half_life is None):
            raise ValueError("set either decay or half_life")
        if self.ramp_up is not None and self.half_life is None:
            raise ValueError("ramp_up: requires half_life instead of decay")
        if self.half_life is not None and self.half_life.amount == 0:
            raise ValueError(f"half_life: {self.half_life} averages nothing; use ema: null to disable averaging")
        return self


class TrainSection(Section):
    """Training of a model, the same in all arms that train the student.

    Attributes:
        epochs: length of the run in epochs; exclusive with `steps`.
        steps: length of the run in optimizer steps.
        batch_size: examples per optimizer step, over all ranks and accumulated micro-batches.
        accumulate: micro-batches per rank and optimizer step.
        clip_grad_norm: maximum L2 norm of the gradient; null disables clipping.
        precision: ``fp32``, ``tf32``, or ``bf16`` or ``fp16`` autocast with fp32 weights. ``tf32`` allows GPUs to
            compute matrix products and convolutions with 10 bits of mantissa, ``fp32`` forbids it; on CPUs they are the
            same. ``fp16`` uses a loss scale and skips a step whenever the scale must be lowered.
        compile: whether to use `torch.compile` for the student, though not for its evaluations. The first step of each
            image size can then take minutes, which the clock counts separately. ``reduce-overhead`` also records CUDA
            graphs, for steps of a few milliseconds in which launching kernels takes longer than running them. It
            requires a single GPU, and the memory of a dropped teacher's graphs is not freed.
        channels_last: whether to use the channels-last memory format.
        ema: moving average of the weights; null disables it.
        validate_every: interval of validations; the end of the run is always validated.
        log_every: interval of progress rows, in steps.
        checkpoint_every: interval of additional checkpoints; every validation writes one, too.
        deterministic: whether to use only kernels that repeat bit for bit.
        max_non_finite_steps: accepted number of steps in a row with a non-finite loss or gradient; their updates are
            suppressed. In ``fp16`` a step counts only at the lowest loss scale.
    """

    epochs: PositiveFloat | None = None
    steps: PositiveInt | None = None
    batch_size: PositiveInt
    accumulate: PositiveInt = 1
    optimizer: OptimizerSection
    lr_schedule: LrScheduleSection
    clip_grad_norm: PositiveFloat | None = None
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    compile: Compile = False
    channels_last: bool = False
    ema: EmaSection | None = None
    validate_every: Duration = Duration(1, "ep")
    log_every: PositiveInt = 50
    checkpoint_every: Duration | None = None
    deterministic: bool = False
    max_non_finite_steps: PositiveInt = 10

    @model_validator(mode="after")
    def _check(self) -> "TrainSection":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("set either epochs or steps")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: {self.accumulate} does not divide batch_size: {self.batch_size}")
        for name, duration in (("validate_every", self.validate_every), ("checkpoint_every", self.checkpoint_every)):
            if duration is not None and duration.amount == 0:
                raise ValueError(f"{name}: {duration} is not a valid interval; use at least 1step")
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the length of the run in optimizer steps, at least 1."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * steps_per_epoch))


class SwitchSection(Section):
    """Distillation ends once the student is better by `margin` in `patience` validations in a row."""

    margin: NonNegativeFloat = 0.0
    patience: PositiveInt = 2


class DistillSection(Section):
    """Distillation weight (lambda) over time: linear warm-up, hold at `weight`, linear decay."""

    weight: NonNegativeFloat = 1.0
    warmup: Duration = Duration(0.01, "run")
    hold: Duration = Duration(0.3, "run")
    decay: Duration = Duration(0.2, "run")
    switch: SwitchSection = SwitchSection()

    def lengths(self, steps_per_epoch: int, total_steps: int) -> dict[str, int]:
        """Return ``warmup_steps``, ``hold_steps`` and ``decay_steps``."""
        spans = {"warmup_steps": self.warmup, "hold_steps": self.hold, "decay_steps": self.decay}
        return {name: span.steps(steps_per_epoch, total_steps) for name, span in spans.items()}


class SoftenedDistillSection(DistillSection):
    """Distillation of class distributions that are softened by a temperature (Hinton et al. 2015).

    Attributes:
        temperature: temperature of the teacher's and the student's distribution.
        final_temperature: temperature at the end of the decay, approached linearly; null keeps `temperature`.
    """

    temperature: PositiveFloat = 2.0
    final_temperature: PositiveFloat | None = None

    def temperature_at(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """Return the temperature of a 0-based step, interpolated linearly over warm-up, hold and decay."""
        if self.final_temperature is None:
            return self.temperature
        end_step = sum(self.lengths(steps_per_epoch, total_steps).values())
        progress = min(1.0, step / end_step) if end_step else 1.0
        return self.temperature + (self.final_temperature - self.temperature) * progress


class ReportSection(Section):
    """Measurement of the experiment.

    Attributes:
        metrics: metrics of the task's evaluation; each task declares its own.
        metric: name of the metric of the switch, the thresholds and the curves.
        thresholds: metric values whose first crossing is timed.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    metric: str
    thresholds: Annotated[tuple[Threshold, ...], Field(strict=False)] = (Threshold.parse(TEACHER),)

    @field_validator("metric")
    @classmethod
    def _known(cls, name: str) -> str:
        known = [metric.name for metric in cls.metrics]
        if name not in known:
            raise ValueError(f"unknown metric {name!r}{suggest(name, known)}; known: {', '.join(known)}")
        return name

    @model_validator(mode="after")
    def _check(self) -> "ReportSection":
        for threshold in self.thresholds:
            if self.chosen.is_share and threshold.of == "number" and not 0 <= threshold.share <= 1:
                raise ValueError(f"thresholds: {threshold.name} is out of range; {self.metric} lies between 0 and 1")
        return self

    @property
    def chosen(self) -> Metric:
        """The metric with the name `metric`."""
        return next(metric for metric in self.metrics if metric.name == self.metric)


class Place(NamedTuple):
    """A recipe key whose value is a path on this machine.

    Attributes:
        shown_as: replacement of the parent folders in published recipes: ``data`` turns ``/mnt/x/cifar10`` into
            ``data/cifar10``.
        prefix: start of the values that are paths, such as ``checkpoint:``; other values are names. On resume the path
            after the prefix may change, because the run knows its content by a hash.
        depth: number of trailing path components that published recipes keep.
    """

    shown_as: str
    prefix: str = ""
    depth: int = 1


class Recipe(Section):
    """An experiment. Each task derives its recipe from it, in a module that does not import torch.

    Attributes:
        outputs: option of ``w2skd evaluate`` -> the file or folder that it writes.
        draws_pictures: whether an evaluation can draw examples (``w2skd evaluate --pictures N``).
        places: dotted keys whose values are paths on this machine.
        speed_only: dotted keys that may change on resume, because they affect neither training nor scores.
        scoring: sections that affect scores, but not training.
    """

    outputs: ClassVar[Mapping[str, Output]] = {}
    draws_pictures: ClassVar[bool] = False
    places: ClassVar[Mapping[str, Place]] = {"data.root": Place("data"), "teacher.checkpoint": Place("runs", depth=2)}
    speed_only: ClassVar[tuple[str, ...]] = (
        *("data.root", "data.download", "data.workers", "data.worker_timeout_s"),
        *("train.log_every", "train.checkpoint_every"),
    )
    scoring: ClassVar[tuple[str, ...]] = ()

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    task: str
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = 0
    teacher: TeacherSection
    student: StudentSection
    train: TrainSection
    distill: DistillSection = DistillSection()
    report: ReportSection

    @property
    def metric(self) -> Metric:
        """The metric of the switch, the thresholds and the curves."""
        return self.report.chosen

    @classmethod
    def task_type(cls) -> type[Any]:
        """Import and return the task's class, a `w2skd.tasks.base.Task`."""
        raise NotImplementedError(f"{cls.__name__} has no task")

    def prepared_as(self, details: Mapping[str, Any]) -> tuple[Self, tuple[str, ...]]:
        """Adapt the recipe to published weights, so that they are scored as in the library that publishes them.

        Args:
            details: metadata of the weights; see `w2skd.weights.pretrained`.

        Returns:
            The recipe, adapted if necessary, and remarks to print with the score.
        """
        return self, ()

    def model_of(self, role: str) -> str:
        """Return the architecture's name of the ``teacher`` or the ``student``."""
        return self.teacher.model if role == TEACHER else self.student.model

    def train_of(self, role: str) -> TrainSection:
        """Return the training section of the ``student`` or, with its own keys merged in, of the ``teacher``."""
        if role != TEACHER:
            return self.train
        return TrainSection.model_validate(overlay(self.train.model_dump(mode="json"), self.teacher.train))
