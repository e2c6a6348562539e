"""Generated scenes for detection: one to five of the ten shapes at random positions.

Sizes, positions, rotations and colours are random, contrast may be low, and shapes may partly occlude each other; later
ones are in front. Scene i is a function of (seed, i) alone and is painted on demand, at about the cost of opening an
image file. Boxes are computed from the geometry without painting.

Shapes: M objects of all scenes; S side of a scene in px, W of the window around an object. Planes are float32
[M, W, W], values per object ("scalars") [M, 1, 1], the canvas is [1, 3, S, S] in [0, 1].
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from w2skd.data.counter import seed_from
from w2skd.data.images import Normalization
from w2skd.data.shapes import CLASSES, Dice, boxes_around, cover_of, noise, paint_stroke, texture
from w2skd.tasks.detection.listing import BoxTable, CocoListing

NORMALIZATION = Normalization((0.4, 0.4, 0.4), (0.2, 0.2, 0.2))
"""Approximate mean and standard deviation of the pixels."""

MOST_OBJECTS = 5

_TRIES = 12
"""Candidate objects per scene; those that do not overlap others too much are used."""

_RADII = (0.08, 0.22)
"""Minimum and maximum radius as a share of S."""

_STRETCH = 0.12
"""Maximum logarithm of the stretch."""

_REACH = 1.25
"""Maximum extent of a shape in radii: its farthest corner (below 1.1) at maximum stretch."""

_MOST_COVERED = 0.35
"""Maximum share of the smaller of two objects' bounding squares that the other may cover."""

_CHUNK = 256
"""Objects whose geometry is computed at once."""


@dataclass(frozen=True, eq=False)
class _Objects:
    """Objects of scenes, from back to front.

    Attributes:
        scene: int64 [M], index of each object's scene in the request; ascending.
        labels: int64 [M].
        x: scalars, px of the centre.
        y: scalars, px of the centre.
        radius: scalars, px.
        angle: scalars, radians.
        stretch: scalars; see `cover_of`.
    """

    scene: Tensor
    labels: Tensor
    x: Tensor
    y: Tensor
    radius: Tensor
    angle: Tensor
    stretch: Tensor

    def part(self, which: slice) -> "_Objects":
        return _Objects(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


@dataclass(frozen=True, eq=False)
class SceneExamples:
    """Scenes that are painted when they are opened.

    Attributes:
        seed: of all random draws.
        indices: int64 [N], numbers of the scenes.
        size_px: S.
    """

    seed: int
    indices: Tensor
    size_px: int

    def __len__(self) -> int:
        return len(self.indices)

    def open(self, index: int) -> Image.Image:
        """Paint one scene."""
        pixels = _paint(self.seed, self.indices[index : index + 1], self.size_px)
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

    def name(self, index: int) -> str:
        """Return the number of the scene."""
        return str(int(self.indices[index]))

    def content(self, index: int) -> bytes:
        """Return what the scene is painted from."""
        return f"{self.seed} {self.indices[index]} {self.size_px}".encode()

    def select(self, indices: Tensor) -> "SceneExamples":
        """Return the scenes at these indices, in this order."""
        return SceneExamples(self.seed, self.indices[indices], self.size_px)


def list_scenes(name: str, seed: int, count: int, size_px: int) -> CocoListing:
    """List the first `count` scenes of a seed. Their boxes are exact to the pixel and include occluded parts.

    Args:
        name: of the scenes in error messages.
        seed: of all random draws.
        count: number of scenes.
        size_px: S, at least 32.
    """
    assert count > 0, f"{count} scenes"
    assert size_px >= 32, f"scenes of {size_px} px"
    indices = torch.arange(count)
    objects = _lay_out(seed, indices, size_px)
    table = BoxTable.grouped(_boxes(objects, size_px), objects.labels, objects.scene, count)
    return CocoListing(
        name,
        SceneExamples(seed, indices, size_px),
        indices,
        torch.full((count, 2), size_px),
        table,
        CLASSES,
        tuple(range(1, len(CLASSES) + 1)),
        (),
        partial(_truth, table, size_px),
    )


def _truth(table: BoxTable, size_px: int) -> dict[str, Any]:
    """Return the ground truth of all scenes in COCO format."""
    annotations: list[dict[str, Any]] = []
    for scene in range(len(table)):
        found = table.of(scene)
        for (left, top, right, bottom), label in zip(found.boxes.tolist(), found.labels.tolist(), strict=True):
            width, height = right - left, bottom - top
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": scene,
                    "category_id": label + 1,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    return {
        "images": [
            {"id": scene, "file_name": str(scene), "width": size_px, "height": size_px} for scene in range(len(table))
        ],
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)],
    }


