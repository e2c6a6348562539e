"""Lower precision for speed: autocast in forward passes, and the loss scale that float16's gradients need."""

from typing import Any

import torch
from torch import Tensor

FIRST_SCALE, LOWEST_SCALE, HIGHEST_SCALE = 2.0**16, 1.0, 2.0**24
GROWTH_STEPS = 2000


class LossScale:
    """Multiplies the loss, and so all gradients, to keep small ones above float16's underflow.

    The factor starts at 2^16, halves when it made a gradient overflow (that step's update is suppressed) and doubles
    after 2000 steps without: the rule of `torch.amp.GradScaler` (Micikevicius et al. 2018, "Mixed precision training").
    It stays between 1, where the gradients are what they would be without it, and 2^24. It lives on the device, so no
    host waits for it; gradients stay scaled until the fused optimizer divides them, in the kernel that it runs anyway.

    Args:
        device: of the losses.
        enabled: False for precisions that need none; then everything is the identity.

    Attributes:
        value: 0-d float32 on the device; None where there is none. Replaced, never changed in place.
    """

    def __init__(self, device: torch.device, *, enabled: bool):
        self.value: Tensor | None = torch.full((), FIRST_SCALE, device=device) if enabled else None
        self._good_steps = torch.zeros((), device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to call `backward` on."""
        return loss if self.value is None else loss * self.value

    def unscaled(self, norm: Tensor) -> Tensor:
        """The norm that the gradients would have without the scale, 0-d, from the one that they have."""
        return norm if self.value is None else norm / self.value

    def update(self, found_inf: Tensor) -> None:
        """Follow the step that was taken: `found_inf`, 0-d float32, is 1 if its update was suppressed, else 0."""
        if self.value is None:
            return
        good_steps = (self._good_steps + 1) * (1 - found_inf)
        grows = (good_steps >= GROWTH_STEPS).float()
        self.value = (self.value * (1 + grows - found_inf / 2)).clamp(LOWEST_SCALE, HIGHEST_SCALE)
        self._good_steps = good_steps * (1 - grows)

    def state_dict(self) -> dict[str, Any] | None:
        """What a resume needs, which waits for the device; None where there is no scale."""
        if self.value is None:
            return None
        return {"scale": self.value.item(), "good_steps": int(self._good_steps.item())}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from `state_dict`, or from the first scale where a run had none."""
        if self.value is not None and state is not None:
            self.value = torch.full_like(self.value, state["scale"])
            self._good_steps = torch.full_like(self._good_steps, state["good_steps"])
