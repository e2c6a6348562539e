"""Accuracy of a classifier from its logits and the labels.

Shapes: N examples of the batch, C classes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TOP_K = 5


class Accuracy:
    """Accumulates batches on their device, without synchronising.

    Among equal logits the lower class index ranks first. An example with a non-finite logit counts as wrong and makes
    the loss NaN.

    Args:
        classes: C.
        examples: M, size of the evaluation set.
        device: device of logits and labels.

    Attributes:
        sums: float64 [2 + 2 C + M], to be summed in place over ranks: top-1 hits, top-k hits, top-1 hits and examples
            per class, then each example's cross-entropy. The losses are kept apart because a sum of sums depends on
            their order.
    """

    def __init__(self, classes: int, examples: int, device: torch.device | str):
        assert classes >= 1, classes
        self.classes = classes
        self.sums = torch.zeros(2 + 2 * classes + examples, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, ids: Tensor) -> None:
        """Add a batch.

        Args:
            logits: [N, C] of any floating dtype.
            labels: int64 [N] in 0..C-1.
            ids: int64 [N] in 0..M-1; each example is added once.

        Raises:
            ValueError: the shapes do not match.
        """
        if logits.ndim != 2 or logits.shape[1] != self.classes or labels.shape != logits.shape[:1]:
            raise ValueError(
                f"logits {list(logits.shape)} and labels {list(labels.shape)} do not match {self.classes} classes"
            )
        logits = logits.float()
        finite = logits.isfinite().all(dim=1)
        rank = _rank_of_label(logits, labels)
        top1, topk = finite & (rank < 1), finite & (rank < TOP_K)
        losses = functional.cross_entropy(logits, labels, reduction="none").double()
        losses = torch.where(finite, losses, torch.nan)
        # A mask [N, C], because deterministic mode rejects index_add_ and bincount on CUDA.
        belongs = labels[:, None] == torch.arange(self.classes, device=labels.device)
        per_class = torch.cat([(belongs & top1[:, None]).sum(dim=0), belongs.sum(dim=0)])
        counts = torch.cat([torch.stack([top1.sum(), topk.sum()]), per_class])
        self.sums[: len(counts)] += counts
        self.sums[len(counts) + ids] = losses

    def result(self) -> dict[str, float]:
        """Return ``top1`` and ``top5`` (top C with fewer classes) in 0..1 and ``loss``, the mean cross-entropy in nats.

        All are NaN without examples.
        """
        sums = self.sums.cpu()
        start = 2 + 2 * self.classes
        totals = torch.stack([sums[0], sums[1], sums[start:].sum()])
        top1, topk, loss = (totals / sums[2 + self.classes : start].sum()).tolist()
        return {"top1": top1, "top5": topk, "loss": loss}

    def per_class(self) -> list[dict[str, Any]]:
        """Return one row per class: ``class`` (index), ``examples``, and ``top1`` in 0..1 (NaN without examples)."""
        sums = self.sums.cpu()
        hits, examples = sums[2 : 2 + 2 * self.classes].chunk(2)
        return [
            {"class": index, "examples": int(count), "top1": share}
            for index, (count, share) in enumerate(zip(examples.tolist(), (hits / examples).tolist(), strict=True))
        ]


def _rank_of_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the rank of each label, int64 [N], from 0; `topk` and `argmax` leave the order of ties undefined."""
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(dim=1)
