"""Alternating flip (Jordan 2024, arXiv 2404.00498): an image is mirrored in every second epoch.

Random flips show the same side of an image in two consecutive epochs half of the time. Here the first epoch draws the
side of each example, and each later epoch shows the other side.
"""

import torch
from torch import Tensor

from w2skd.data.counter import Counter, randint

_PURPOSE = 2**32
"""Last counter of the hash. Other augmentations use smaller counters."""


def is_mirrored(seed: int, epoch: int, example: Counter, repeat: Counter = 0) -> Tensor:
    """Return which examples to mirror in an epoch. The result depends on the arguments only.

    Args:
        seed: seed of the augmentation.
        epoch: epoch, from 0.
        example: id of the example, or an int64 tensor of ids.
        repeat: how often the example appeared earlier in its batch; repeats alternate as well.

    Returns:
        Bool in the shape of `example`, 0-d for an integer.
    """
    first = randint(2, seed, 0, example, _PURPOSE)
    turns = torch.as_tensor(repeat, device=first.device) + epoch
    return ((first + turns) % 2).bool()
