"""Pictures of what a model is given and of what it makes of it: a batch, a confusion matrix, boxes in images.

They are laid out in whole pixels, so that no image is smoothed and no cell of a matrix is lost to resampling.

Shape letters: N images, C classes, K boxes of one image.
"""

import io
import math
import tempfile
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from w2skd.errors import UsageError
from w2skd.files import write_atomically, writing
from w2skd.predictions import most_confused

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

LABELLED_CLASSES = 30
"""Up to so many classes, a confusion matrix has names and numbers."""

BATCH_IMAGES = 64
"""So many images of a batch are drawn at most, a square; fewer where they are large."""

BOXED_IMAGES = 16
"""So many images with boxes are drawn at most on one sheet."""

_INK, _MUTED = "#222222", "#666666"
_MARGIN_PX, _GAP_PX = 24, 8
_TITLE_PX, _TEXT_PX, _LEAST_TEXT_PX = 17, 12, 7
_LINE_PX = 20
_DPI = 64  # a power of two: whole pixels stay whole as inches

# One hue from white to dark, told apart by lightness alone, on paper and by every eye. A power of the share below 1
# lifts the rare errors, of one example in a hundred, out of the white; dots of a pixel need more of that than cells.
_MAP, _POWER_OF_CELLS, _POWER_OF_DOTS = "Blues", 0.5, 0.25
_DARK = 0.55  # from here on up the map, figures are white
_TICKS = (0.0, 0.01, 0.1, 0.3, 1.0)

_MATRIX_PX = 640
_CELL_PX = (32, 96)
_NAME_PX = 170  # about 25 letters
_PAIRS = 25
_DOTS = 1000  # along a side; more classes share a dot
_STEPS = [lead * 10**power for power in range(9) for lead in (1, 2, 5)]  # from one numbered class to the next

_TILE_PX = 160
_SHEET_PX = 2000

# Orange and blue, light and dark, are told apart by every eye. A rim of the other tone keeps each visible on any image.
_PREDICTED, _TRUE = (255, 158, 27), (0, 71, 171)
_DARK_RIM, _LIGHT_RIM = (38, 24, 0), (255, 255, 255)
_LINE_OF_BOX_PX, _DASH_PX = 2, 6
_TAG_PX, _TAG_TEXT_PX = 14, 11
_BOXED_TILE_PX = 600


