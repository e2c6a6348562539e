"""Models whose initial weights depend on the training images."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class DataDependent(Protocol):
    """A model that sets some of its initial weights from training images; plug-ins may implement it, too."""

    def initialize_from(self, images: Tensor) -> None:
        """Set weights from images, without drawing from torch's generators.

        Called once on the CPU before training from scratch. The weights must be part of the state dict, because loaded
        weights and resumed runs skip this.

        Args:
            images: float32 [N, 3, H, W] on the CPU, normalised, without augmentation, spread over the training set.
        """
        ...
