"""Mixup and CutMix within a micro-batch, on the device, for any feed.

The pixels themselves are mixed, so that teacher and student see the same input. The draws of a micro-batch are a
function of (seed, step, slice).
"""

from collections.abc import Iterator
from dataclasses import replace
from math import sqrt
from random import Random

import torch

from w2skd.data.batch import LabelledImages
from w2skd.data.counter import seed_from


def mix_batches(
    batches: Iterator[LabelledImages], *, mixup: float = 0.0, cutmix: float = 0.0, seed: int
) -> Iterator[LabelledImages]:
    """Mix each image with the previous one of its micro-batch, with the same parameters for the whole micro-batch.

    If both methods are enabled, each micro-batch uses one of them with equal probability.

    Args:
        batches: batches without mixing; they are not modified.
        mixup: alpha of Beta(alpha, alpha), the distribution of an image's own weight (Zhang et al. 2018, "mixup: Beyond
            empirical risk minimization"); 0 disables it.
        cutmix: alpha of Beta(alpha, alpha), the distribution of the area that an image keeps, before the pasted box is
            clipped to the image (Yun et al. 2019, "CutMix"); 0 disables it.
        seed: seed of the draws.

    Yields:
        Batches with `partner_labels` and `share`; for CutMix, the exact share of pixels that each image keeps.
    """
    assert mixup >= 0, f"mixup {mixup}"
    assert cutmix >= 0, f"cutmix {cutmix}"
    for batch in batches:
        draw = Random(seed_from(seed, batch.step, batch.slice))
        by_box = cutmix > 0 and (mixup == 0 or draw.random() < 0.5)
        if by_box:
            yield _cutmix(batch, draw.betavariate(cutmix, cutmix), draw)
        elif mixup > 0:
            yield _mixup(batch, draw.betavariate(mixup, mixup))
        else:
            yield batch


def _mixup(batch: LabelledImages, share: float) -> LabelledImages:
    # The result has the memory format of the first argument; on CUDA, a rolled tensor loses its own.
    images = torch.lerp(batch.images, batch.images.roll(1, 0), 1 - share)
    return replace(batch, images=images, partner_labels=batch.labels.roll(1, 0), share=share)


def _cutmix(batch: LabelledImages, kept: float, draw: Random) -> LabelledImages:
    height, width = batch.images.shape[2:]
    top, bottom = _cut(height, kept, draw)
    left, right = _cut(width, kept, draw)
    images = batch.images.clone()
    images[:, :, top:bottom, left:right] = batch.images[:, :, top:bottom, left:right].roll(1, 0)
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return replace(batch, images=images, partner_labels=batch.labels.roll(1, 0), share=share)


def _cut(size: int, kept: float, draw: Random) -> tuple[int, int]:
    """Draw start and end, along one axis, of a box of area 1 - `kept` with a random centre, clipped to the image."""
    side = round(size * sqrt(1 - kept))
    start = draw.randrange(size) - side // 2
    return max(0, start), min(size, start + side)
