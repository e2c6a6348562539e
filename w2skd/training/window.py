"""Means of scalars over the steps between two log rows."""

from collections.abc import Mapping

import torch
from torch import Tensor

from w2skd.platform.ranks import Ranks


class Window:
    """Running sums on the device that reach the host only when the means are taken."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one micro-batch's named scalars. The mean of a name covers the micro-batches that have it."""
        for name, value in values.items():
            summed = self._sums.get(name)
            # A float32 copy: the sum is updated in place, and bf16 would lose small terms.
            self._sums[name] = value.detach().float().clone() if summed is None else summed.add_(value.detach())
            self._counts[name] = self._counts.get(name, 0) + 1

    def take_means(self, ranks: Ranks) -> dict[str, float]:
        """Return the means over micro-batches and ranks with one synchronisation, and empty the window."""
        if not self._sums:
            return {}
        sums = ranks.sum_(torch.stack(list(self._sums.values()))).tolist()
        means = {name: value / self._counts[name] / ranks.world for name, value in zip(self._sums, sums, strict=True)}
        self._sums, self._counts = {}, {}
        return means
