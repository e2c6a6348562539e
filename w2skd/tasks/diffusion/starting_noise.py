"""The noise that generated images start from."""

import torch
from torch import Tensor

from w2skd.data.counter import normal


def starting_noise(seed: int, ids: Tensor, size_px: int) -> Tensor:
    """Standard normal noise of samples, each a function of seed, id and size only.

    It is drawn on the CPU, so that samples on every device start from the same.

    Args:
        seed: of the sampler.
        ids: which samples, int64 [n].
        size_px: S, side of an image.

    Returns:
        float32 [n, 3, S, S] on the CPU.
    """
    places = torch.arange(3 * size_px**2)
    return normal(seed, ids.cpu()[:, None], places).view(len(ids), 3, size_px, size_px)
