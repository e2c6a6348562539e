"""Batch normalisation that stays as it was loaded."""

from torch import nn


class FrozenBatchNorm(nn.BatchNorm2d):
    """Normalises by running statistics, in train mode too, and learns nothing.

    A backbone from a classifier brings statistics of large batches; those of a few large images per device are worse,
    so detectors keep the former (He et al. 2016, "Deep residual learning", appendix A). Unlike torchvision's class of
    that purpose it has the state dict of the batch normalisation that it stands for, and under autocast keeps its
    input's precision.
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "FrozenBatchNorm":
        """Stay in eval mode."""
        super().train(False)
        return self
