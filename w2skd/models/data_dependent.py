"""Models whose initial weights depend on the training images."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class DataDependent(Protocol):
    """A model that sets some of its initial weights from training images. Plug-in models may implement it as well."""

    def initialize_from(self, images: Tensor) -> None:
        """Set weights from images, without drawing from torch's generators.

        Called once on the CPU before training from scratch, but not if weights are loaded or a run resumes. The weights
        must therefore be part of the state dict.

        Args:
            images: float32 [N, 3, H, W] on the CPU, normalised, without augmentation, spread over the training set.
        """
        ...
