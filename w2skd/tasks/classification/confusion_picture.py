"""A picture of a confusion matrix.

Shapes: C classes.
"""

import math
from collections.abc import Sequence
from pathlib import Path

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
    MUTED,
    TEXT_PX,
    Sheet,
    TextStyle,
    cut,
    enlarged,
    width_of,
)
from w2skd.tasks.classification.predictions import most_confused

LABELLED_CLASSES = 30
"""Maximum number of classes for which the matrix shows names and numbers."""

_MUTED = TextStyle(colour=MUTED)
_CENTRED = TextStyle(colour=MUTED, align="center")
_CENTRED_SMALL = TextStyle(10, colour=MUTED, align="center")
_UPRIGHT = TextStyle(colour=MUTED, align="center", degrees=90)
_LEFT, _RIGHT = TextStyle(), TextStyle(align="right")
_MUTED_RIGHT = TextStyle(colour=MUTED, align="right")

# One hue from white to dark differs in lightness alone, so it works in print and for colour-blind readers. A power of
# the share below 1 makes errors of one example in a hundred visible; single pixels need a smaller power than cells.
_MAP, _POWER_OF_CELLS, _POWER_OF_DOTS = "Blues", 0.5, 0.25
_DARK = 0.55  # above this value of the map, numbers are white
_TICKS = (0.0, 0.01, 0.1, 0.3, 1.0)

_MATRIX_PX = 640
_CELL_PX = (32, 96)
_NAME_PX = 170  # about 25 letters
_PAIRS = 25
_DOTS = 1000  # along each side; with more classes, several share a dot
_STEPS = [lead * 10**power for power in range(9) for lead in (1, 2, 5)]  # distance between numbered classes
_MIN_TEXT_PX = 7


def draw_confusion(counts: Tensor, classes: Sequence[str], path: Path, *, title: str) -> None:
    """Draw a confusion matrix: rows are true classes, columns predicted ones, colour is the share of the row.

    Up to `LABELLED_CLASSES` classes, it shows their names, the number of examples in each cell and the accuracy of each
    row. With more classes it is a map beside a list of the most confused pairs.

    Args:
        counts: int64 [C, C], see `w2skd.tasks.classification.predictions.confusion`.
        classes: C names.
        path: PNG file to write.
        title: heading.

    Raises:
        UsageError: the file name does not end in ``.png``.
        OutputError: the picture cannot be written.
    """
    assert counts.shape == (len(classes), len(classes)), (counts.shape, len(classes))
    counts = counts.cpu()
    sheet = Sheet()
    y = sheet.head(title, f"{_percent(int(counts.diag().sum()), int(counts.sum()))} of {counts.sum():,} correct")
    if len(classes) <= LABELLED_CLASSES:
        _draw_cells(sheet, _legend(sheet, y, _POWER_OF_CELLS), counts, classes)
    else:
        _draw_map(sheet, _legend(sheet, y, _POWER_OF_DOTS), counts, classes)
    sheet.save(path)


def _legend(sheet: Sheet, y: int, power: float) -> int:
    """Draw the colour bar; returns the y coordinate below it."""
    name, bar = "share of the true class", np.linspace(0, 1, 200)
    x = MARGIN_PX + math.ceil(width_of(name, TEXT_PX)) + GAP_PX
    sheet.write(MARGIN_PX, y + 6, name, _MUTED)
    sheet.paste(x, y, _colours(bar[None], 1).repeat(12, axis=0))
    for tick in _TICKS:
        sheet.write(x + round(len(bar) * tick**power), y + 22, f"{tick:.0%}", _CENTRED_SMALL)
    return y + 56


