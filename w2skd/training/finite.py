"""Non-finite gradients, survived without asking the device: the update is suppressed there, and reported later."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from w2skd.platform.ranks import Ranks
from w2skd.records.rows import EventRow
from w2skd.training.precision import LOWEST_SCALE, LossScale


@dataclass(frozen=True)
class BadStep:
    """A step whose update was suppressed, and the training examples that were in it."""

    step: int
    ids: list[int]


class _Checked(NamedTuple):
    """A step that is yet to be reported; the scale is the one that its loss had."""

    step: int
    found_inf: Tensor
    ids: Sequence[Tensor]
    scale: Tensor | None


class FiniteGuard:
    """Flags steps with a non-finite gradient, and keeps what they leave behind out of the modules' buffers.

    A suppressed update leaves weights and optimizer as they were, but the forward before it has already gone into
    BatchNorm's running statistics, where one NaN stays for ever. So they go back to where the last report without a bad
    step left them.

    Under a loss scale an overflow is how the scale is found: as long as it has room to fall, a suppressed step is not a
    bad one. A loss that no scale can mend has it down at its lowest within some twenty steps, and counts from then on.

    Args:
        modules: those whose floating-point buffers a bad step can spoil, such as student and averaged student. They
            are as they should be now.
        max_non_finite_steps: so many bad steps in a row are borne.
        loss_scale: what multiplies the gradients, if anything does.

    Attributes:
        in_a_row: the bad steps that came last, as of the last report.
        exceeded: whether more than `max_non_finite_steps` came in a row by the last report.
        rescaled_steps: how many steps of the last report were suppressed for the sake of a lower loss scale.
    """

    def __init__(self, modules: Sequence[nn.Module], max_non_finite_steps: int, loss_scale: LossScale | None = None):
        assert max_non_finite_steps >= 1, max_non_finite_steps
        self._modules = modules
        self._max_non_finite_steps = max_non_finite_steps
        self._loss_scale = loss_scale
        self._pending: list[_Checked] = []
        self._clean = self._copy_buffers()
        self.in_a_row = 0
        self.exceeded = False
        self.rescaled_steps = 0

    def check(self, step: int, gradient_norm: Tensor, ids: Sequence[Tensor]) -> Tensor:
        """Return 1.0 if the step's update must be suppressed, else 0.0, without waiting for the device.

        Args:
            step: number of the step, for the report.
            gradient_norm: 0-d, over all parameters, without the loss scale, after the reduction over ranks: then all
                ranks agree, also on a loss that is NaN on one of them.
            ids: int64 [N] of each micro-batch; not to be changed in place before the next report.

        Returns:
            0-d float32 on the norm's device, for `take_step`.
        """
        assert gradient_norm.ndim == 0, gradient_norm.shape
        found_inf = torch.isfinite(gradient_norm.detach()).logical_not().float()
        scale = None if self._loss_scale is None else self._loss_scale.value
        self._pending.append(_Checked(step, found_inf, tuple(ids), scale))
        return found_inf

    def report(self) -> list[BadStep]:
        """Return the bad steps since the last report, and mend the buffers if there were any.

        Waits for the device, once if all steps were good. Call it where a row is logged, and before the weights are
        evaluated or saved.
        """
        self.rescaled_steps = 0
        if not self._pending:
            return []
        flags = torch.stack([checked.found_inf for checked in self._pending]).tolist()
        bad = []
        for checked, flag in zip(self._pending, flags, strict=True):
            mends = bool(flag) and checked.scale is not None and checked.scale.item() > LOWEST_SCALE
            self.rescaled_steps += mends
            self.in_a_row = self.in_a_row + 1 if flag and not mends else 0
            self.exceeded = self.exceeded or self.in_a_row > self._max_non_finite_steps
            if flag and not mends:
                bad.append(BadStep(checked.step, [example for part in checked.ids for example in part.tolist()]))
        self._pending.clear()
        # Gradients overflow more often than the forward pass that the buffers come from.
        if bad or (self.rescaled_steps and not all(bool(buffer.isfinite().all()) for buffer in self._buffers())):
            self._restore_buffers()
        else:
            self._clean = self._copy_buffers()
        return bad

    def events(self, step: int, bad_steps: Sequence[BadStep], ranks: Ranks) -> Iterator[EventRow]:
        """What the records say of the last report, made at `step`, with the bad steps' examples on all ranks."""
        if self.rescaled_steps:
            assert self._loss_scale is not None
            assert self._loss_scale.value is not None
            details = {"skipped_steps": self.rescaled_steps, "loss_scale": self._loss_scale.value.item()}
            yield EventRow(step, "rescaled", details)
        if bad_steps:
            everywhere = [pair for pairs in ranks.gather([(bad.step, bad.ids) for bad in bad_steps]) for pair in pairs]
            steps = sorted({bad for bad, _ in everywhere})
            ids = [example for _, examples in everywhere for example in examples]
            yield EventRow(step, "non_finite", {"steps": steps, "ids": ids})

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


def take_step(optimizer: Optimizer, found_inf: Tensor, loss_scale: Tensor | None = None) -> None:
    """Let a fused optimizer update its parameters, unless `found_inf` (0-d float32 on their device) is 1.

    A suppressed step leaves parameters, moments and step counters bit for bit as they were; no host waits for it. The
    gradients are divided by `loss_scale` (0-d float32) in passing. This is how `torch.amp.GradScaler` drives fused
    optimizers.
    """
    assert all(group["fused"] for group in optimizer.param_groups), "only fused optimizers can suppress a step"
    if isinstance(optimizer, SGD):
        _start_momentum(optimizer)
    optimizer.found_inf, optimizer.grad_scale = found_inf, loss_scale  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]


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
