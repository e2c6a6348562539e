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


def build_average(model: nn.Module, section: EmaSection | None) -> AveragedModel | None:
    """An exponential moving average of a model's weights and running statistics, or None without a section."""
    if section is None:
        return None
    average = get_ema_multi_avg_fn(section.decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
