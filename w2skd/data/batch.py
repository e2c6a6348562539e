"""What every feed of classified images hands out."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """One micro-batch of n examples.

    Attributes:
        images: float32 [n, 3, H, W], normalised.
        labels: int64 [n].
        ids: int64 [n], indices into the set.
        step: the global optimizer step that it belongs to; 0 outside training.
        slice: which part of the step's batch it is, counted over all ranks and micro-batches; 0 outside training.
        partner_labels: int64 [n], labels of what is mixed into the images; None where nothing is.
        share: weight of `labels`, from 0 to 1; that of `partner_labels` is the rest to 1.
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
        """What a classifier's forward takes."""
        return (self.images,)

    def __len__(self) -> int:
        return len(self.labels)
