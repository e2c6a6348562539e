"""Generated images of ten shapes: no files, no download, and hard enough that a small network needs some epochs.

Each image has one shape of random size, position, rotation, stretch, colour and texture on a textured background, with
strokes behind and in front of it, and noise. Contrast may be low, and single pixels carry little information: a linear
classifier stays below 30% after 4,096 images.
Example i is a function of (seed, i) alone; it does not depend on the number of examples or on a generator. The
arithmetic is float32 on the CPU; another processor may round one value in many thousands differently.

Shapes: n images of S x S px; planes are float32 [n, S, S], scalars per image [n, 1, 1], colours [n, 3, 1, 1], the
canvas [n, 3, S, S] in [0, 1].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from w2skd.data.counter import bits, uniform

_BLOCK = 256
"""Images drawn at once. Blocks start at multiples of it, so that rounding does not depend on the other examples."""

_DRAWS = 64
"""Random numbers per image drawn at once."""

_NOISE = 2**20
"""Index of the first draw for the noise of the pixels; all other draws of an image are below it."""


@dataclass(frozen=True, eq=False)
class Scenes:
    """Images with one object each.

    Attributes:
        images: uint8 [N, 3, S, S], RGB.
        labels: int64 [N], indices into `CLASSES`.
        boxes: float32 [N, 4], xyxy in px around the object, including its hidden parts.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor


def labels_of(indices: Tensor) -> Tensor:
    """Return the classes of these examples, int64. Classes alternate, so that consecutive examples are balanced."""
    return indices % len(CLASSES)


