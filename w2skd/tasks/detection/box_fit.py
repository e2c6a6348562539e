"""Whether a detector can learn from the boxes of a data set: their sizes against its anchors, classes without boxes.

Shapes: M boxes; A anchors of one cell of a level.
"""

import torch
from torch import Tensor

from w2skd.tasks.detection.listing import CocoListing
from w2skd.tasks.detection.models.anchors import SMALLEST_PX, AnchorGrid
from w2skd.tasks.detection.transforms import DetectionTransform

_MATCH_IOU = 0.5
"""Overlap at which torchvision's detectors take an anchor or a proposal for the object."""

_ENOUGH = 0.95
"""Share of the boxes that should have a matching anchor."""

_THIN_PX = 2.0
"""Sides below this are hardly visible."""

_MOST = 20_000
"""Boxes that are compared with anchors, spread evenly over the set."""

_LISTED = 5
"""Maximum number of categories that a remark lists."""


def describe_boxes(listing: CocoListing, transform: DetectionTransform, grid: AnchorGrid) -> list[str]:
    """Describe what the training boxes mean for a detector, one line each, with what to set.

    Args:
        listing: the training set; has boxes.
        transform: resizes the images.
        grid: the detector's anchors.
    """
    boxes = _resized(listing, transform)
    chosen = boxes[torch.linspace(0, len(boxes) - 1, min(len(boxes), _MOST)).long()]
    overlaps = best_overlaps(chosen, grid)
    matched = float((overlaps >= _MATCH_IOU).double().mean())
    of = f"{len(chosen):,} of " * (len(chosen) < len(boxes))
    lines = [f"anchors: {matched:.1%} of {of}{len(boxes):,} training boxes overlap one by IoU {_MATCH_IOU} or more"]
    if matched < _ENOUGH:
        lines[0] += f" (the median box by {float(overlaps.median()):.2f}){_advice(chosen, grid, matched)}"
    thin = int((boxes[:, 2:] - boxes[:, :2]).amin(1).lt(_THIN_PX).sum())
    if thin:
        lines.append(
            f"{thin:,} of {len(boxes):,} training boxes are thinner than {_THIN_PX:g} px after resizing: "
            "set a larger data.min_size and data.max_size"
        )
    counts = listing.table.labels.bincount(minlength=len(listing.categories)).tolist()
    empty = [name for name, count in zip(listing.categories, counts, strict=True) if not count]
    if empty:
        shown = ", ".join(empty[:_LISTED]) + ", ..." * (len(empty) > _LISTED)
        lines.append(f"{len(empty):,} of {len(counts):,} categories have no training boxes: {shown}")
    return lines


def best_overlaps(boxes: Tensor, grid: AnchorGrid) -> Tensor:
    """Return the IoU of every box with its best anchor.

    Only the nearest cell of each level is compared: of anchors of one shape, the nearest overlaps most.

    Args:
        boxes: float32 [M, 4], xyxy in px of the resized image.
        grid: the anchors.

    Returns:
        [M], from 0 to 1.
    """
    best = torch.zeros(len(boxes))
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    for stride, anchors in zip(grid.strides_px, grid.generator().cell_anchors, strict=True):
        shift = (centres - (centres / stride).round() * stride)[:, None]  # [M, 1, 2]
        low = torch.maximum(shift - sides[:, None] / 2, anchors[:, :2])  # [M, A, 2]
        high = torch.minimum(shift + sides[:, None] / 2, anchors[:, 2:])
        shared = (high - low).clamp(min=0).prod(2)
        areas = (anchors[:, 2:] - anchors[:, :2]).prod(1)
        best = torch.maximum(best, (shared / (areas + sides.prod(1)[:, None] - shared)).amax(1))
    return best


def _resized(listing: CocoListing, transform: DetectionTransform) -> Tensor:
    """Return all training boxes in px of their resized images, float32 [M, 4]."""
    factors = torch.tensor(
        [
            (new_width / width, new_height / height)
            for height, width in listing.sizes.tolist()
            for new_height, new_width in (transform.plain_size(height, width),)
        ]
    )
    return listing.table.boxes * factors.repeat(1, 2).repeat_interleave(listing.table.starts.diff(), dim=0)


def _advice(boxes: Tensor, grid: AnchorGrid, matched: float) -> str:
    """Return what makes more boxes match: a factor for the anchors, else larger images."""
    shares = {}
    for factor in (0.125, 0.25, 0.5, 2.0, 4.0):
        sizes = tuple(tuple(int(size * factor) for size in level) for level in grid.sizes_px)
        if sizes[0][0] >= SMALLEST_PX:
            scaled = grid._replace(sizes_px=sizes)
            shares[factor] = float((best_overlaps(boxes, scaled) >= _MATCH_IOU).double().mean())
    factor = max(shares, key=shares.__getitem__, default=1.0)
    if shares and shares[factor] > matched + 0.02:
        return f": detector.anchor_scale times {factor:g} would reach {shares[factor]:.1%}"
    small = float((boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt().median()) < grid.sizes_px[0][0]
    return f": set a {'larger' if small else 'smaller'} data.min_size"
