"""Pictures of what a classifier is given and of what it makes of it: a batch, and a confusion matrix.

They are laid out in whole pixels, so that no image is smoothed and no cell of a matrix is lost to resampling.

Shape letters: N images, C classes.
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
from typing import TYPE_CHECKING, Any

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