def _lay_out(seed: int, indices: Tensor, size: int) -> _Objects:
    """Draw candidate objects and keep as many as wanted without too much overlap."""
    dice = Dice(seed, indices)
    wanted = dice.between(1, MOST_OBJECTS + 1).floor()
    tries = []
    for _ in range(_TRIES):
        label = dice.between(0, len(CLASSES)).floor()
        radius = torch.exp(dice.between(math.log(_RADII[0]), math.log(_RADII[1]))) * size
        x, y = (radius + dice.between(0, 1) * (size - 2 * radius) for _ in range(2))
        tries.append(torch.stack([x, y, radius, dice.between(-0.5, 0.5), dice.between(-1, 1), label], 1))
    drawn = torch.stack(tries, 1)[..., 0, 0]  # [N, _TRIES, 6]
    agree = _covered(drawn[:, :, None], drawn[:, None]) <= _MOST_COVERED
    taken = torch.zeros(drawn.shape[:2], dtype=torch.bool)
    for number in range(_TRIES):
        room = (agree[:, number] | ~taken).all(1)
        taken[:, number] = room & (taken.sum(1) < wanted.flatten())
    scene, _ = torch.nonzero(taken, as_tuple=True)
    x, y, radius, angle, stretch, label = (value[:, None, None] for value in drawn[taken].unbind(1))
    return _Objects(scene, label.flatten().long(), x, y, radius, angle, torch.exp(_STRETCH * stretch))


def _covered(one: Tensor, other: Tensor) -> Tensor:
    """Return the overlap of squares (x, y, radius, ...) as a share of the smaller one; arguments broadcast."""
    radii = one[..., 2:3], other[..., 2:3]
    small = torch.minimum(*radii)
    sides = (radii[0] + radii[1] - (one[..., :2] - other[..., :2]).abs()).clamp(min=0).minimum(2 * small)
    return sides.prod(-1) / (4 * small[..., 0] ** 2)


def _cover(objects: _Objects, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return each object's cover in its window (0 beyond the scene), and left and top of the windows, int64 [M]."""
    side = math.ceil(2 * _REACH * _RADII[1] * size) + 2
    left, top = (torch.floor(centre.flatten() - side / 2).long() for centre in (objects.x, objects.y))
    columns, rows = (start[:, None] + torch.arange(side) for start in (left, top))
    cover = cover_of(
        objects.labels,
        (columns[:, None, :] + 0.5 - objects.x).expand(-1, side, -1),
        (rows[:, :, None] + 0.5 - objects.y).expand(-1, -1, side),
        radius=objects.radius,
        angle=objects.angle,
        stretch=objects.stretch,
    )
    within = [(places >= 0) & (places < size) for places in (columns, rows)]
    return cover * (within[0][:, None, :] & within[1][:, :, None]), left, top


def _boxes(objects: _Objects, size: int) -> Tensor:
    """Return the tight boxes around the pixels of each object, float32 [M, 4] as xyxy."""
    boxes = []
    for start in range(0, len(objects.scene), _CHUNK):
        cover, left, top = _cover(objects.part(slice(start, start + _CHUNK)), size)
        boxes.append(boxes_around(cover > 0.5) + torch.stack([left, top] * 2, 1))
    return torch.cat(boxes)


def _paint(seed: int, index: Tensor, size: int) -> Tensor:
    """Paint one scene from back to front: uint8 [3, S, S]."""
    objects = _lay_out(seed, index, size)
    paint_seed = seed_from(seed, 1)
    dice = Dice(paint_seed, index)
    axis = torch.arange(size) + 0.5
    x, y = axis.expand(1, size, size), axis[:, None].expand(1, size, size)
    background = dice.colour(0.1, 0.6)
    canvas = background + texture(dice, x, y)
    for _ in range(2):
        paint_stroke(canvas, dice, x, y)
    covers, lefts, tops = _cover(objects, size)
    for cover, left, top in zip(covers, lefts.tolist(), tops.tolist(), strict=True):
        rows, columns = (slice(max(0, start), min(size, start + len(cover))) for start in (top, left))
        seen = cover[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        direction = dice.colour(-0.3, 1)
        direction = direction / direction.abs().amax(dim=1, keepdim=True)
        colour = background + dice.between(0.25, 0.6)[:, None] * direction
        here = canvas[:, :, rows, columns]
        here += seen * (colour + texture(dice, x[:, rows, columns], y[:, rows, columns]) - here)
    canvas += dice.between(0.02, 0.1)[:, None] * noise(paint_seed, index, size)
    return canvas.clamp_(0, 1).mul_(255).round_().to(torch.uint8)[0]