def check_picture_path(path: Path) -> None:
    """Say before hours of work what would go wrong after them.

    Raises:
        UsageError: the file is not named ``.png``.
        OutputError: its folder is missing or read-only.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"cannot draw {path}: pictures are PNG files; name it {path.stem or 'picture'}.png")
    with writing(path), tempfile.TemporaryFile(dir=path.parent):
        pass


def draw_confusion(counts: Tensor, classes: Sequence[str], path: Path, *, title: str) -> None:
    """Draw a confusion matrix: rows are true classes, columns predicted ones, colour is the share of the row.

    Up to `LABELLED_CLASSES` with the names, the number of examples in every cell and the share that is right beside
    every row; beyond that as a map, with the pairs that are most confused beside it.

    Args:
        counts: int64 [C, C], as `w2skd.predictions.confusion` gives it.
        classes: C names.
        path: a PNG file.
        title: what was evaluated.

    Raises:
        UsageError: the file is not named ``.png``.
        OutputError: the picture cannot be written.
    """
    check_picture_path(path)
    assert counts.shape == (len(classes), len(classes)), (counts.shape, len(classes))
    counts = counts.cpu()
    sheet = _Sheet()
    y = _head(sheet, title, f"{_percent(int(counts.diag().sum()), int(counts.sum()))} of {counts.sum():,} right")
    if len(classes) <= LABELLED_CLASSES:
        _draw_cells(sheet, _legend(sheet, y, _POWER_OF_CELLS), counts, classes)
    else:
        _draw_map(sheet, _legend(sheet, y, _POWER_OF_DOTS), counts, classes)
    write_atomically(path, sheet.png())


def draw_batch(images: Tensor, captions: Sequence[str], path: Path, *, title: str) -> None:
    """Draw the first images of a batch in a grid, enlarged by a whole number without smoothing.

    Args:
        images: uint8 [N, 3, H, W], RGB.
        captions: N lines, one below each image; cut to its width.
        path: a PNG file.
        title: what they are; how many of them are drawn is said beside it.

    Raises:
        UsageError: the file is not named ``.png``.
        OutputError: the picture cannot be written.
    """
    check_picture_path(path)
    assert images.dtype is torch.uint8, images.dtype
    assert images.shape[1:2] == (3,), images.shape
    assert len(images) == len(captions), (len(images), len(captions))
    height, width = images.shape[2:]
    zoom = max(1, round(_TILE_PX / max(height, width)))
    across = max(2, min(math.isqrt(BATCH_IMAGES), _SHEET_PX // (zoom * width + _GAP_PX)))
    shown = min(len(images), across * across)
    columns = min(across, math.ceil(math.sqrt(shown)))
    sheet = _Sheet()
    enlarged = f", enlarged {zoom} times" if zoom > 1 else ""
    top = _head(sheet, title, f"{shown} of {len(images)}, {width} x {height} pixels{enlarged}")
    pixels = images[:shown].permute(0, 2, 3, 1).cpu().numpy()
    for index, (tile, caption) in enumerate(zip(pixels, captions, strict=False)):
        row, column = divmod(index, columns)
        x = _MARGIN_PX + column * (zoom * width + _GAP_PX)
        y = top + row * (zoom * height + _LINE_PX + _GAP_PX)
        sheet.paste(x, y, _enlarged(tile, zoom))
        sheet.write(x, y + zoom * height + _LINE_PX // 2, _cut(caption, zoom * width, _TEXT_PX))
    write_atomically(path, sheet.png())


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
    sheet = _Sheet()
    shown = min(len(images), BOXED_IMAGES)
    top = _head(sheet, title, f"{shown} of {len(images)}")
    x = _MARGIN_PX
    for text, look in ((f"predicted, from a score of {least_score:.2f}", _SOLID), ("true", _DASHED)):
        sample = np.full((16, 28, 3), 255, dtype=np.uint8)
        look.draw(sample, (0, 0, 28, 16))
        sheet.paste(x, top, sample)
        sheet.write(x + 28 + _GAP_PX, top + 8, text)
        x += 28 + _GAP_PX + math.ceil(_width(text, _TEXT_PX)) + _MARGIN_PX
    top += 16 + 2 * _GAP_PX

    tiles = []
    for image, found, there in zip(images[:shown], predicted, true, strict=False):
        assert image.dtype is torch.uint8, image.dtype
        assert image.shape[:1] == (3,), image.shape
        pixels, scale = _to_tile_size(image)
        marks = [*_predicted_marks(*found, scale, classes, least_score), *_true_marks(*there, scale, classes)]
        tiles.append((pixels, _mark(pixels, [cut for mark in marks if (cut := mark.within(pixels))])))
    width = max((pixels.shape[1] for pixels, _ in tiles), default=0)
    columns = max(1, min(math.ceil(math.sqrt(shown)), _SHEET_PX // (width + _GAP_PX)))
    y = top
    for first in range(0, shown, columns):
        row = tiles[first : first + columns]
        for column, ((pixels, tags), caption) in enumerate(zip(row, captions[first:], strict=False)):
            x = _MARGIN_PX + column * (width + _GAP_PX)
            sheet.paste(x, y, pixels)
            for tag in tags:
                sheet.write(x + tag.x + 3, y + tag.y + _TAG_PX / 2, tag.text, _TAG_TEXT_PX, colour=tag.colour)
            sheet.write(x, y + pixels.shape[0] + _LINE_PX // 2, _cut(caption, pixels.shape[1], _TEXT_PX))
        y += max(pixels.shape[0] for pixels, _ in row) + _LINE_PX + _GAP_PX
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


_SOLID = _Look(_PREDICTED, _DARK_RIM, _INK, dashed=False)
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
    return _enlarged(image.permute(1, 2, 0).cpu().numpy(), zoom), zoom / share


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
    return _cut(name, _NAME_PX // 2, _TAG_TEXT_PX)


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
        width = math.ceil(_width(mark.name, _TAG_TEXT_PX)) + 6
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


def _head(sheet: "_Sheet", title: str, subtitle: str) -> int:
    """Title and subtitle; returns where the picture goes on."""
    sheet.write(_MARGIN_PX, _MARGIN_PX + _TITLE_PX // 2, _cut(title, _SHEET_PX // 2, _TITLE_PX), _TITLE_PX, bold=True)
    sheet.write(_MARGIN_PX, _MARGIN_PX + 32, subtitle, colour=_MUTED)
    return _MARGIN_PX + 50


def _legend(sheet: "_Sheet", y: int, power: float) -> int:
    """What the colours say; returns where the picture goes on."""
    name, bar = "share of the true class", np.linspace(0, 1, 200)
    x = _MARGIN_PX + math.ceil(_width(name, _TEXT_PX)) + _GAP_PX
    sheet.write(_MARGIN_PX, y + 6, name, colour=_MUTED)
    sheet.paste(x, y, _colours(bar[None], 1).repeat(12, axis=0))
    for tick in _TICKS:
        sheet.write(x + round(len(bar) * tick**power), y + 22, f"{tick:.0%}", 10, colour=_MUTED, align="center")
    return y + 56


def _draw_cells(sheet: "_Sheet", y: int, counts: Tensor, classes: Sequence[str]) -> None:
    """A cell for every pair, with names along both sides."""
    cell = min(max(_MATRIX_PX // len(classes), _CELL_PX[0]), _CELL_PX[1])
    names = [_cut(name, _NAME_PX, _TEXT_PX) for name in classes]
    widths = [_width(name, _TEXT_PX) for name in names]
    # Where names would touch they are turned, and then hang down to the left of their column.
    turned = max(widths) > cell - _GAP_PX
    x = _MARGIN_PX + _LINE_PX + math.ceil(max(widths)) + 2 * _GAP_PX
    side, middle = cell * len(classes), cell // 2
    shares = _shares(counts)
    painted = _enlarged(_colours(shares, _POWER_OF_CELLS), cell)
    painted[::cell] = painted[:, ::cell] = 255  # a thin line between cells
    sheet.paste(x, y, painted)
    size = _number_size(counts, cell)
    for row, name in enumerate(names):
        at = y + row * cell + middle
        sheet.write(x - _GAP_PX, at, name, align="right")
        right = _percent(int(counts[row, row]), int(counts[row].sum()))
        sheet.write(x + side + 58, at, right, align="right")
        for column in counts[row].nonzero().flatten().tolist():
            dark = shares[row, column] ** _POWER_OF_CELLS > _DARK
            text = _short(int(counts[row, column]))
            sheet.write(x + column * cell + middle, at, text, size, align="center", colour="white" if dark else _INK)
    for column, name in enumerate(names):
        end = (x + column * cell + middle, y + side + _GAP_PX + 4)
        sheet.write(*end, name, align="right" if turned else "center", degrees=45 if turned else 0)
    sheet.write(x + side + 58, y - 10, "right", colour=_MUTED, align="right")
    sheet.write(_MARGIN_PX + 6, y + side // 2, "true class", colour=_MUTED, align="center", degrees=90)
    below = y + side + (round(max(widths) * math.sqrt(0.5)) if turned else 0) + 2 * _LINE_PX
    sheet.write(x + side // 2, below, "predicted class", colour=_MUTED, align="center")


def _draw_map(sheet: "_Sheet", y: int, counts: Tensor, classes: Sequence[str]) -> None:
    """A dot for every pair, numbers of classes along both sides, and the worst pairs in words."""
    together = math.ceil(len(classes) / _DOTS)
    # Of classes that share a dot the largest share shows: a mean would fade away.
    shares = functional.max_pool2d(torch.from_numpy(_shares(counts))[None], together, ceil_mode=True)[0].numpy()
    dot = max(1, 800 // len(shares))
    side = dot * len(shares)
    x = _MARGIN_PX + _LINE_PX + 44
    y += _LINE_PX
    sheet.paste(x - 1, y - 1, np.full((side + 2, side + 2, 3), 0xDD, dtype=np.uint8))  # a thin frame
    sheet.paste(x, y, _enlarged(_colours(shares, _POWER_OF_DOTS), dot))
    step = next(step for step in _STEPS if step * 10 >= len(classes))
    for number in range(0, len(classes), step):
        along = round((number / together + 0.5) * dot)
        sheet.write(x - _GAP_PX, y + along, str(number), 10, colour=_MUTED, align="right")
        sheet.write(x + along, y - 12, str(number), 10, colour=_MUTED, align="center")
    sheet.write(_MARGIN_PX + 6, y + side // 2, "true class (number, from 0)", colour=_MUTED, align="center", degrees=90)
    below = "predicted class (number, from 0)"
    if together > 1:
        below += f"; {together} x {together} pairs to a dot, the largest share shows"
    sheet.write(x + side // 2, y + side + _LINE_PX, below, colour=_MUTED, align="center")
    _list_pairs(sheet, x + side + 2 * _MARGIN_PX, y, counts, classes)


def _list_pairs(sheet: "_Sheet", x: int, y: int, counts: Tensor, classes: Sequence[str]) -> None:
    pairs = most_confused(counts, classes, _PAIRS)
    sheet.write(x, y + 8, "most confused" if pairs else "nothing is confused", 14, bold=True)
    if not pairs:
        return
    rows = [(_cut(row["true"], _NAME_PX, _TEXT_PX), _cut(row["predicted"], _NAME_PX, _TEXT_PX)) for row in pairs]
    head = ("true class", "predicted")
    first, second = (
        math.ceil(max(_width(row[column], _TEXT_PX) for row in [head, *rows])) + _MARGIN_PX for column in (0, 1)
    )
    ends = (x, x + first, x + first + second + 40, x + first + second + 100)
    aligned = ("left", "left", "right", "right")
    for end, text, align in zip(ends, (*head, "examples", "share"), aligned, strict=True):
        sheet.write(end, y + 34, text, colour=_MUTED, align=align)
    for index, (names, row) in enumerate(zip(rows, pairs, strict=True)):
        cells = (*names, f"{row['count']:,}", f"{100 * row['share']:.1f}%")
        for end, text, align in zip(ends, cells, aligned, strict=True):
            sheet.write(end, y + 58 + index * 22, text, align=align)


def _shares(counts: Tensor) -> NDArray[np.float64]:
    """Each cell's share of its row, in 0..1, [C, C]; zeros in the row of a class without examples."""
    shares: NDArray[np.float64] = (counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)).numpy()
    return shares


