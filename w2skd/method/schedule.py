"""The schedule of lambda, the distillation weight, and the switch that ends distillation permanently.

Everything here is arithmetic on step numbers, without torch, and fits any training loop:

    schedule = DistillSchedule(weight=1.0, warmup_steps=100, hold_steps=3000, decay_steps=2000,
                               switch=Switch(teacher_value=0.709, higher_is_better=True))
    ...
    weight = schedule.weight_at(step)           # 0: skip the teacher's forward pass
    ...
    schedule.observe(step + 1, accuracy)        # after each validation
"""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal


class Phase(StrEnum):
    """Phase of a `DistillSchedule`."""

    WARM_UP = "warm-up"
    HOLD = "hold"
    DECAY = "decay"
    OFF = "off"


@dataclass(frozen=True)
class SwitchedOff:
    """The end of distillation.

    Attributes:
        step: number of optimizer steps taken before the end.
        reason: ``surpassed`` if the student became better than its teacher, ``ended`` if the schedule ran out.
        student: the student's metric at the deciding validation, or None if the schedule ran out.
        teacher: the teacher's metric, or None if unknown.
        patience: the switch's patience.
    """

    step: int
    reason: Literal["surpassed", "ended"]
    student: float | None
    teacher: float | None
    patience: int = 2


@dataclass(frozen=True)
class Switch:
    """Condition that ends distillation: the student is better than its teacher.

    Attributes:
        teacher_value: the teacher's metric, measured on the data that validates the student. None and NaN never end
            distillation.
        higher_is_better: direction of the metric: True for accuracy, False for a loss or FID.
        margin: how much better the student must be, in the metric's unit.
        patience: number of consecutive validations at which it must be better.

    Raises:
        ValueError: the margin is negative, or the patience is below 1.
    """

    teacher_value: float | None
    higher_is_better: bool
    margin: float = 0.0
    patience: int = 2

    def __post_init__(self) -> None:
        if self.margin < 0 or self.patience < 1:
            raise ValueError(f"margin={self.margin} must be at least 0, patience={self.patience} at least 1")

    def is_surpassed_by(self, student_value: float) -> bool:
        """Return whether the student is better by strictly more than the margin; False for NaN."""
        if self.teacher_value is None:
            return False
        if self.higher_is_better:
            return student_value > self.teacher_value + self.margin
        return student_value < self.teacher_value - self.margin


class DistillSchedule:
    """Distillation weight over time: linear warm-up, hold, linear decay. It stays 0 after the switch.

    Args:
        weight: peak of lambda.
        warmup_steps: optimizer steps over which lambda grows linearly from 0 to `weight`.
        hold_steps: steps at `weight`.
        decay_steps: steps over which lambda falls linearly from `weight` to 0.
        switch: ends distillation before the end of the decay; None disables this.

    Raises:
        ValueError: a length or the weight is negative.
    """

    def __init__(
        self, *, weight: float, warmup_steps: int, hold_steps: int, decay_steps: int, switch: Switch | None = None
    ):
        if min(weight, warmup_steps, hold_steps, decay_steps) < 0:
            raise ValueError(f"must not be negative: {weight=} {warmup_steps=} {hold_steps=} {decay_steps=}")
        self.weight = weight
        self.warmup_steps = warmup_steps
        self.hold_steps = hold_steps
        self.decay_steps = decay_steps
        self.switch = switch or Switch(None, higher_is_better=True)
        self.switched_off: SwitchedOff | None = None
        self._better_in_a_row = 0

    @property
    def end_step(self) -> int:
        """The first 0-based step after the decay."""
        return self.warmup_steps + self.hold_steps + self.decay_steps

    def phase_at(self, step: int) -> Phase:
        """Return the phase of the next step, given its 0-based number."""
        if self.switched_off is not None or step >= self.end_step:
            return Phase.OFF
        if step < self.warmup_steps:
            return Phase.WARM_UP
        return Phase.HOLD if step < self.warmup_steps + self.hold_steps else Phase.DECAY

    def weight_at(self, step: int) -> float:
        """Return lambda of the next step, in [0, weight], given its 0-based number. A warm-up starts at 0."""
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
        """End distillation if `steps_done` steps complete the schedule. Return the event once, otherwise None."""
        if self.switched_off is not None or steps_done < self.end_step:
            return None
        return self._switch_off(steps_done, "ended", None)

    def observe(self, steps_done: int, student_value: float) -> SwitchedOff | None:
        """End distillation if this validation satisfies the switch. Return the event once, otherwise None.

        Args:
            steps_done: number of optimizer steps taken before the validation.
            student_value: the student's metric.
        """
        if self.switched_off is not None or steps_done >= self.end_step:
            return self.finish_step(steps_done)  # for loops that never call it themselves
        self._better_in_a_row = self._better_in_a_row + 1 if self.switch.is_surpassed_by(student_value) else 0
        if self._better_in_a_row < self.switch.patience:
            return None
        return self._switch_off(steps_done, "surpassed", student_value)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that an identical schedule needs to resume, as plain values."""
        return {
            "better_in_a_row": self._better_in_a_row,
            "switched_off": None if self.switched_off is None else asdict(self.switched_off),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the result of `state_dict`."""
        self._better_in_a_row = state["better_in_a_row"]
        self.switched_off = None if state["switched_off"] is None else SwitchedOff(**state["switched_off"])

    def _switch_off(self, step: int, reason: Literal["surpassed", "ended"], student: float | None) -> SwitchedOff:
        self.switched_off = SwitchedOff(step, reason, student, self.switch.teacher_value, self.switch.patience)
        return self.switched_off
