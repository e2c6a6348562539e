"""lambda(t) and the switch that ends distillation for good.

All of it is arithmetic on step numbers, without torch, so that it serves any training loop:

    schedule = DistillSchedule(weight=1.0, warmup_steps=100, hold_steps=3000, decay_steps=2000,
                               higher_is_better=True, teacher_value=0.709)
    ...
    weight = schedule.weight_at(step)           # 0 means: no need to ask the teacher
    ...
    schedule.observe(step + 1, accuracy)        # after a validation
"""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal


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
