"""What a denoising network learns from: clean images, to which the task adds noise."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImagesToNoise:
    """One micro-batch of n examples.

    Attributes:
        images: float32 [n, 3, S, S] in [-1, 1].
        labels: int64 [n], what the network is told of them; None where it is told nothing.
        ids: int64 [n], indices into the set.
    """

    images: Tensor
    labels: Tensor | None
    ids: Tensor

    @property
    def model_inputs(self) -> tuple[Tensor, ...]:
        """What a network's forward takes: images, timesteps, and the classes if it is told of any."""
        told = () if self.labels is None else (self.labels,)
        return (self.images, torch.zeros_like(self.ids), *told)

    def __len__(self) -> int:
        return len(self.ids)
