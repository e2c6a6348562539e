"""The recipe: a frozen, typed description of an experiment.

Unknown keys are refused and values are not converted: a quoted number is an error. This module has the sections that
all tasks share. Each task adds its own in its ``recipe.py``, such as `w2skd.tasks.classification.recipe`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from w2skd.errors import suggest
from w2skd.recipe.arms import DEFAULT_ARMS, TEACHER, Arm, ArmSection, Help, arm_problems
from w2skd.recipe.compilation import Compile
from w2skd.recipe.duration import Duration
from w2skd.recipe.evaluation import Metric, Output
from w2skd.recipe.overlay import overlay
from w2skd.recipe.section import FilePath, Section
from w2skd.recipe.threshold import Threshold
from w2skd.recipe.train import TrainSection, WsdSection

LARGEST_SEED = 2**31 - 1


Length = Annotated[float, Field(gt=0, le=1)]
"""A share of the training schedule."""


class StudentSection(Section):
    """The model to train."""

    model: str


class TeacherSection(Section):
    """The weaker model: the student is distilled from it early in training, or grown from its weights.

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
        primary_length: entry of `lengths` at which the speed-up at equal final quality is the main result. Null selects
            the longest one for which the reference was trained long enough.
        sharers: numbers of students that share the cost of the teacher's training; the report adds a result for each.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    metric: str
    thresholds: Annotated[tuple[Threshold, ...], Field(strict=False)] = (Threshold.parse(TEACHER),)
    primary_length: Length | None = None
    sharers: Annotated[tuple[PositiveInt, ...], Field(strict=False)] = ()

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
        arms: ways to train the student, by name; the first is the reference.
        lengths: lengths of the training schedule, as shares of the length in the `train` section. Every arm is trained
            with a complete schedule of each length, which shows how much longer the reference must train to reach the
            arm's final quality.
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
    arms: dict[str, ArmSection] = Field(default_factory=lambda: dict(DEFAULT_ARMS))
    lengths: Annotated[tuple[Length, ...], Field(strict=False)] = (1.0,)
    report: ReportSection

    @model_validator(mode="after")
    def _check_arms(self) -> Self:
        for problem in arm_problems(self.arms):
            raise ValueError(problem)
        for name, arm in self.arms.items():
            for key in arm.overrides:
                if key.partition(".")[0] in self.scoring:
                    raise ValueError(f"arms.{name}.set: {key} changes how models are scored; set it for all arms")
        for threshold in self.report.thresholds:
            if threshold.of not in ("number", TEACHER, *self.arms):
                hint = suggest(threshold.of, self.arms)
                raise ValueError(f"report.thresholds: {threshold.name}: unknown arm {threshold.of}{hint}")
        if 1.0 not in self.lengths or len(set(self.lengths)) < len(self.lengths):
            raise ValueError("lengths: list each length once, and include 1.0, the length in the train section")
        if self.report.primary_length not in (None, *self.lengths):
            raise ValueError(f"report.primary_length: {self.report.primary_length} is not one of lengths")
        return self

    @property
    def reference(self) -> Arm:
        """The first arm, with which the others are compared."""
        return next(iter(self.arms))

    @property
    def has_trunk(self) -> bool:
        """Whether runs of shorter lengths branch from the longest one."""
        return isinstance(self.train.lr_schedule, WsdSection)

    def helps(self, arm: Arm, *kinds: Help) -> bool:
        """Return whether the teacher helps an arm, in one of these ways if any are given."""
        section = self.arms.get(arm)
        return section is not None and bool(set(section.help) & set(kinds or section.help))

    def for_arm(self, arm: Arm, length: float = 1.0) -> Self:
        """Return the recipe with an arm's changes and a training schedule of the given length.

        Args:
            arm: one of `arms`, or `TEACHER`, for which the recipe is returned unchanged.
            length: one of `lengths`.
        """
        if arm == TEACHER:
            return self
        section = self.arms[arm]
        recipe = type(self).model_validate(section.applied_to(self.model_dump(mode="json"))) if section.set else self
        return recipe if length == 1.0 else recipe.model_copy(update={"train": recipe.train.scaled(length)})

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
