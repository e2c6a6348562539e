"""Alternating flip (Jordan 2024, arXiv 2404.00498): mirrored and unmirrored views of an image take turns.

With random flips an image shows the same side in two consecutive epochs half of the time. Here the first epoch draws
the side of each example, and each later epoch shows the other one.
"""

import torch
from torch import Tensor

from w2skd.data.counter import Counter, randint

_PURPOSE = 2**32
"""Last counter of the hash, beyond the counters of other augmentations."""


def is_mirrored(seed: int, epoch: int, example: Counter, repeat: Counter = 0) -> Tensor:
    """Return which examples to mirror in an epoch, a function of the counters only.

    Args:
        seed: seed of the augmentation.
        epoch: epoch, from 0.
        example: number of the example, or int64 of many.
        repeat: how often the example appeared earlier in its batch; repeats alternate, too.

    Returns:
        Bool in the shape of `example`, 0-d for an integer.
    """
    first = randint(2, seed, 0, example, _PURPOSE)
    turns = torch.as_tensor(repeat, device=first.device) + epoch
    return ((first + turns) % 2).bool()
