"""Micro-batches of labelled images."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """One micro-batch of n examples.

    Attributes:
        images: float32 [n, 3, H, W], normalised.
        labels: int64 [n].
        ids: int64 [n], indices into the set.
        step: global optimizer step; 0 outside training.
        slice: index of the micro-batch in the step's batch, over all ranks; 0 outside training.
        partner_labels: int64 [n], labels of the images that are mixed in; None without mixing.
        share: weight of `labels`, from 0 to 1; `partner_labels` has the weight 1 - `share`.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    step: int
    slice: int = 0
    partner_labels: Tensor | None = None
    share: float = 1.0

    @property
    def model_inputs(self) -> tuple[Tensor]:
        """Arguments of a classifier's forward."""
        return (self.images,)

    def __len__(self) -> int:
        return len(self.labels)
