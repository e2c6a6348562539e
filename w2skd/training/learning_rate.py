"""Learning-rate schedules, as arithmetic on step numbers."""

import math

from w2skd.recipe.duration import Duration
from w2skd.recipe.train import (
    ConstantSection,
    CosineSection,
    LrScheduleSection,
    MultiStepSection,
    OneCycleSection,
    TriangularSection,
    WsdSection,
)


def lr_factor(section: LrScheduleSection, step: int, *, steps_per_epoch: int, total_steps: int) -> float:
    """Return the factor of the recipe's learning rate at a 0-based step, in [0, 1].

    A linear warm-up multiplies step `s` by ``(s + 1) / warmup_steps``. After the last step of the run the factor stays
    constant.
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
        case WsdSection():
            cooldown_steps = in_steps(section.cooldown)
            progress = _progress(step - (total_steps - cooldown_steps), cooldown_steps)
            return warmup * (1 - (math.sqrt(progress) if section.shape == "sqrt" else progress))
        case CosineSection():
            if step < warmup_steps:
                return warmup
            return _half_cosine(1.0, section.final_ratio, step - warmup_steps, total_steps - warmup_steps)
        case OneCycleSection() | TriangularSection():
            # As in torch's OneCycleLR, the warm-up's last step has the peak and the run's last step the minimum.
            interpolate = _half_cosine if isinstance(section, OneCycleSection) else _line
            peak = max(warmup_steps - 1, 0)
            if step < peak:
                return interpolate(section.initial_ratio, 1.0, step, peak)
            return interpolate(1.0, section.final_ratio, step - peak, total_steps - 1 - peak)


def _half_cosine(start: float, end: float, step: int, steps: int) -> float:
    """Interpolate along half a cosine from `start` at step 0 to `end` at step `steps`; stay at `end` afterwards."""
    return end + (start - end) * (1 + math.cos(math.pi * _progress(step, steps))) / 2


def _line(start: float, end: float, step: int, steps: int) -> float:
    """Interpolate linearly from `start` at step 0 to `end` at step `steps`; stay at `end` afterwards."""
    return start + (end - start) * _progress(step, steps)


def _progress(step: int, steps: int) -> float:
    return min(1.0, max(0.0, step / steps)) if steps > 0 else float(step > 0)
