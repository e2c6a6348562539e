"""Evaluation batches that make a score depend on the model and the data only.

Kernels round differently for different batch sizes, so the batches are cut from the whole set, never from a rank's
share of it, and all batches of images of one shape are equally long: the last is filled up with copies of an image,
whose outputs are dropped. So an output depends neither on ranks and data workers nor on the order of the set.
"""

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor


def equal_parts(indices: Sequence[int], most: int) -> list[Sequence[int]]:
    """Cut indices into the fewest parts of at most `most`, in order and equally long; the last may be shorter."""
    if not indices:
        return []
    size = part_size(len(indices), most)
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def part_size(count: int, most: int) -> int:
    """Return the length of the parts into which `equal_parts` cuts `count` indices."""
    return ceil(count / ceil(count / most))


def filled(rows: Tensor, size: int) -> Tensor:
    """Fill a batch [n, ...] up to [size, ...] with copies of its last row."""
    if len(rows) == size:
        return rows
    # The indices are created on the device, because the host would wait for the copy of a list.
    return rows[torch.arange(size, device=rows.device).clamp_(max=len(rows) - 1)]
