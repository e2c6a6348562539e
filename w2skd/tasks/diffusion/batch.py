"""Micro-batches for denoising networks: clean images, to which the task adds noise."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImagesToNoise:
    """One micro-batch of n examples.

    Attributes:
        images: float32 [n, 3, S, S] in [-1, 1].
        labels: int64 [n], classes for class-conditional networks; None otherwise.
        ids: int64 [n], indices into the set.
    """

    images: Tensor
    labels: Tensor | None
    ids: Tensor

    @property
    def model_inputs(self) -> tuple[Tensor, ...]:
        """Arguments of a network's forward: images, timesteps and, if it is class-conditional, classes."""
        classes = () if self.labels is None else (self.labels,)
        return (self.images, torch.zeros_like(self.ids), *classes)

    def __len__(self) -> int:
        return len(self.ids)
