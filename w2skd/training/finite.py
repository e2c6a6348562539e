"""Handling of non-finite gradients without host-device synchronisation.

The update is suppressed on the device; the step is reported later.
"""

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
    """A step with a suppressed update, and the ids of its training examples."""

    step: int
    ids: list[int]


class _Checked(NamedTuple):
    """A step that is not reported yet; `scale` is the loss scale that it used."""

    step: int
    found_inf: Tensor
    ids: Sequence[Tensor]
    scale: Tensor | None


class FiniteGuard:
    """Flags steps with a non-finite gradient, and removes their traces from the modules' buffers.

    A suppressed update leaves weights and optimizer unchanged, but the step's forward pass has already updated
    BatchNorm's running statistics, where a NaN would stay forever. The guard therefore restores the statistics of the
    last report without a bad step.

    With a loss scale, overflows are expected: a suppressed step is bad only at the lowest scale. A loss that is
    non-finite at every scale brings it down there within about twenty steps.

    Args:
        modules: modules whose floating-point buffers a bad step can spoil, such as the student and its average. Their
            present buffers must be finite.
        max_non_finite_steps: accepted number of bad steps in a row.
        loss_scale: scale of the gradients; it may be disabled.

    Attributes:
        in_a_row: number of most recent steps that were bad, as of the last report.
        exceeded: whether more than `max_non_finite_steps` steps in a row were bad, in any report so far.
        rescaled_steps: number of steps in the last report that only lowered the loss scale.
    """

    def __init__(self, modules: Sequence[nn.Module], max_non_finite_steps: int, loss_scale: LossScale):
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
        """Return 1.0 if the step's update must be suppressed, else 0.0, without synchronisation.

        Args:
            step: number of the step, for the report.
            gradient_norm: 0-d norm over all parameters, without the loss scale and after the reduction over ranks, so
                that all ranks agree even if the loss is NaN on one of them.
            ids: int64 [N] of each micro-batch; must not change in place before the next report.

        Returns:
            0-d float32 on the norm's device, for `take_step`.
        """
        assert gradient_norm.ndim == 0, gradient_norm.shape
        norm = gradient_norm.detach()
        # The difference is 0, or NaN for infinity and NaN. `isfinite` takes three times as many kernels.
        found_inf = (norm - norm).ne_(0).float()
        self._pending.append(_Checked(step, found_inf, tuple(ids), self._loss_scale.value))
        return found_inf

    def report(self) -> list[BadStep]:
        """Return the bad steps since the last report, and restore the buffers if there were any.

        Synchronises with the device, once if all steps were good. Call it where a row is logged, and before the
        weights are evaluated or saved.
        """
        self.rescaled_steps = 0
        if not self._pending:
            return []
        flags = torch.stack([checked.found_inf for checked in self._pending]).tolist()
        bad = []
        for checked, flag in zip(self._pending, flags, strict=True):
            rescaled = bool(flag) and checked.scale is not None and checked.scale.item() > LOWEST_SCALE
            self.rescaled_steps += rescaled
            self.in_a_row = self.in_a_row + 1 if flag and not rescaled else 0
            self.exceeded = self.exceeded or self.in_a_row > self._max_non_finite_steps
            if flag and not rescaled:
                bad.append(BadStep(checked.step, [example for part in checked.ids for example in part.tolist()]))
        self._pending.clear()
        # A rescaled step need not have spoilt the buffers: gradients overflow more often than the forward pass.
        if bad or (self.rescaled_steps and not all(bool(buffer.isfinite().all()) for buffer in self._buffers())):
            with torch.no_grad():
                for buffer, clean in zip(self._buffers(), self._clean, strict=True):
                    buffer.copy_(clean)
        else:
            self._keep_buffers()
        return bad

    def events(self, step: int, bad_steps: Sequence[BadStep], ranks: Ranks) -> Iterator[EventRow]:
        """Yield the events of the last report, which was made at `step`, with the examples of all ranks."""
        if self.rescaled_steps:
            assert self._loss_scale.value is not None
            details = {"skipped_steps": self.rescaled_steps, "loss_scale": self._loss_scale.value.item()}
            yield EventRow(step, "rescaled", details)
        if bad_steps:
            everywhere = [pair for pairs in ranks.gather([(bad.step, bad.ids) for bad in bad_steps]) for pair in pairs]
            ids = [example for _, examples in everywhere for example in examples]
            yield EventRow(step, "non_finite", {"steps": sorted({bad for bad, _ in everywhere}), "ids": ids})

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resume needs. Call it right after a report."""
        assert not self._pending, f"{len(self._pending)} steps were not reported"
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the result of `state_dict`, after the modules have been restored."""
        self.in_a_row = state["in_a_row"]
        self._clean = self._copy_buffers()

    def _keep_buffers(self) -> None:
        present = self._buffers()
        if [kept.shape for kept in self._clean] != [buffer.shape for buffer in present]:  # a module replaced them
            self._clean = self._copy_buffers()
        elif present:
            torch._foreach_copy_(self._clean, present)

    def _copy_buffers(self) -> list[Tensor]:
        return [buffer.detach().clone() for buffer in self._buffers()]

    def _buffers(self) -> list[Tensor]:
        return [buffer for module in self._modules for buffer in module.buffers() if buffer.is_floating_point()]


def take_step(optimizer: Optimizer, found_inf: Tensor, loss_scale: Tensor | None = None) -> None:
    """Update the parameters with a fused optimizer, without synchronisation, as `torch.amp.GradScaler` does.

    Args:
        optimizer: fused optimizer.
        found_inf: 0-d float32 on the parameters' device; 1 suppresses the update, so that parameters, moments and step
            counters stay the same bit for bit.
        loss_scale: 0-d float32 that the gradients are divided by, or None.
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
    """Create missing momentum buffers as zeros.

    Fused SGD allocates them uninitialised and its first step fills them, unless that step is suppressed. With zeros,
    the first step computes the same momentum, namely the gradient, as long as there is no dampening.
    """
    if len(optimizer.state) == sum(len(group["params"]) for group in optimizer.param_groups):
        return  # all momentum buffers exist
    for group in optimizer.param_groups:
        if group["momentum"] == 0:
            continue
        assert group["dampening"] == 0, f"dampening {group['dampening']} would change the first step"
        for parameter in group["params"]:
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.grad)
