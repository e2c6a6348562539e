"""The train section of a recipe: optimizer, learning-rate schedule, averaging, length, precision."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from w2skd.recipe.compilation import Compile
from w2skd.recipe.duration import Duration
from w2skd.recipe.section import Section, Share


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


class WsdSection(Section):
    """Linear warm-up, the peak, and a cooldown to zero at the end of the run (warmup-stable-decay).

    Runs of several lengths share all steps before their cooldowns, so a long run serves as the trunk of shorter ones
    (Haegele et al. 2024, "Scaling laws and compute-optimal training beyond fixed training durations").

    Attributes:
        warmup: length of the warm-up in steps or epochs, because a share of the run would differ between lengths.
        cooldown: length of the decay to zero.
        shape: ``sqrt`` multiplies the peak by ``1 - sqrt(x)`` and ``linear`` by ``1 - x``, where x rises from 0 to 1
            during the cooldown.
    """

    name: Literal["wsd"]
    warmup: Duration = Duration(0, "step")
    cooldown: Duration = Duration(0.2, "run")
    shape: Literal["sqrt", "linear"] = "sqrt"

    @model_validator(mode="after")
    def _check(self) -> "WsdSection":
        if self.warmup.unit == "run":
            raise ValueError(f"warmup: {self.warmup} differs between lengths; use steps or epochs, such as 1ep")
        return self


OptimizerSection = Annotated[SgdSection | AdamWSection, Field(discriminator="name")]
LrScheduleSection = Annotated[
    CosineSection | OneCycleSection | TriangularSection | MultiStepSection | ConstantSection | WsdSection,
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

    def scaled(self, length: float) -> "TrainSection":
        """Return the section with its epochs or steps multiplied by `length`, in (0, 1]."""
        if self.steps is not None:
            return self.model_copy(update={"steps": max(1, round(self.steps * length))})
        assert self.epochs is not None
        return self.model_copy(update={"epochs": round(self.epochs * length, 9)})

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the length of the run in optimizer steps, at least 1."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * steps_per_epoch))
