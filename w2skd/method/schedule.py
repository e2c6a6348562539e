"""lambda(t) and the switch that ends distillation for good; the learning-rate curve.

All of it is arithmetic on step numbers, without torch, so that it serves any training loop:

    schedule = DistillSchedule(weight=1.0, warmup_steps=100, hold_steps=3000, decay_steps=2000,
                               higher_is_better=True, teacher_value=0.709)
    ...
    weight = schedule.weight_at(step)           # 0 means: no need to ask the teacher
    ...
    schedule.observe(step + 1, accuracy)        # after a validation
"""

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

from w2skd.recipe.duration import Duration
from w2skd.recipe.schema import (
    ConstantSection,
    CosineSection,
    DistillSection,
    LrScheduleSection,
    MultiStepSection,
    OneCycleSection,
    SoftenedDistillSection,
)


class Phase(StrEnum):
    """Where in its course the distillation is."""

    WARM_UP = "warm-up"
    HOLD = "hold"
    DECAY = "decay"
    OFF = "off"


@dataclass(frozen=True)
class SwitchedOff:
    """Distillation is over.

    Attributes:
        step: optimizer steps that were done by then.
        reason: ``surpassed``, the student was better than its teacher; ``ended``, the schedule had no more to give.
        student: its metric at the validation that decided, null if none did.
        teacher: its metric, null if unknown.
        patience: validations in a row at which the student had to be better.
    """

    step: int
    reason: Literal["surpassed", "ended"]
    student: float | None
    teacher: float | None
    patience: int = 2


