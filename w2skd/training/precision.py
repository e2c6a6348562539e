"""The loss scale that float16 gradients need."""

from typing import Any

import torch
from torch import Tensor

FIRST_SCALE, LOWEST_SCALE, HIGHEST_SCALE = 2.0**16, 1.0, 2.0**24
GROWTH_STEPS = 2000


class LossScale:
    """Factor of the loss, and so of all gradients, that keeps small gradients from underflowing in float16.

    Its rule is that of `torch.amp.GradScaler` (Micikevicius et al. 2018, "Mixed precision training"): it starts at
    2^16, halves when a gradient overflows (that step's update is suppressed) and doubles after 2000 steps without
    overflow. It stays in [1, 2^24]. The factor is a tensor on the device, so it needs no synchronisation; the fused
    optimizer divides the gradients by it in its own kernel.

    Args:
        device: device of the losses.
        enabled: False for other precisions than float16; then nothing is scaled.

    Attributes:
        value: 0-d float32 on the device, or None if disabled. It is replaced, never changed in place.
    """

    def __init__(self, device: torch.device, *, enabled: bool):
        self.value: Tensor | None = torch.full((), FIRST_SCALE, device=device) if enabled else None
        self._good_steps = torch.zeros((), device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss to call `backward` on."""
        return loss if self.value is None else loss * self.value

    def unscaled(self, norm: Tensor) -> Tensor:
        """Return the norm of the unscaled gradients, 0-d, given that of the scaled ones."""
        return norm if self.value is None else norm / self.value

    def update(self, found_inf: Tensor) -> None:
        """Adapt the scale after a step. `found_inf`, 0-d float32, is 1 if its update was suppressed, else 0."""
        if self.value is None:
            return
        good_steps = (self._good_steps + 1) * (1 - found_inf)
        grows = (good_steps >= GROWTH_STEPS).float()
        self.value = (self.value * (1 + grows - found_inf / 2)).clamp(LOWEST_SCALE, HIGHEST_SCALE)
        self._good_steps = good_steps * (1 - grows)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the state that a resume needs, or None if disabled. Synchronises with the device."""
        if self.value is None:
            return None
        return {"scale": self.value.item(), "good_steps": int(self._good_steps.item())}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Resume from the result of `state_dict`; None keeps the initial scale."""
        if self.value is not None and state is not None:
            self.value = torch.full_like(self.value, state["scale"])
            self._good_steps = torch.full_like(self._good_steps, state["good_steps"])
