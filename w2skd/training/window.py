"""Means of what the steps between two log rows gave."""

from collections.abc import Mapping

import torch
from torch import Tensor

from w2skd.platform.ranks import Ranks


class Window:
    """Running sums on the device, which reach the host only when somebody asks for the means."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one micro-batch's named scalars. A name may come and go: its mean is over the times it came."""
        for name, value in values.items():
            summed = self._sums.get(name)
            # A copy in float32, since the sum is updated in place and bf16 would swallow small terms.
            self._sums[name] = value.detach().float().clone() if summed is None else summed.add_(value.detach())
            self._counts[name] = self._counts.get(name, 0) + 1

    def take_means(self, ranks: Ranks) -> dict[str, float]:
        """The means over micro-batches and ranks, with one synchronisation; the window is empty afterwards."""
        if not self._sums:
            return {}
        sums = ranks.sum_(torch.stack(list(self._sums.values()))).tolist()
        means = {name: value / self._counts[name] / ranks.world for name, value in zip(self._sums, sums, strict=True)}
        self._sums, self._counts = {}, {}
        return means
