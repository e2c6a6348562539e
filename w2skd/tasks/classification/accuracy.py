"""Accuracy of a classifier: logits and labels in, numbers out.

Shape letters: N examples of the batch, C classes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TOP_K = 5


class Accuracy:
    """Adds up batches on their own device, without waiting for it.

    Of equal logits the one of the lower class ranks first. An example with any non-finite logit counts as wrong, and
    makes the loss NaN.

    Args:
        classes: C.
        device: where logits and labels are.

    Attributes:
        sums: float64 [3 + 2 C], to be summed in place over ranks: top-1 hits, top-k hits, cross-entropy, then hits and
            examples per class.
    """

    def __init__(self, classes: int, device: torch.device | str):
        assert classes >= 1, classes
        self.classes = classes
        # float64 counts exactly, and the order in which batches and ranks add up hardly shows in the loss.
        self.sums = torch.zeros(3 + 2 * classes, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits [N, C], any floating dtype; labels int64 [N] in 0..C-1.

        Raises:
            ValueError: the shapes do not fit.
        """
        if logits.ndim != 2 or logits.shape[1] != self.classes or labels.shape != logits.shape[:1]:
            raise ValueError(f"logits {list(logits.shape)} and labels {list(labels.shape)} of {self.classes} classes")
        logits = logits.float()
        finite = logits.isfinite().all(dim=1)
        rank = _rank_of_label(logits, labels)
        top1, topk = finite & (rank < 1), finite & (rank < TOP_K)
        losses = functional.cross_entropy(logits, labels, reduction="none").double()
        losses = torch.where(finite, losses, torch.nan)
        # A mask [N, C] instead of index_add_ or bincount, which deterministic mode refuses on CUDA.
        belongs = labels[:, None] == torch.arange(self.classes, device=labels.device)
        per_class = torch.cat([(belongs & top1[:, None]).sum(dim=0), belongs.sum(dim=0)])
        self.sums += torch.cat([torch.stack([top1.sum(), topk.sum(), losses.sum()]), per_class])

    def result(self) -> dict[str, float]:
        """``top1`` and ``top5`` (top C with fewer classes) as shares in 0..1, ``loss`` as mean cross-entropy in nats.

        NaN without examples.
        """
        sums = self.sums.cpu()
        top1, topk, loss = (sums[:3] / sums[3 + self.classes :].sum()).tolist()
        return {"top1": top1, "top5": topk, "loss": loss}

    def per_class(self) -> list[dict[str, Any]]:
        """One row a class: ``class``, ``examples``, and ``top1`` as share of them (NaN without any)."""
        sums = self.sums.cpu()
        hits, examples = sums[3 : 3 + self.classes], sums[3 + self.classes :]
        return [
            {"class": index, "examples": int(count), "top1": share}
            for index, (count, share) in enumerate(zip(examples.tolist(), (hits / examples).tolist(), strict=True))
        ]


def _rank_of_label(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the label's, int64 [N]; `topk` and `argmax` leave the order of ties open."""
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(dim=1)