def render(seed: int, indices: Tensor, size: int) -> Scenes:
    """Draw examples.

    Args:
        seed: seed of all random draws; the classes do not depend on it.
        indices: int64 [N], not negative, in any order.
        size: S, the side in px, at least 8.
    """
    images = torch.empty(len(indices), 3, size, size, dtype=torch.uint8)
    boxes = torch.empty(len(indices), 4)
    for block in torch.unique(indices // _BLOCK).tolist():
        here = torch.nonzero(indices // _BLOCK == block).flatten()
        block_images, block_boxes = _render_block(seed, block * _BLOCK + torch.arange(_BLOCK), size)
        images[here] = block_images[indices[here] % _BLOCK]
        boxes[here] = block_boxes[indices[here] % _BLOCK]
    return Scenes(images, labels_of(indices), boxes)


@dataclass(frozen=True)
class ShapeExamples:
    """Generated images, drawn on demand.

    Attributes:
        seed: seed of all random draws; the classes do not depend on it.
        count: number of images.
        size_px: side of the images that `open` draws.
    """

    seed: int
    count: int
    size_px: int

    def __len__(self) -> int:
        return self.count

    def open(self, index: int) -> Image.Image:
        """Draw one image. This draws its whole block, so reading many at once is much cheaper."""
        pixels = render(self.seed, torch.tensor([index]), self.size_px).images[0]
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

    def mode(self, index: int) -> str:
        """Return RGB."""
        return "RGB"

    def read(self, indices: Tensor, size_px: int) -> Tensor:
        """Draw several images at any size."""
        return render(self.seed, indices, size_px).images

    def name(self, index: int) -> str:
        """Return the index."""
        return str(index)

    def content(self, index: int) -> bytes:
        """Return what the image is drawn from."""
        return f"{self.seed} {index} {self.size_px}".encode()


def _render_block(seed: int, indices: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Paint from back to front."""
    dice = Dice(seed, indices)
    axis = torch.arange(size) + 0.5
    x, y = axis.expand(1, size, size), axis[:, None].expand(1, size, size)
    background = dice.colour(0.1, 0.6)
    canvas = background + texture(dice, x, y)
    for _ in range(2):
        paint_stroke(canvas, dice, x, y)
    boxes = _paint_object(canvas, dice, labels_of(indices), background, x, y)
    for _ in range(1):
        paint_stroke(canvas, dice, x, y)
    canvas += dice.between(0.02, 0.12)[:, None] * noise(seed, indices, size)
    return canvas.clamp_(0, 1).mul_(255).round_().to(torch.uint8), boxes


def _paint_object(canvas: Tensor, dice: "Dice", labels: Tensor, background: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Paint the shape of each image's class and return the boxes."""
    size = canvas.shape[-1]
    radius = dice.between(0.26, 0.42) * size
    angle = dice.between(-0.5, 0.5)
    stretch = torch.exp(dice.between(-0.12, 0.12))
    dx = x - (radius + dice.between(0, 1) * (size - 2 * radius))
    dy = y - (radius + dice.between(0, 1) * (size - 2 * radius))
    cover = cover_of(labels, dx, dy, radius=radius, angle=angle, stretch=stretch)
    direction = dice.colour(-0.3, 1)
    direction = direction / direction.abs().amax(dim=1, keepdim=True)
    colour = background + dice.between(0.25, 0.6)[:, None] * direction
    canvas += cover[:, None] * (colour + texture(dice, x, y) - canvas)
    return boxes_around(cover > 0.5)


def cover_of(labels: Tensor, dx: Tensor, dy: Tensor, *, radius: Tensor, angle: Tensor, stretch: Tensor) -> Tensor:
    """Return the share of each pixel that the shape covers, in [0, 1]; above 1/2 inside.

    Args:
        labels: int64 [n], the shapes.
        dx: planes, px to the right of the shape's centre.
        dy: planes, px below the shape's centre.
        radius: scalars, px.
        angle: scalars, radians.
        stretch: scalars; the width is multiplied and the height divided by it.
    """
    u = (angle.cos() * dx + angle.sin() * dy) / (radius * stretch)
    v = (angle.cos() * dy - angle.sin() * dx) / (radius / stretch)
    distance = torch.empty_like(u)
    for label, shape in enumerate(SHAPES.values()):
        here = labels == label
        distance[here] = shape(u[here], v[here])
    return (0.5 - distance * radius).clamp_(0, 1)


def paint_stroke(canvas: Tensor, dice: "Dice", x: Tensor, y: Tensor) -> None:
    """Paint a straight stroke of random position, length, width and colour."""
    size = canvas.shape[-1]
    angle = dice.between(0, math.pi)
    dx, dy = x - dice.between(0, 1) * size, y - dice.between(0, 1) * size
    along = (angle.cos() * dx + angle.sin() * dy).abs() - dice.between(0.1, 0.4) * size
    across = (angle.cos() * dy - angle.sin() * dx).abs() - dice.between(0.015, 0.05) * size
    cover = (0.5 - torch.maximum(along, across)).clamp_(0, 1)
    canvas += cover[:, None] * (dice.colour(0, 1) - canvas)


def texture(dice: "Dice", x: Tensor, y: Tensor) -> Tensor:
    """Return the sum of two plane waves in random colours: [n, 3, S, S] around 0."""
    size = x.shape[-1]
    total: Tensor | None = None
    for _ in range(2):
        waves, angle = dice.between(0.5, 6) * (2 * math.pi / size), dice.between(0, 2 * math.pi)
        phase = dice.between(0, 2 * math.pi)
        wave = torch.sin(waves * (angle.cos() * x + angle.sin() * y) + phase)
        wave = wave[:, None] * dice.colour(-0.06, 0.06)
        total = wave if total is None else total.add_(wave)
    assert total is not None
    return total


def noise(seed: int, indices: Tensor, size: int) -> Tensor:
    """Return independent uniform noise in [-1, 1) for the canvas; each hash gives three numbers of 16 bits."""
    draws = _NOISE + torch.arange(size * size).view(size, size)
    hashes = bits(seed, indices[:, None, None], draws)
    return torch.stack([((hashes >> shift) & 0xFFFF).to(torch.float32) for shift in (0, 16, 32)], 1) / 2**15 - 1


def boxes_around(inside: Tensor) -> Tensor:
    """Return the tight boxes around the true pixels of bool [n, S, S]: float32 [n, 4] as xyxy."""
    edges = []
    for along in (inside.any(1), inside.any(2)):
        some = along.to(torch.int64)
        edges += [some.argmax(1), along.shape[1] - some.flip(1).argmax(1)]
    return torch.stack([edges[0], edges[2], edges[1], edges[3]], 1).to(torch.float32)


class Dice:
    """A sequence of random numbers per image; number k is a function of (seed, image, k)."""

    def __init__(self, seed: int, indices: Tensor):
        self._seed = seed
        self._indices = indices
        self._drawn = 0
        self._values = torch.empty(0, len(indices))

    def between(self, low: float, high: float) -> Tensor:
        """Draw one scalar per image."""
        if self._drawn == len(self._values):
            # Many at once, because the overhead of a call dominates for few images.
            draws = self._drawn + torch.arange(_DRAWS)[:, None]
            self._values = torch.cat([self._values, uniform(self._seed, self._indices, draws)])
        value = self._values[self._drawn]
        self._drawn += 1
        return (low + (high - low) * value)[:, None, None]

    def colour(self, low: float, high: float) -> Tensor:
        """Draw one colour per image."""
        return torch.stack([self.between(low, high) for _ in range(3)], 1)


# Signed distances, negative inside, in units of the shape's radius. They are accurate to a few percent near the edge,
# which is enough for antialiasing. (u, v) are planes; v points down.


def _circle(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 0.85


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return (torch.hypot(u, v) - 0.68).abs() - 0.2


def _crescent(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(u, v) - 0.9, 0.72 - torch.hypot(u - 0.42, v))


def _ellipse(u: Tensor, v: Tensor) -> Tensor:
    # To first order in the distance: (k - 1) / |gradient of k| with k = |(u / a, v / b)|.
    a, b = 0.98, 0.52
    k = torch.hypot(u / a, v / b)
    return (k - 1) * k / torch.hypot(u / a**2, v / b**2).clamp_(min=1e-3)


def _box(u: Tensor, v: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(u.abs() - half_width, v.abs() - half_height)


def _square(u: Tensor, v: Tensor) -> Tensor:
    return _box(u, v, 0.7, 0.7)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(_box(u, v, 0.9, 0.28), _box(u, v, 0.28, 0.9))


def _sides(u: Tensor, v: Tensor, count: int, apothem: float) -> list[Tensor]:
    """Return the signed distances to the sides of a regular polygon with a corner at the top."""
    angles = [math.pi * (2 * side + 1) / count for side in range(count)]
    return [math.sin(angle) * u - math.cos(angle) * v - apothem for angle in angles]


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    return torch.stack(_sides(u, v, 3, 0.5)).amax(0)


def _pentagon(u: Tensor, v: Tensor) -> Tensor:
    return torch.stack(_sides(u, v, 5, 0.95 * math.cos(math.pi / 5))).amax(0)


def _star(u: Tensor, v: Tensor) -> Tensor:
    # A point is inside a pentagram if it is beyond at most one of the five lines: the second largest distance decides.
    return torch.stack(_sides(u, v, 5, math.cos(2 * math.pi / 5))).topk(2, dim=0).values[1]


def _arrow(u: Tensor, v: Tensor) -> Tensor:
    slope = math.hypot(0.75, 0.95)
    head = torch.maximum(v - 0.05, (0.95 * u.abs() - 0.75 * (v + 0.9)) / slope)
    return torch.minimum(head, _box(u, v - 0.45, 0.22, 0.45))


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "arrow": _arrow,
    "circle": _circle,
    "crescent": _crescent,
    "cross": _cross,
    "ellipse": _ellipse,
    "pentagon": _pentagon,
    "ring": _ring,
    "square": _square,
    "star": _star,
    "triangle": _triangle,
}

CLASSES = tuple(SHAPES)
