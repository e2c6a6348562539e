"""Optimizers and weight averages, built from recipe sections."""

import math
import re
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from w2skd.recipe.schema import AdamWSection, EmaSection, SgdSection, TrainSection

_LEARNT_INPUT = re.compile(r"token|embed|bias|scale|gamma|beta", re.IGNORECASE)
"""Names of parameters that are no weights: ``class_token``, ``pos_embedding``, ``relative_position_bias_table``..."""


def build_optimizer(model: nn.Module, section: TrainSection) -> torch.optim.Optimizer:
    """Build the recipe's optimizer, fused: one kernel per step, which can skip an update without synchronisation."""
    groups = _groups(model, section.optimizer.decay_norms_and_biases)
    match section.optimizer:
        case SgdSection(lr=lr, momentum=momentum, weight_decay=decay, nesterov=nesterov):
            return torch.optim.SGD(groups, lr, momentum=momentum, weight_decay=decay, nesterov=nesterov, fused=True)
        case AdamWSection(lr=lr, betas=betas, eps=eps, weight_decay=decay):
            return torch.optim.AdamW(groups, lr, betas=betas, eps=eps, weight_decay=decay, fused=True)


def _groups(model: nn.Module, decay_norms_and_biases: bool) -> list[dict[str, Any]]:
    """Return one group with all parameters, or one with weight decay and one without, each in the model's order.

    Only matrices and filters decay: the weights, with two dimensions or more, of layers other than embeddings. Scales,
    offsets, biases, class tokens, position embeddings and tables of position biases do not, nor do parameters that the
    model lists in ``no_weight_decay()`` (timm's convention).
    """
    if decay_norms_and_biases:
        return [{"params": list(model.parameters())}]
    exempt: Collection[str] = getattr(model, "no_weight_decay", set)()
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    named = [
        (name, parameter, name in exempt or id(parameter) in embeddings or not _is_matrix(name, parameter))
        for name, parameter in model.named_parameters()
    ]
    return [
        {"params": [parameter for _, parameter, free in named if not free]},
        {"params": [parameter for _, parameter, free in named if free], "weight_decay": 0.0},
    ]


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter is a layer's matrix or filter, by its name and its dimensions longer than 1."""
    own_name = name.rpartition(".")[2]
    if own_name.endswith("weight"):
        return parameter.ndim >= 2
    return not _LEARNT_INPUT.search(own_name) and sum(side > 1 for side in parameter.shape) >= 2


class ExponentialAverage(AveragedModel):
    """`AveragedModel` that keeps its counter on the CPU, since copying it to the device would synchronise each step."""

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Average in the weights and running statistics after a step; the first update copies them."""
        ours, theirs = self.module.state_dict(), model.state_dict()
        begun = int(self.n_averaged) > 0  # on the CPU
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
    half_life = max(1, section.half_life.steps(steps_per_epoch, total_steps)) if section.half_life else math.inf
    ramp_up = math.inf if section.ramp_up is None else section.ramp_up

    def average(means: Any, weights: Any, updates: Tensor | int) -> None:
        decay = section.decay or 0.5 ** (1 / min(half_life, ramp_up * int(updates)))
        get_ema_multi_avg_fn(decay)(means, weights, updates)  # type: ignore[no-untyped-call]

    return ExponentialAverage(model, multi_avg_fn=average, use_buffers=True)
