"""Pictures of images with predicted and ground-truth boxes.

Shapes: H x W px of one image, K boxes of one image.
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
    TextStyle,
    cut,
    enlarged,
    width_of,
)

BOXED_IMAGES = 16
"""Maximum number of images on one sheet."""

# Light orange and dark blue are distinguishable with any colour vision; a rim of the other tone adds contrast.
_PREDICTED, _TRUE = (255, 158, 27), (0, 71, 171)
_DARK_RIM, _LIGHT_RIM = (38, 24, 0), (255, 255, 255)
_LINE_OF_BOX_PX, _DASH_PX = 2, 6
_TAG_PX, _TAG_TEXT_PX = 14, 11
_BOXED_TILE_PX = 600
_NAME_PX = 85  # about 12 letters


class BoxedImage(NamedTuple):
    """An image with its boxes.

    Attributes:
        image: uint8 [3, H, W], RGB, of any size.
        predicted: boxes [K, 4] (xyxy, px of the image), scores [K] and labels int64 [K].
        true: boxes and labels of the ground truth in the same format.
        caption: line below the image, truncated to its width.
    """

    image: Tensor
    predicted: tuple[Tensor, Tensor, Tensor]
    true: tuple[Tensor, Tensor]
    caption: str


def draw_boxes(
    images: Sequence[BoxedImage], path: Path, *, classes: Sequence[str], title: str, least_score: float = 0.3
) -> None:
    """Draw images with their predicted and ground-truth boxes.

    Predicted boxes are solid, labelled with class and score. True boxes are dashed, labelled with their class, and
    drawn on top, so that both are visible where they agree. Boxes are clipped to the image. A label that would cover
    that of a higher-scoring box is omitted. Small images are enlarged and large ones reduced by an integer factor.

    Args:
        images: the first `BOXED_IMAGES` of them are drawn; the title line gives the numbers.
        path: a PNG file.
        classes: name of each label.
        title: of the sheet.
        least_score: minimum score of the predicted boxes that are drawn.

    Raises:
        UsageError: the file is not named ``.png``.
        OutputError: the picture cannot be written.
    """
    sheet = Sheet()
    shown = min(len(images), BOXED_IMAGES)
    top = sheet.head(title, f"{shown} of {len(images)}")
    x = MARGIN_PX
    for text, look in ((f"predicted (score >= {least_score:.2f})", _SOLID), ("ground truth", _DASHED)):
        sample = np.full((16, 28, 3), 255, dtype=np.uint8)
        look.draw(sample, (0, 0, 28, 16))
        sheet.paste(x, top, sample)
        sheet.write(x + 28 + GAP_PX, top + 8, text)
        x += 28 + GAP_PX + math.ceil(width_of(text, TEXT_PX)) + MARGIN_PX
    top += 16 + 2 * GAP_PX

    tiles = []
    for image, predicted, true, _ in images[:shown]:
        assert image.dtype is torch.uint8, image.dtype
        assert image.shape[:1] == (3,), image.shape
        pixels, scale = _to_tile_size(image)
        marks = [*_predicted_marks(*predicted, scale, classes, least_score), *_true_marks(*true, scale, classes)]
        tiles.append((pixels, _mark(pixels, [inside for mark in marks if (inside := mark.within(pixels))])))
    width = max((pixels.shape[1] for pixels, _ in tiles), default=0)
    columns = max(1, min(math.ceil(math.sqrt(shown)), SHEET_PX // (width + GAP_PX)))
    y = top
    for first in range(0, shown, columns):
        row = tiles[first : first + columns]
        for column, (pixels, tags) in enumerate(row):
            x = MARGIN_PX + column * (width + GAP_PX)
            sheet.paste(x, y, pixels)
            for tag in tags:
                sheet.write(x + tag.x + 3, y + tag.y + _TAG_PX / 2, tag.text, TextStyle(_TAG_TEXT_PX, tag.colour))
            sheet.write(
                x, y + pixels.shape[0] + LINE_PX // 2, cut(images[first + column].caption, pixels.shape[1], TEXT_PX)
            )
        y += max(pixels.shape[0] for pixels, _ in row) + LINE_PX + GAP_PX
    sheet.save(path)


@dataclass(frozen=True)
class _Look:
    """Style of a box's outline."""

    colour: tuple[int, int, int]
    rim: tuple[int, int, int]
    text: str
    dashed: bool

    def draw(self, pixels: NDArray[np.uint8], box: tuple[int, int, int, int]) -> None:
        """Draw the outline inside of (left, top, right, bottom), which lies within the image."""
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
    """A box in px of its tile, with its label."""

    box: tuple[int, int, int, int]
    name: str
    look: _Look

    def within(self, pixels: NDArray[np.uint8]) -> "_Mark | None":
        """Clip the box to the image; None if it lies outside."""
        left, top, right, bottom = self.box
        left, top = max(left, 0), max(top, 0)
        right, bottom = min(right, pixels.shape[1]), min(bottom, pixels.shape[0])
        return self._replace(box=(left, top, right, bottom)) if left < right and top < bottom else None


class _Tag(NamedTuple):
    """A label and its top left corner in px of the tile."""

    x: int
    y: int
    text: str
    colour: str


def _to_tile_size(image: Tensor) -> tuple[NDArray[np.uint8], float]:
    """Resize an image: pixels, uint8 [h, w, 3], and the scale factor."""
    longest = max(image.shape[1:])
    zoom, share = max(1, round(_BOXED_TILE_PX / longest)), max(1, round(longest / _BOXED_TILE_PX))
    if share > 1:
        image = functional.avg_pool2d(image.cpu().float(), share, ceil_mode=True).round().to(torch.uint8)
    return enlarged(image.permute(1, 2, 0).cpu().numpy(), zoom), zoom / share


def _predicted_marks(
    boxes: Tensor, scores: Tensor, labels: Tensor, scale: float, classes: Sequence[str], least_score: float
) -> list[_Mark]:
    """Return the marks of predicted boxes by descending score."""
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
    """Scale boxes and round them to whole pixels, at least one wide and high."""
    left, top, right, bottom = (boxes.cpu().double() * scale).round().long().unbind(dim=1)
    right, bottom = right.maximum(left + 1), bottom.maximum(top + 1)
    return list(zip(*(side.tolist() for side in (left, top, right, bottom)), strict=True))


def _mark(pixels: NDArray[np.uint8], marks: Sequence[_Mark]) -> list[_Tag]:
    """Draw outlines (dashed over solid, high over low scores) and the backgrounds of labels that fit."""
    for look in (_SOLID, _DASHED):
        for mark in reversed(marks):
            if mark.look is look:
                look.draw(pixels, mark.box)
    tags: list[_Tag] = []
    taken = np.zeros(pixels.shape[:2], dtype=bool)
    for mark in marks:
        width = math.ceil(width_of(mark.name, _TAG_TEXT_PX)) + 6
        for x, y in _places(mark, width):
            # Labels are moved into the image; those larger than the image are omitted.
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
    """Return label positions by preference: at the top of predicted boxes, at the bottom of true ones."""
    left, top, right, bottom = mark.box
    above, below = (top - _TAG_PX, top), (bottom, bottom - _TAG_PX)
    return [(x, y) for y in (below if mark.look.dashed else above) for x in (left, right - width)]
