"""From the recipe's words to torch's optimizers and weight averages."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from w2skd.recipe.schema import AdamWSection, EmaSection, SgdSection, TrainSection


def build_optimizer(model: nn.Module, section: TrainSection) -> torch.optim.Optimizer:
    """The recipe's optimizer, fused: one kernel a step, and able to skip an update without asking the host."""
    match section.optimizer:
        case SgdSection(lr=lr, momentum=momentum, weight_decay=decay, nesterov=nesterov):
            return torch.optim.SGD(
                model.parameters(), lr, momentum=momentum, weight_decay=decay, nesterov=nesterov, fused=True
            )
        case AdamWSection(lr=lr, betas=betas, eps=eps, weight_decay=decay):
            return torch.optim.AdamW(model.parameters(), lr, betas=betas, eps=eps, weight_decay=decay, fused=True)


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


def build_average(model: nn.Module, section: EmaSection | None) -> AveragedModel | None:
    """An exponential moving average of a model's weights and running statistics, or None without a section."""
    if section is None:
        return None
    average = get_ema_multi_avg_fn(section.decay)  # type: ignore[no-untyped-call]
    return ExponentialAverage(model, multi_avg_fn=average, use_buffers=True)
