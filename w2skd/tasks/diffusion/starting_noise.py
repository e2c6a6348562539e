"""Starting noise of generated images."""

import torch
from torch import Tensor

from w2skd.data.counter import normal


def starting_noise(seed: int, ids: Tensor, size_px: int) -> Tensor:
    """Draw the standard normal noise of samples, a function of seed, id and size only.

    It is drawn on the CPU, so that samples start from the same noise on every device.

    Args:
        seed: seed of the sampler.
        ids: int64 [n], ids of the samples.
        size_px: S, side of an image.

    Returns:
        float32 [n, 3, S, S] on the CPU.
    """
    places = torch.arange(3 * size_px**2)
    return normal(seed, ids.cpu()[:, None], places).view(len(ids), 3, size_px, size_px)
