"""From the recipe's words to torch's optimizers and weight averages."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from w2skd.recipe.schema import AdamWSection, EmaSection, SgdSection, TrainSection


def build_optimizer(model: nn.Module, section: TrainSection) -> torch.optim.Optimizer:
    """The recipe's optimizer, fused: one kernel a step, and able to skip an update without asking the host."""
    groups = _groups(model, section.optimizer.decay_norms_and_biases)
    match section.optimizer:
        case SgdSection(lr=lr, momentum=momentum, weight_decay=decay, nesterov=nesterov):
            return torch.optim.SGD(groups, lr, momentum=momentum, weight_decay=decay, nesterov=nesterov, fused=True)
        case AdamWSection(lr=lr, betas=betas, eps=eps, weight_decay=decay):
            return torch.optim.AdamW(groups, lr, betas=betas, eps=eps, weight_decay=decay, fused=True)


def _groups(model: nn.Module, decay_norms_and_biases: bool) -> list[dict[str, Any]]:
    """One group of all parameters, or two: those that decay, then those that don't, each in the model's order.

    Scales, offsets and biases have fewer than two dimensions. What else should not decay, such as the position
    embedding of a ViT, the model names in ``no_weight_decay()`` if it has one (timm's convention).
    """
    if decay_norms_and_biases:
        return [{"params": list(model.parameters())}]
    exempt: Collection[str] = getattr(model, "no_weight_decay", set)()
    named = [(name, parameter, parameter.ndim < 2 or name in exempt) for name, parameter in model.named_parameters()]
    return [
        {"params": [parameter for _, parameter, free in named if not free]},
        {"params": [parameter for _, parameter, free in named if free], "weight_decay": 0.0},
    ]


class ExponentialAverage(AveragedModel):
    """torch's average, without its copy of a counter to the device, for which the host would wait at every step."""

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights and running statistics after a step; the first time they are taken as they are."""
        ours, theirs = self.module.state_dict(), model.state_dict()
        begun = int(self.n_averaged) > 0  # a counter that stays on the CPU
        mean = [name for name, value in ours.items() if begun and value.is_floating_point()]
        if mean:
            assert self.multi_avg_fn is not None
            self.multi_avg_fn([ours[name] for name in mean], [theirs[name] for name in mean], self.n_averaged)
        for name in ours.keys() - set(mean):
            ours[name].copy_(theirs[name])
        self.n_averaged += 1


def build_average(
    model: nn.Module, section: EmaSection | None, steps_per_epoch: int, total_steps: int
) -> AveragedModel | None:
    """Return an exponential moving average of a model's weights and running statistics, or None without a section.

    Args:
        model: the model to average.
        section: the recipe's ``ema`` section.
        steps_per_epoch: optimizer steps per epoch; converts a half-life in epochs.
        total_steps: length of the run in optimizer steps; converts a half-life given as a share of the run.
    """
    if section is None:
        return None
    decay_at = _decay(section, steps_per_epoch, total_steps)

    def average(means: Any, weights: Any, updates: Tensor | int) -> None:
        get_ema_multi_avg_fn(decay_at(int(updates)))(means, weights, updates)  # type: ignore[no-untyped-call]

    return ExponentialAverage(model, multi_avg_fn=average, use_buffers=True)


def _decay(section: EmaSection, steps_per_epoch: int, total_steps: int) -> Callable[[int], float]:
    """What an update keeps of the average, by the number of updates before it: 0.5 ** (1 / half-life)."""
    if section.decay is not None:
        decay = section.decay
        return lambda _: decay
    assert section.half_life is not None
    half_life = max(1, section.half_life.steps(steps_per_epoch, total_steps))
    ramp_up = section.ramp_up
    return lambda updates: 0.5 ** (1 / (half_life if ramp_up is None else min(half_life, ramp_up * updates)))
