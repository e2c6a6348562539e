"""Batches whose images are mixed with one another: mixup and CutMix, on the device, for any feed.

The pixels themselves are mixed, so that a teacher sees what its student sees. Nothing is drawn from a generator that
lives on: what happens to a micro-batch is a function of (seed, step, slice).
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
    """Mix every image with that before it in its micro-batch, all of one micro-batch in the same way.

    With both kinds on, a micro-batch gets either with the same probability.

    Args:
        batches: not mixed yet; they are not changed.
        mixup: alpha of Beta(alpha, alpha), which gives the share of the image itself (Zhang et al. 2018, "mixup: Beyond
            empirical risk minimization"); 0 is off.
        cutmix: alpha of Beta(alpha, alpha), which gives the share of the area that stays before the box is cut off at
            the image's edges (Yun et al. 2019, "CutMix"); 0 is off.
        seed: of the draws.

    Yields:
        Batches with `partner_labels` and `share`; for CutMix that is the exact share of the pixels that stayed.
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
    # In this order, since the result has the memory format of the first, and on CUDA a rolled tensor loses its own.
    images = torch.lerp(batch.images, batch.images.roll(1, 0), 1 - share)
    return replace(batch, images=images, partner_labels=batch.labels.roll(1, 0), share=share)


def _cutmix(batch: LabelledImages, stays: float, draw: Random) -> LabelledImages:
    height, width = batch.images.shape[2:]
    top, bottom = _cut(height, stays, draw)
    left, right = _cut(width, stays, draw)
    images = batch.images.clone()
    images[:, :, top:bottom, left:right] = batch.images[:, :, top:bottom, left:right].roll(1, 0)
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return replace(batch, images=images, partner_labels=batch.labels.roll(1, 0), share=share)


def _cut(size: int, stays: float, draw: Random) -> tuple[int, int]:
    """One side of a box of area 1 - `stays`, centred on any pixel, as far as it lies inside."""
    side = round(size * sqrt(1 - stays))
    start = draw.randrange(size) - side // 2
    return max(0, start), min(size, start + side)