def _draw_cells(sheet: Sheet, y: int, counts: Tensor, classes: Sequence[str]) -> None:
    """Draw one cell per pair, with names along both sides."""
    cell = min(max(_MATRIX_PX // len(classes), _CELL_PX[0]), _CELL_PX[1])
    names = [cut(name, _NAME_PX, TEXT_PX) for name in classes]
    widths = [width_of(name, TEXT_PX) for name in names]
    # Names that would overlap are rotated and end below their column.
    rotated = max(widths) > cell - GAP_PX
    x = MARGIN_PX + LINE_PX + math.ceil(max(widths)) + 2 * GAP_PX
    side, middle = cell * len(classes), cell // 2
    shares = _shares(counts)
    painted = enlarged(_colours(shares, _POWER_OF_CELLS), cell)
    painted[::cell] = painted[:, ::cell] = 255  # a thin line between cells
    sheet.paste(x, y, painted)
    size = _number_size(counts, cell)
    for row, name in enumerate(names):
        at = y + row * cell + middle
        sheet.write(x - GAP_PX, at, name, _RIGHT)
        sheet.write(x + side + 58, at, _percent(int(counts[row, row]), int(counts[row].sum())), _RIGHT)
        for column in counts[row].nonzero().flatten().tolist():
            dark = shares[row, column] ** _POWER_OF_CELLS > _DARK
            style = TextStyle(size, colour="white" if dark else INK, align="center")
            sheet.write(x + column * cell + middle, at, _short(int(counts[row, column])), style)
    below_columns = TextStyle(align="right" if rotated else "center", degrees=45 if rotated else 0)
    for column, name in enumerate(names):
        sheet.write(x + column * cell + middle, y + side + GAP_PX + 4, name, below_columns)
    sheet.write(x + side + 58, y - 10, "correct", _MUTED_RIGHT)
    sheet.write(MARGIN_PX + 6, y + side // 2, "true class", _UPRIGHT)
    below = y + side + (round(max(widths) * math.sqrt(0.5)) if rotated else 0) + 2 * LINE_PX
    sheet.write(x + side // 2, below, "predicted class", _CENTRED)


def _draw_map(sheet: Sheet, y: int, counts: Tensor, classes: Sequence[str]) -> None:
    """Draw one dot per pair, class numbers along both sides, and a list of the most confused pairs."""
    together = math.ceil(len(classes) / _DOTS)
    # A dot for several pairs shows their largest share; a mean would be too pale.
    shares = functional.max_pool2d(torch.from_numpy(_shares(counts))[None], together, ceil_mode=True)[0].numpy()
    dot = max(1, 800 // len(shares))
    side = dot * len(shares)
    x = MARGIN_PX + LINE_PX + 44
    y += LINE_PX
    sheet.paste(x - 1, y - 1, np.full((side + 2, side + 2, 3), 0xDD, dtype=np.uint8))  # a thin frame
    sheet.paste(x, y, enlarged(_colours(shares, _POWER_OF_DOTS), dot))
    step = next(step for step in _STEPS if step * 10 >= len(classes))
    for number in range(0, len(classes), step):
        along = round((number / together + 0.5) * dot)
        sheet.write(x - GAP_PX, y + along, str(number), TextStyle(10, colour=MUTED, align="right"))
        sheet.write(x + along, y - 12, str(number), _CENTRED_SMALL)
    sheet.write(MARGIN_PX + 6, y + side // 2, "true class (number, from 0)", _UPRIGHT)
    below = "predicted class (number, from 0)"
    if together > 1:
        below += f"; each dot: {together} x {together} pairs, colour of the largest share"
    sheet.write(x + side // 2, y + side + LINE_PX, below, _CENTRED)
    _list_pairs(sheet, x + side + 2 * MARGIN_PX, y, counts, classes)


def _list_pairs(sheet: Sheet, x: int, y: int, counts: Tensor, classes: Sequence[str]) -> None:
    pairs = most_confused(counts, classes, _PAIRS)
    sheet.write(x, y + 8, "most confused" if pairs else "no confusions", TextStyle(14, bold=True))
    if not pairs:
        return
    rows = [(cut(row["true"], _NAME_PX, TEXT_PX), cut(row["predicted"], _NAME_PX, TEXT_PX)) for row in pairs]
    head = ("true class", "predicted")
    first, second = (
        math.ceil(max(width_of(row[column], TEXT_PX) for row in [head, *rows])) + MARGIN_PX for column in (0, 1)
    )
    ends = (x, x + first, x + first + second + 40, x + first + second + 100)
    for end, text, style in zip(
        ends, (*head, "examples", "share"), (_MUTED, _MUTED, _MUTED_RIGHT, _MUTED_RIGHT), strict=True
    ):
        sheet.write(end, y + 34, text, style)
    for index, (names, row) in enumerate(zip(rows, pairs, strict=True)):
        cells = (*names, f"{row['count']:,}", f"{100 * row['share']:.1f}%")
        for end, text, style in zip(ends, cells, (_LEFT, _LEFT, _RIGHT, _RIGHT), strict=True):
            sheet.write(end, y + 58 + index * 22, text, style)


def _shares(counts: Tensor) -> NDArray[np.float64]:
    """Return each cell's share of its row, in 0..1, [C, C]; a class without examples has a row of zeros."""
    shares: NDArray[np.float64] = (counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)).numpy()
    return shares


def _colours(shares: NDArray[np.float64], power: float) -> NDArray[np.uint8]:
    """Map shares in 0..1, [H, W], to RGB, uint8 [H, W, 3]."""
    from matplotlib import colormaps

    painted: NDArray[np.uint8] = colormaps[_MAP](shares**power, bytes=True)
    return painted[..., :3]


def _number_size(counts: Tensor, cell: int) -> int:
    """Return the largest font size in pixels for which the longest number fits into a cell."""
    longest = "0" * max(len(_short(value)) for value in counts.flatten().tolist())
    size = min(cell // 3, 18)
    while size > _MIN_TEXT_PX and width_of(longest, size) > cell - 6:
        size -= 1
    return size


def _short(count: int) -> str:
    return str(count) if count < 100_000 else f"{count / 1000:.0f}k"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"
