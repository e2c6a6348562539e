"""Optimizers and weight averages, built from recipe sections."""

import math
import re
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from w2skd.recipe.train import AdamWSection, EmaSection, SgdSection, TrainSection

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
    """`AveragedModel` whose update takes few kernels and little host time, and does not synchronise.

    The tensors of both models are looked up once instead of in two state dicts per step, and each tensor is averaged
    once, even if the model uses it under several names. The counter stays on the CPU.
    """

    def __init__(self, model: nn.Module, average: Any):
        super().__init__(model, multi_avg_fn=average, use_buffers=True)
        self._pairs: _Pairs | None = None

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Average in the weights and running statistics after a step; the first update copies them."""
        if self._pairs is None or self._pairs.model is not model:
            self._pairs = _Pairs(self.module, model)
        means, values, copies, originals = self._pairs.tensors()
        if int(self.n_averaged) == 0:  # on the CPU
            torch._foreach_copy_(means, values)
        elif means:
            assert self.multi_avg_fn is not None
            self.multi_avg_fn(means, values, self.n_averaged)
        if copies:
            torch._foreach_copy_(copies, originals)
        self.n_averaged += 1


class _Pairs:
    """The persistent tensors of an average, each with its counterpart in the model.

    Buffers are looked up at every step, because a module may replace them; parameters are not, as in an optimizer.

    Args:
        average: the averaged copy of `model`.
        model: the model in training.
    """

    def __init__(self, average: nn.Module, model: nn.Module):
        self.model = model
        parameters = list(zip(average.parameters(), model.parameters(), strict=True))
        floating = [pair for pair in parameters if pair[0].is_floating_point()]
        others = [pair for pair in parameters if not pair[0].is_floating_point()]
        self._means: list[Tensor] = [mean for mean, _ in floating]
        self._values: list[Tensor] = [value for _, value in floating]
        self._copies: list[Tensor] = [copy for copy, _ in others]
        self._originals: list[Tensor] = [original for _, original in others]
        self._buffers = list[tuple[dict[str, Any], dict[str, Any], str]]()
        self._counters = list[tuple[dict[str, Any], dict[str, Any], str]]()
        met = set[int]()
        for ours, theirs in zip(average.modules(), model.modules(), strict=True):
            for name, buffer in ours._buffers.items():
                if buffer is not None and name not in ours._non_persistent_buffers_set and id(buffer) not in met:
                    met.add(id(buffer))
                    places = self._buffers if buffer.is_floating_point() else self._counters
                    places.append((ours._buffers, theirs._buffers, name))

    def tensors(self) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Return the means with their values, then the tensors that are not floating-point with theirs."""
        means = [*self._means, *(ours[name] for ours, _, name in self._buffers)]
        values = [*self._values, *(theirs[name] for _, theirs, name in self._buffers)]
        copies = [*self._copies, *(ours[name] for ours, _, name in self._counters)]
        originals = [*self._originals, *(theirs[name] for _, theirs, name in self._counters)]
        return means, values, copies, originals


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

    return ExponentialAverage(model, average)