def _colours(shares: NDArray[np.float64], power: float) -> NDArray[np.uint8]:
    """Shares in 0..1, [H, W], to RGB, uint8 [H, W, 3]."""
    from matplotlib import colormaps

    painted: NDArray[np.uint8] = colormaps[_MAP](shares**power, bytes=True)
    return painted[..., :3]


def _enlarged(pixels: NDArray[np.uint8], zoom: int) -> NDArray[np.uint8]:
    """Every pixel of uint8 [H, W, 3] becomes a square of `zoom` pixels."""
    return pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _number_size(counts: Tensor, cell: int) -> int:
    """The largest size of figures, in pixels, with which the longest number fits a cell."""
    longest = "0" * max(len(_short(value)) for value in counts.flatten().tolist())
    size = min(cell // 3, 18)
    while size > _LEAST_TEXT_PX and _width(longest, size) > cell - 6:
        size -= 1
    return size


def _short(count: int) -> str:
    return str(count) if count < 100_000 else f"{count / 1000:.0f}k"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


@dataclass
class _Sheet:
    """White paper addressed in pixels from its top left corner, which grows with what is put on it."""

    _blocks: list[tuple[int, int, NDArray[np.uint8]]] = field(default_factory=list)
    _texts: list[tuple[float, float, str, dict[str, Any]]] = field(default_factory=list)
    _right: float = 0.0
    _bottom: float = 0.0

    def paste(self, x: int, y: int, pixels: NDArray[np.uint8]) -> None:
        """Put RGB pixels, uint8 [H, W, 3], with their top left corner there."""
        self._blocks.append((x, y, pixels))
        self._grow(x + pixels.shape[1], y + pixels.shape[0])

    def write(
        self,
        x: float,
        y: float,
        text: str,
        size_px: int = _TEXT_PX,
        *,
        colour: str = _INK,
        bold: bool = False,
        align: str = "left",
        degrees: int = 0,
    ) -> None:
        """Put one line of text: begin, centre or end of its middle line there, turned left around that point."""
        look = {"color": colour, "ha": align, "rotation": degrees, "fontproperties": _font(size_px, bold)}
        self._texts.append((x, y, text, look))
        length, angle = _width(text, size_px, bold), math.radians(degrees)
        after = length * {"left": 1, "center": 0.5, "right": 0}[align]
        self._grow(x + after * math.cos(angle), y + (length - after) * math.sin(angle) + size_px / 2)

    def _grow(self, right: float, bottom: float) -> None:
        self._right, self._bottom = max(self._right, right), max(self._bottom, bottom)

    def png(self) -> bytes:
        """The sheet with a margin around it; the same sheet gives the same bytes with the same matplotlib."""
        width, height = math.ceil(self._right) + _MARGIN_PX, math.ceil(self._bottom) + _MARGIN_PX
        canvas = np.full((height, width, 3), 255, dtype=np.uint8)
        for left, top, pixels in self._blocks:
            canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        figure = _figure(width, height)
        figure.figimage(canvas, origin="upper")
        for x, y, text, look in self._texts:
            # Names of classes are no formulas, whatever dollars they have.
            placed: dict[str, Any] = {"va": "center", "rotation_mode": "anchor", "parse_math": False, **look}
            figure.text(x / width, 1 - y / height, text, **placed)
        content = io.BytesIO()
        with _boxes_for_missing_letters():
            figure.savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
        return content.getvalue()


def _figure(width_px: int, height_px: int) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_px / _DPI, height_px / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    return figure


def _font(size_px: int, bold: bool) -> "FontProperties":
    from matplotlib.font_manager import FontProperties

    return FontProperties(family="DejaVu Sans", size=size_px * 72 / _DPI, weight="bold" if bold else "normal")


@lru_cache(maxsize=4096)
def _width(text: str, size_px: int, bold: bool = False) -> float:
    """How many pixels a line of text takes, as it will be drawn."""
    look: dict[str, Any] = {"fontproperties": _font(size_px, bold), "parse_math": False}
    with _boxes_for_missing_letters():
        return _figure(1, 1).text(0, 0, text, **look).get_window_extent().width


@contextmanager
def _boxes_for_missing_letters() -> Iterator[None]:
    """A letter that the font lacks becomes a box, which is no news for the terminal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _cut(text: str, room_px: int, size_px: int) -> str:
    """One line that fits, with an ellipsis where it had to be cut; what cannot be printed is a question mark."""
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    if _width(text, size_px) <= room_px:
        return text
    kept = bisect_left(range(len(text)), True, key=lambda end: _width(f"{text[: end + 1]}…", size_px) > room_px)
    return f"{text[:kept].rstrip()}…"
