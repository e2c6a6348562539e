"""The recipe: one frozen, typed description of an experiment, shared by its teacher, baseline and accelerated arms.

Unknown keys are refused, and nothing is converted on the way in (a quoted number stays a mistake). Sections that every
task shares are here; each task adds its own in a file of its own, such as `w2skd.tasks.classification.recipe`.
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
from w2skd.recipe.duration import Duration
from w2skd.recipe.evaluation import Metric, Output
from w2skd.recipe.threshold import Threshold

LARGEST_SEED = 2**31 - 1

Share = Annotated[float, Field(ge=0, le=1)]
FilePath = Annotated[Path, Field(strict=False)]


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class StudentSection(Section):
    """The model to be trained."""

    model: str


class TeacherSection(Section):
    """The weaker model that helps early on.

    Attributes:
        model: its architecture.
        checkpoint: a finished run, a file with weights, or ``pretrained`` (``pretrained:TAG``) for those that
            torchvision or timm publish of its model; null takes the one that ``train-teacher`` makes here.
        train: keys of `TrainSection` that differ while the teacher itself is trained.
    """

    model: str
    checkpoint: FilePath | None = None
    train: dict[str, Any] = Field(default_factory=dict)


def published_weights(checkpoint: Path) -> tuple[bool, str | None]:
    """Whether a checkpoint is ``pretrained`` or ``pretrained:TAG``, and the tag; None is the library's best."""
    word, _, tag = str(checkpoint).partition(":")
    return word == "pretrained", tag or None


class SgdSection(Section):
    """Stochastic gradient descent, as `torch.optim.SGD`.

    Attributes:
        decay_norms_and_biases: false spares scales, offsets, biases (all with fewer than two dimensions) and what the
            model names in ``no_weight_decay()`` from the weight decay.
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
            raise ValueError("nesterov: true needs a momentum above 0")
        return self


class AdamWSection(Section):
    """Adam with decoupled weight decay, as `torch.optim.AdamW`.

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
    """Half a cosine from the peak down to `final_ratio` of it, after a linear warm-up."""

    name: Literal["cosine"]
    warmup: Duration = Duration(0, "step")
    final_ratio: Share = 0.0


class OneCycleSection(Section):
    """Cosine up over the warm-up from `initial_ratio` of the peak, then down to `final_ratio` (Smith & Topin 2018)."""

    name: Literal["one_cycle"]
    warmup: Duration = Duration(0.3, "run")
    initial_ratio: Share = 0.04
    final_ratio: Share = 0.0


class MultiStepSection(Section):
    """Times `gamma` at every milestone, after a linear warm-up."""

    name: Literal["multi_step"]
    milestones: Annotated[tuple[Duration, ...], Field(strict=False, min_length=1)]
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup: Duration = Duration(0, "step")


class ConstantSection(Section):
    """The peak throughout, after a linear warm-up."""

    name: Literal["constant"]
    warmup: Duration = Duration(0, "step")


OptimizerSection = Annotated[SgdSection | AdamWSection, Field(discriminator="name")]
LrScheduleSection = Annotated[
    CosineSection | OneCycleSection | MultiStepSection | ConstantSection, Field(discriminator="name")
]


class EmaSection(Section):
    """An exponential moving average of the weights, which validations, switch and the final model then use.

    Attributes:
        decay: what a step keeps of the average; give this or `half_life`.
        half_life: steps after which weights count half.
        ramp_up: the half-life is at most this share of the steps so far, so that the average soon forgets the
            untrained weights; 0.05 in Karras et al. (2022, EDM). Null is no such limit.
    """

    decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    half_life: Duration | None = None
    ramp_up: PositiveFloat | None = None

    @model_validator(mode="after")
    def _check(self) -> "EmaSection":
        if (self.decay is None) == (self.half_life is None):
            raise ValueError("give either decay or half_life")
        if self.ramp_up is not None and self.half_life is None:
            raise ValueError("ramp_up: limits a half_life, not a decay")
        if self.half_life is not None and self.half_life.amount == 0:
            raise ValueError(f"half_life: {self.half_life} would average nothing; leave ema out (ema: null)")
        return self


