"""A picture of the boxes that a detector finds in images, beside those that are there.

Shape letters: N images of H x W px, K boxes of one image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from w2skd.pictures.sheet import (
    GAP_PX,
    INK,
    LINE_PX,
    MARGIN_PX,
    SHEET_PX,
    TEXT_PX,
    Sheet,
    check_picture_path,
    cut,
    enlarged,
    width_of,
)
from w2skd.platform.files import write_atomically

BOXED_IMAGES = 16
"""So many images with boxes are drawn at most on one sheet."""

# Orange and blue, light and dark, are told apart by every eye. A rim of the other tone keeps each visible on any image.
_PREDICTED, _TRUE = (255, 158, 27), (0, 71, 171)
_DARK_RIM, _LIGHT_RIM = (38, 24, 0), (255, 255, 255)
_LINE_OF_BOX_PX, _DASH_PX = 2, 6
_TAG_PX, _TAG_TEXT_PX = 14, 11
_BOXED_TILE_PX = 600
_NAME_PX = 85  # about 12 letters


def draw_boxes(
    images: Sequence[Tensor],
    predicted: Sequence[tuple[Tensor, Tensor, Tensor]],
    true: Sequence[tuple[Tensor, Tensor]],
    captions: Sequence[str],
    path: Path,
    *,
    classes: Sequence[str],
    title: str,
    least_score: float = 0.3,
) -> None:
    """Draw images with the boxes that a detector finds in them and those that are there.

    Predicted boxes are solid, with class and score; true ones dashed, with their class, and drawn above, so that both
    show where they agree. Of a box that leaves the image the part inside is drawn. A name that finds no room beside
    those of surer boxes is left out. Small images are enlarged and large ones reduced by a whole number.

    Args:
        images: N times uint8 [3, H, W], RGB, of any sizes.
        predicted: of each, boxes [K, 4] (xyxy, px of the image), scores [K] and labels int64 [K].
        true: of each, boxes and labels likewise.
        captions: N lines, one below each image; cut to its width.
        path: a PNG file.
        classes: a name for each label.
        title: what they are; only the first `BOXED_IMAGES` are drawn, which is said beside it.
        least_score: predicted boxes of a lower score are not drawn.

    Raises:
        UsageError: the file is not named ``.png``.
        OutputError: the picture cannot be written.
    """
    check_picture_path(path)
    counts = (len(images), len(predicted), len(true), len(captions))
    assert len(set(counts)) == 1, f"{counts} images, predicted, true, captions"
    sheet = Sheet()
    shown = min(len(images), BOXED_IMAGES)
    top = sheet.head(title, f"{shown} of {len(images)}")
    x = MARGIN_PX
    for text, look in ((f"predicted, from a score of {least_score:.2f}", _SOLID), ("true", _DASHED)):
        sample = np.full((16, 28, 3), 255, dtype=np.uint8)
        look.draw(sample, (0, 0, 28, 16))
        sheet.paste(x, top, sample)
        sheet.write(x + 28 + GAP_PX, top + 8, text)
        x += 28 + GAP_PX + math.ceil(width_of(text, TEXT_PX)) + MARGIN_PX
    top += 16 + 2 * GAP_PX

    tiles = []
    for image, found, there in zip(images[:shown], predicted, true, strict=False):
        assert image.dtype is torch.uint8, image.dtype
        assert image.shape[:1] == (3,), image.shape
        pixels, scale = _to_tile_size(image)
        marks = [*_predicted_marks(*found, scale, classes, least_score), *_true_marks(*there, scale, classes)]
        tiles.append((pixels, _mark(pixels, [inside for mark in marks if (inside := mark.within(pixels))])))
    width = max((pixels.shape[1] for pixels, _ in tiles), default=0)
    columns = max(1, min(math.ceil(math.sqrt(shown)), SHEET_PX // (width + GAP_PX)))
    y = top
    for first in range(0, shown, columns):
        row = tiles[first : first + columns]
        for column, ((pixels, tags), caption) in enumerate(zip(row, captions[first:], strict=False)):
            x = MARGIN_PX + column * (width + GAP_PX)
            sheet.paste(x, y, pixels)
            for tag in tags:
                sheet.write(x + tag.x + 3, y + tag.y + _TAG_PX / 2, tag.text, _TAG_TEXT_PX, colour=tag.colour)
            sheet.write(x, y + pixels.shape[0] + LINE_PX // 2, cut(caption, pixels.shape[1], TEXT_PX))
        y += max(pixels.shape[0] for pixels, _ in row) + LINE_PX + GAP_PX
    write_atomically(path, sheet.png())


@dataclass(frozen=True)
class _Look:
    """How the outline of a box is drawn."""

    colour: tuple[int, int, int]
    rim: tuple[int, int, int]
    text: str
    dashed: bool

    def draw(self, pixels: NDArray[np.uint8], box: tuple[int, int, int, int]) -> None:
        """Draw just within (left, top, right, bottom), which is within the image."""
        left, top, right, bottom = box
        inside = pixels[top:bottom, left:right]
        edge, line = np.ones(inside.shape[:2], dtype=bool), _LINE_OF_BOX_PX
        edge[line + 1 : -line - 1, line + 1 : -line - 1] = False
        core = np.zeros_like(edge)
        core[:line] = core[-line:] = core[:, :line] = core[:, -line:] = True
        if self.dashed:
            rows, columns = np.indices(edge.shape)
            edge &= (rows + columns) // _DASH_PX % 2 == 0
        inside[edge] = self.rim
        inside[edge & core] = self.colour


_SOLID = _Look(_PREDICTED, _DARK_RIM, INK, dashed=False)
_DASHED = _Look(_TRUE, _LIGHT_RIM, "white", dashed=True)


class _Mark(NamedTuple):
    """A box in px of its tile, and what to write at it."""

    box: tuple[int, int, int, int]
    name: str
    look: _Look

    def within(self, pixels: NDArray[np.uint8]) -> "_Mark | None":
        """The part that is in the image; None when it is outside."""
        left, top, right, bottom = self.box
        left, top = max(left, 0), max(top, 0)
        right, bottom = min(right, pixels.shape[1]), min(bottom, pixels.shape[0])
        return self._replace(box=(left, top, right, bottom)) if left < right and top < bottom else None


class _Tag(NamedTuple):
    """A name and where it was put, its top left corner in px of the tile."""

    x: int
    y: int
    text: str
    colour: str


def _to_tile_size(image: Tensor) -> tuple[NDArray[np.uint8], float]:
    """Pixels, uint8 [h, w, 3], and by what the image was enlarged or reduced."""
    longest = max(image.shape[1:])
    zoom, share = max(1, round(_BOXED_TILE_PX / longest)), max(1, round(longest / _BOXED_TILE_PX))
    if share > 1:
        image = functional.avg_pool2d(image.cpu().float(), share, ceil_mode=True).round().to(torch.uint8)
    return enlarged(image.permute(1, 2, 0).cpu().numpy(), zoom), zoom / share


def _predicted_marks(
    boxes: Tensor, scores: Tensor, labels: Tensor, scale: float, classes: Sequence[str], least_score: float
) -> list[_Mark]:
    """The surest first."""
    finite = boxes.isfinite().all(dim=1) & (scores >= least_score)
    boxes, scores, labels = (part[finite].cpu() for part in (boxes, scores, labels))
    order = scores.argsort(descending=True, stable=True).tolist()
    corners, values, names = _corners(boxes, scale), scores.tolist(), [classes[label] for label in labels.tolist()]
    return [_Mark(corners[index], f"{_short_name(names[index])} {values[index]:.2f}", _SOLID) for index in order]


def _true_marks(boxes: Tensor, labels: Tensor, scale: float, classes: Sequence[str]) -> list[_Mark]:
    names = [_short_name(classes[label]) for label in labels.tolist()]
    return [_Mark(box, name, _DASHED) for box, name in zip(_corners(boxes, scale), names, strict=True)]


def _short_name(name: str) -> str:
    return cut(name, _NAME_PX, _TAG_TEXT_PX)


def _corners(boxes: Tensor, scale: float) -> list[tuple[int, int, int, int]]:
    """To whole pixels, at least one wide and high."""
    left, top, right, bottom = (boxes.cpu().double() * scale).round().long().unbind(dim=1)
    right, bottom = right.maximum(left + 1), bottom.maximum(top + 1)
    return list(zip(*(side.tolist() for side in (left, top, right, bottom)), strict=True))


def _mark(pixels: NDArray[np.uint8], marks: Sequence[_Mark]) -> list[_Tag]:
    """Draw the outlines, dashed above solid and sure above unsure ones, and the grounds of names that find room."""
    for look in (_SOLID, _DASHED):
        for mark in reversed(marks):
            if mark.look is look:
                look.draw(pixels, mark.box)
    tags: list[_Tag] = []
    taken = np.zeros(pixels.shape[:2], dtype=bool)
    for mark in marks:
        width = math.ceil(width_of(mark.name, _TAG_TEXT_PX)) + 6
        for x, y in _places(mark, width):
            # At an image's edge a name is pushed inside; one that is too large for the image has no place in it.
            x, y = min(x, pixels.shape[1] - width), min(y, pixels.shape[0] - _TAG_PX)
            x, y = max(x, 0), max(y, 0)
            ground = (slice(y, y + _TAG_PX), slice(x, x + width))
            if pixels[ground].shape[:2] == (_TAG_PX, width) and not taken[ground].any():
                taken[ground] = True
                pixels[ground] = mark.look.colour
                tags.append(_Tag(x, y, mark.name, mark.look.text))
                break
    return tags


def _places(mark: _Mark, width: int) -> list[tuple[int, int]]:
    """Where a name may stand, the best first: predicted ones at the top of their box, true ones at its bottom."""
    left, top, right, bottom = mark.box
    above, below = (top - _TAG_PX, top), (bottom, bottom - _TAG_PX)
    return [(x, y) for y in (below if mark.look.dashed else above) for x in (left, right - width)]
