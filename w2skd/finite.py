"""Non-finite gradients, survived without asking the device: the update is suppressed there, and reported later."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer


@dataclass(frozen=True)
class BadStep:
    """A step whose update was suppressed, and the training examples that were in it."""

    step: int
    ids: list[int]


class FiniteGuard:
    """Flags steps with a non-finite gradient, and keeps what they leave behind out of the modules' buffers.

    A suppressed update leaves weights and optimizer as they were, but the forward before it has already gone into
    BatchNorm's running statistics, where one NaN stays for ever. So they go back to where the last report without a bad
    step left them.

    Args:
        modules: those whose floating-point buffers a bad step can spoil, such as student and averaged student. They
            are as they should be now.
        max_non_finite_steps: so many bad steps in a row are borne.

    Attributes:
        in_a_row: the bad steps that came last, as of the last report.
        exceeded: whether more than `max_non_finite_steps` came in a row by the last report.
    """

    def __init__(self, modules: Sequence[nn.Module], max_non_finite_steps: int):
        assert max_non_finite_steps >= 1, max_non_finite_steps
        self._modules = modules
        self._max_non_finite_steps = max_non_finite_steps
        self._pending: list[tuple[int, Tensor, Sequence[Tensor]]] = []
        self._clean = self._copy_buffers()
        self.in_a_row = 0
        self.exceeded = False

    def check(self, step: int, gradient_norm: Tensor, ids: Sequence[Tensor]) -> Tensor:
        """Return 1.0 if the step's update must be suppressed, else 0.0, without waiting for the device.

        Args:
            step: number of the step, for the report.
            gradient_norm: 0-d, over all parameters, after the reduction over ranks: then all ranks agree, also on a
                loss that is NaN on one of them.
            ids: int64 [N] of each micro-batch; not to be changed in place before the next report.

        Returns:
            0-d float32 on the norm's device, for `take_step`.
        """
        assert gradient_norm.ndim == 0, gradient_norm.shape
        found_inf = torch.isfinite(gradient_norm.detach()).logical_not().float()
        self._pending.append((step, found_inf, tuple(ids)))
        return found_inf

    def report(self) -> list[BadStep]:
        """Return the bad steps since the last report, and mend the buffers if there were any.

        Waits for the device once. Call it where a row is logged, and before the weights are evaluated or saved.
        """
        if not self._pending:
            return []
        flags = torch.stack([found_inf for _, found_inf, _ in self._pending]).tolist()
        bad = [
            BadStep(step, [example for part in ids for example in part.tolist()])
            for (step, _, ids), flag in zip(self._pending, flags, strict=True)
            if flag
        ]
        for flag in flags:
            self.in_a_row = self.in_a_row + 1 if flag else 0
            self.exceeded = self.exceeded or self.in_a_row > self._max_non_finite_steps
        self._pending.clear()
        if bad:
            self._restore_buffers()
        else:
            self._clean = self._copy_buffers()
        return bad

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs, right after a report."""
        assert not self._pending, f"{len(self._pending)} steps were not reported"
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, with modules that are already restored."""
        self.in_a_row = state["in_a_row"]
        self._clean = self._copy_buffers()

    @torch.no_grad()
    def _copy_buffers(self) -> list[Tensor]:
        return [buffer.detach().clone() for buffer in self._buffers()]

    @torch.no_grad()
    def _restore_buffers(self) -> None:
        for buffer, clean in zip(self._buffers(), self._clean, strict=True):
            buffer.copy_(clean)

    def _buffers(self) -> list[Tensor]:
        return [buffer for module in self._modules for buffer in module.buffers() if buffer.is_floating_point()]


def take_step(optimizer: Optimizer, found_inf: Tensor) -> None:
    """Let a fused optimizer update its parameters, unless `found_inf` (0-d float32 on their device) is 1.

    A suppressed step leaves parameters, moments and step counters bit for bit as they were; no host waits for it. This
    is what `torch.amp.GradScaler` does with fused optimizers, without its scaling.
    """
    assert all(group["fused"] for group in optimizer.param_groups), "only fused optimizers can suppress a step"
    if isinstance(optimizer, SGD):
        _start_momentum(optimizer)
    optimizer.found_inf = found_inf  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


def _start_momentum(optimizer: SGD) -> None:
    """Give parameters that have none a momentum of zero.

    Fused SGD allocates its momentum uninitialised and leaves it to the first step to fill it, which a suppressed step
    doesn't do. From zero, the first step gets the same momentum: the gradient (without dampening).
    """
    for group in optimizer.param_groups:
        if group["momentum"] == 0:
            continue
        assert group["dampening"] == 0, f"dampening {group['dampening']} makes a first step unlike the others"
        for parameter in group["params"]:
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.grad)