class TrainSection(Section):
    """How a model is trained: the same for baseline and accelerated arm.

    Attributes:
        epochs: length of the run; give this or `steps`.
        steps: length of the run in optimizer steps.
        batch_size: examples per optimizer step, over all ranks and accumulated micro-batches.
        accumulate: micro-batches that one rank adds up for one step.
        clip_grad_norm: largest L2 norm of the gradient; null leaves it.
        precision: ``fp32``, or ``bf16`` or ``fp16`` autocast with fp32 weights; ``fp16`` scales the loss to keep small
            gradients, and now and then skips a step to find the scale.
        compile: `torch.compile` for the model that is trained (neither its teacher nor evaluations); the first step
            with every image size then takes up to minutes, which the clock counts apart.
        channels_last: memory format of images and convolutions.
        ema: average of the weights; null uses the raw ones.
        validate_every: how often the student is validated; the end of the run always is.
        log_every: steps between two progress rows.
        checkpoint_every: additional checkpoints; every validation writes one anyway.
        deterministic: only kernels that repeat bit for bit.
        max_non_finite_steps: steps in a row whose loss or gradient may be non-finite (their update is suppressed)
            before the run is stopped; in ``fp16`` they count once the loss scale is down to 1.
    """

    epochs: PositiveFloat | None = None
    steps: PositiveInt | None = None
    batch_size: PositiveInt
    accumulate: PositiveInt = 1
    optimizer: OptimizerSection
    lr_schedule: LrScheduleSection
    clip_grad_norm: PositiveFloat | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
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
            raise ValueError("give either epochs or steps")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: {self.accumulate} does not divide batch_size: {self.batch_size}")
        for name, duration in (("validate_every", self.validate_every), ("checkpoint_every", self.checkpoint_every)):
            if duration is not None and duration.amount == 0:
                raise ValueError(f"{name}: {duration} would never come round")
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        """Length of the run in optimizer steps, at least one."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * steps_per_epoch))


class SwitchSection(Section):
    """When distillation goes off for good: the student better by `margin` at `patience` validations in a row."""

    margin: NonNegativeFloat = 0.0
    patience: PositiveInt = 2


class DistillSection(Section):
    """The teacher's weight over time: linear up over `warmup`, `weight` over `hold`, linear down over `decay`.

    Attributes:
        weight: the peak of lambda.
    """

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
    """Distillation of distributions over classes that a temperature softens (Hinton et al. 2015).

    Attributes:
        temperature: of both distributions.
        final_temperature: reached at the end of the decay, linearly; null keeps `temperature`.
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
    """What the experiment is measured by.

    Attributes:
        metrics: those that the task's evaluation yields; declared by each task.
        metric: the one that the switch, the thresholds and the curves are about.
        thresholds: levels whose first crossing is timed.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    metric: str
    thresholds: Annotated[tuple[Threshold, ...], Field(strict=False)] = (Threshold("teacher", "teacher", 1.0),)

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
                raise ValueError(f"thresholds: {threshold.name} is out of reach, {self.metric} goes from 0 to 1")
        return self

    @property
    def chosen(self) -> Metric:
        """`metric` with its direction."""
        return next(metric for metric in self.metrics if metric.name == self.metric)


class Place(NamedTuple):
    """How a recipe's value points to a file or folder on this machine.

    Attributes:
        shown_as: what a publication writes in place of the folders above: ``data`` turns ``/mnt/x/cifar10`` into
            ``data/cifar10``.
        prefix: of the values that point somewhere, such as ``checkpoint:``; other values are names. On resume, what
            follows the prefix may differ, since the run knows the content by its hash.
        depth: how many last parts of the path a publication keeps.
    """

    shown_as: str
    prefix: str = ""
    depth: int = 1


class Recipe(Section):
    """An experiment. Each task subclasses it with its own sections and class attributes, free of torch.

    Attributes:
        outputs: option of ``w2skd evaluate`` -> the file or folder that it writes.
        draws_pictures: whether an evaluation can draw examples (``w2skd evaluate --pictures N``).
        places: dotted keys whose values point to a file or folder on this machine.
        speed_only: dotted keys that may change on resume, because they change neither training nor scores.
        scoring: sections that say how the model is scored, and not how it is trained.
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
        """The metric that the experiment is measured by."""
        return self.report.chosen

    @classmethod
    def task_type(cls) -> type[Any]:
        """Import and return the `w2skd.tasks.base.Task` that trains and scores this kind of recipe."""
        raise NotImplementedError(f"{cls.__name__} has no task")

    def prepared_as(self, details: Mapping[str, Any]) -> tuple[Self, tuple[str, ...]]:
        """Adapt the recipe to published weights, so that they are scored as their library scores them.

        Args:
            details: of the weights, see `w2skd.weights.pretrained`.

        Returns:
            The recipe, changed or not, and one line for each thing that a reader of the score must know.
        """
        return self, ()

    def model_of(self, role: str) -> str:
        """The name of the ``teacher``'s or the ``student``'s architecture."""
        return self.teacher.model if role == "teacher" else self.student.model

    def train_of(self, role: str) -> TrainSection:
        """How the ``teacher`` or the ``student`` is trained."""
        return self.teacher_train() if role == "teacher" else self.train

    def teacher_train(self) -> TrainSection:
        """How the teacher is trained: `train` with the teacher's own keys laid over it."""
        return TrainSection.model_validate(overlay(self.train.model_dump(mode="json"), self.teacher.train))


OTHER_LENGTH = {"epochs": "steps", "steps": "epochs"}
"""A length in one unit replaces one in the other."""


def overlay(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lay nested keys of `over` on `base`.

    A section that changes its ``name`` starts afresh (the old one's options mean nothing to it), and a length in one
    unit replaces a length in the other.
    """
    merged = {key: value for key, value in base.items() if OTHER_LENGTH.get(key) not in over}
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("name", old.get("name")) == old.get("name"):
            merged[key] = overlay(old, value)
        else:
            merged[key] = value
    return merged