class DistillSchedule:
    """The weight of distillation over time: linear up, hold, linear down, and 0 for good once switched off.

    Args:
        weight: the peak of lambda.
        warmup_steps: optimizer steps over which lambda grows linearly from 0 to `weight`.
        hold_steps: steps at `weight`.
        decay_steps: steps over which lambda falls linearly from `weight` to 0.
        higher_is_better: direction of the metric, such as True for accuracy and False for a loss or FID.
        teacher_value: the teacher's metric on the same data; null never switches before the schedule's own end.
        margin: by how much the student must be better, in the metric's unit.
        patience: validations in a row at which it must be.

    Raises:
        ValueError: a length, the weight or the margin is negative, or the patience is below 1.
    """

    def __init__(
        self,
        *,
        weight: float,
        warmup_steps: int,
        hold_steps: int,
        decay_steps: int,
        higher_is_better: bool,
        teacher_value: float | None = None,
        margin: float = 0.0,
        patience: int = 2,
    ):
        if min(weight, warmup_steps, hold_steps, decay_steps, margin) < 0:
            raise ValueError(f"negative: {weight=} {warmup_steps=} {hold_steps=} {decay_steps=} {margin=}")
        if patience < 1:
            raise ValueError(f"{patience=} is below 1")
        self.weight = weight
        self.warmup_steps = warmup_steps
        self.hold_steps = hold_steps
        self.decay_steps = decay_steps
        self.higher_is_better = higher_is_better
        self.teacher_value = teacher_value
        self.margin = margin
        self.patience = patience
        self.switched_off: SwitchedOff | None = None
        self._better_in_a_row = 0

    @classmethod
    def from_section(
        cls,
        section: DistillSection,
        *,
        steps_per_epoch: int,
        total_steps: int,
        higher_is_better: bool,
        teacher_value: float | None = None,
    ) -> "DistillSchedule":
        """Build the schedule that a recipe describes, for a run of `total_steps` optimizer steps."""
        return cls(
            weight=section.weight,
            warmup_steps=section.warmup.steps(steps_per_epoch, total_steps),
            hold_steps=section.hold.steps(steps_per_epoch, total_steps),
            decay_steps=section.decay.steps(steps_per_epoch, total_steps),
            higher_is_better=higher_is_better,
            teacher_value=teacher_value,
            margin=section.switch.margin,
            patience=section.switch.patience,
        )

    @property
    def end_step(self) -> int:
        """The first 0-based step at which the schedule itself is over."""
        return self.warmup_steps + self.hold_steps + self.decay_steps

    def phase_at(self, step: int) -> Phase:
        """The phase of the 0-based step that is about to be taken."""
        if self.switched_off is not None or step >= self.end_step:
            return Phase.OFF
        if step < self.warmup_steps:
            return Phase.WARM_UP
        return Phase.HOLD if step < self.warmup_steps + self.hold_steps else Phase.DECAY

    def weight_at(self, step: int) -> float:
        """Lambda of the 0-based step that is about to be taken, in [0, weight]; 0 at the first step of a warm-up."""
        match self.phase_at(step):
            case Phase.WARM_UP:
                return self.weight * step / self.warmup_steps
            case Phase.HOLD:
                return self.weight
            case Phase.DECAY:
                return self.weight * (self.end_step - step) / self.decay_steps
            case Phase.OFF:
                return 0.0

    def finish_step(self, steps_done: int) -> SwitchedOff | None:
        """Note that `steps_done` optimizer steps are done; tell once when that was the schedule's own end."""
        if self.switched_off is not None or steps_done < self.end_step:
            return None
        return self._switch_off(SwitchedOff(steps_done, "ended", None, self.teacher_value, self.patience))

    def observe(self, steps_done: int, student_value: float) -> SwitchedOff | None:
        """Compare the student with its teacher after a validation; tell once when distillation goes off.

        Strictly better by more than the margin counts; NaN never does.
        """
        if self.switched_off is not None:
            return None
        if steps_done >= self.end_step:  # a loop that validates but does not call `finish_step` learns of the end here
            return self.finish_step(steps_done)
        self._better_in_a_row = self._better_in_a_row + 1 if self._is_better(student_value) else 0
        if self._better_in_a_row < self.patience:
            return None
        return self._switch_off(SwitchedOff(steps_done, "surpassed", student_value, self.teacher_value, self.patience))

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs beside the arguments, as plain values."""
        return {
            "better_in_a_row": self._better_in_a_row,
            "switched_off": None if self.switched_off is None else asdict(self.switched_off),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._better_in_a_row = state["better_in_a_row"]
        self.switched_off = None if state["switched_off"] is None else SwitchedOff(**state["switched_off"])

    def _is_better(self, student_value: float) -> bool:
        if self.teacher_value is None:
            return False
        if self.higher_is_better:
            return student_value > self.teacher_value + self.margin
        return student_value < self.teacher_value - self.margin

    def _switch_off(self, event: SwitchedOff) -> SwitchedOff:
        self.switched_off = event
        return event


def temperature_at(section: SoftenedDistillSection, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """Temperature of the 0-based step: linear from `temperature` to `final_temperature` at the end of the decay."""
    if section.final_temperature is None:
        return section.temperature
    spans = (section.warmup, section.hold, section.decay)
    end_step = sum(span.steps(steps_per_epoch, total_steps) for span in spans)
    progress = min(1.0, step / end_step) if end_step else 1.0
    return section.temperature + (section.final_temperature - section.temperature) * progress


def lr_factor(section: LrScheduleSection, step: int, *, steps_per_epoch: int, total_steps: int) -> float:
    """What the recipe's learning rate is multiplied by at the 0-based step, in [0, 1].

    A linear warm-up gives step `s` the share ``(s + 1) / warmup_steps``. Past the end of the run the factor stays.
    """

    def in_steps(duration: Duration) -> int:
        return duration.steps(steps_per_epoch, total_steps)

    warmup_steps = in_steps(section.warmup)
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    match section:
        case ConstantSection():
            return warmup
        case MultiStepSection():
            return float(warmup * section.gamma ** sum(step >= in_steps(milestone) for milestone in section.milestones))
        case CosineSection():
            if step < warmup_steps:
                return warmup
            return _half_cosine(1.0, section.final_ratio, step - warmup_steps, total_steps - warmup_steps)
        case OneCycleSection():
            # The peak is the warm-up's last step and the trough the run's last step, as in torch's OneCycleLR.
            peak = max(warmup_steps - 1, 0)
            if step < peak:
                return _half_cosine(section.initial_ratio, 1.0, step, peak)
            return _half_cosine(1.0, section.final_ratio, step - peak, total_steps - 1 - peak)


def _half_cosine(start: float, end: float, step: int, steps: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at step `steps`, and `end` from there on."""
    progress = min(1.0, step / steps) if steps > 0 else float(step > 0)
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
