"""Frozen batch normalisation."""

from torch import nn


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with fixed running statistics and no trainable parameters, in train mode, too.

    Classifier backbones have statistics of large batches, which are better than those of a few large images per device
    (He et al. 2016, "Deep residual learning", appendix A). Unlike torchvision's `FrozenBatchNorm2d`, it has the state
    dict of the layer that it replaces and keeps its input's precision under autocast.
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "FrozenBatchNorm":
        """Stay in eval mode."""
        super().train(False)
        return self
