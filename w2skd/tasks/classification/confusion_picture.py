"""A picture of which classes are taken for which.

Shape letters: C classes.
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
    check_picture_path,
    cut,
    enlarged,
    width_of,
)
from w2skd.platform.files import write_atomically
from w2skd.tasks.classification.predictions import most_confused

LABELLED_CLASSES = 30
"""Up to so many classes, a confusion matrix has names and numbers."""

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
_LEAST_TEXT_PX = 7


def draw_confusion(counts: Tensor, classes: Sequence[str], path: Path, *, title: str) -> None:
    """Draw a confusion matrix: rows are true classes, columns predicted ones, colour is the share of the row.

    Up to `LABELLED_CLASSES` with the names, the number of examples in every cell and the share that is right beside
    every row; beyond that as a map, with the pairs that are most confused beside it.

    Args:
        counts: int64 [C, C], as `w2skd.tasks.classification.predictions.confusion` gives it.
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
    sheet = Sheet()
    y = sheet.head(title, f"{_percent(int(counts.diag().sum()), int(counts.sum()))} of {counts.sum():,} right")
    if len(classes) <= LABELLED_CLASSES:
        _draw_cells(sheet, _legend(sheet, y, _POWER_OF_CELLS), counts, classes)
    else:
        _draw_map(sheet, _legend(sheet, y, _POWER_OF_DOTS), counts, classes)
    write_atomically(path, sheet.png())


def _legend(sheet: Sheet, y: int, power: float) -> int:
    """What the colours say; returns where the picture goes on."""
    name, bar = "share of the true class", np.linspace(0, 1, 200)
    x = MARGIN_PX + math.ceil(width_of(name, TEXT_PX)) + GAP_PX
    sheet.write(MARGIN_PX, y + 6, name, colour=MUTED)
    sheet.paste(x, y, _colours(bar[None], 1).repeat(12, axis=0))
    for tick in _TICKS:
        sheet.write(x + round(len(bar) * tick**power), y + 22, f"{tick:.0%}", 10, colour=MUTED, align="center")
    return y + 56


def _draw_cells(sheet: Sheet, y: int, counts: Tensor, classes: Sequence[str]) -> None:
    """A cell for every pair, with names along both sides."""
    cell = min(max(_MATRIX_PX // len(classes), _CELL_PX[0]), _CELL_PX[1])
    names = [cut(name, _NAME_PX, TEXT_PX) for name in classes]
    widths = [width_of(name, TEXT_PX) for name in names]
    # Where names would touch they are turned, and then hang down to the left of their column.
    turned = max(widths) > cell - GAP_PX
    x = MARGIN_PX + LINE_PX + math.ceil(max(widths)) + 2 * GAP_PX
    side, middle = cell * len(classes), cell // 2
    shares = _shares(counts)
    painted = enlarged(_colours(shares, _POWER_OF_CELLS), cell)
    painted[::cell] = painted[:, ::cell] = 255  # a thin line between cells
    sheet.paste(x, y, painted)
    size = _number_size(counts, cell)
    for row, name in enumerate(names):
        at = y + row * cell + middle
        sheet.write(x - GAP_PX, at, name, align="right")
        right = _percent(int(counts[row, row]), int(counts[row].sum()))
        sheet.write(x + side + 58, at, right, align="right")
        for column in counts[row].nonzero().flatten().tolist():
            dark = shares[row, column] ** _POWER_OF_CELLS > _DARK
            text = _short(int(counts[row, column]))
            sheet.write(x + column * cell + middle, at, text, size, align="center", colour="white" if dark else INK)
    for column, name in enumerate(names):
        end = (x + column * cell + middle, y + side + GAP_PX + 4)
        sheet.write(*end, name, align="right" if turned else "center", degrees=45 if turned else 0)
    sheet.write(x + side + 58, y - 10, "right", colour=MUTED, align="right")
    sheet.write(MARGIN_PX + 6, y + side // 2, "true class", colour=MUTED, align="center", degrees=90)
    below = y + side + (round(max(widths) * math.sqrt(0.5)) if turned else 0) + 2 * LINE_PX
    sheet.write(x + side // 2, below, "predicted class", colour=MUTED, align="center")


def _draw_map(sheet: Sheet, y: int, counts: Tensor, classes: Sequence[str]) -> None:
    """A dot for every pair, numbers of classes along both sides, and the worst pairs in words."""
    together = math.ceil(len(classes) / _DOTS)
    # Of classes that share a dot the largest share shows: a mean would fade away.
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
        sheet.write(x - GAP_PX, y + along, str(number), 10, colour=MUTED, align="right")
        sheet.write(x + along, y - 12, str(number), 10, colour=MUTED, align="center")
    sheet.write(MARGIN_PX + 6, y + side // 2, "true class (number, from 0)", colour=MUTED, align="center", degrees=90)
    below = "predicted class (number, from 0)"
    if together > 1:
        below += f"; {together} x {together} pairs to a dot, the largest share shows"
    sheet.write(x + side // 2, y + side + LINE_PX, below, colour=MUTED, align="center")
    _list_pairs(sheet, x + side + 2 * MARGIN_PX, y, counts, classes)


def _list_pairs(sheet: Sheet, x: int, y: int, counts: Tensor, classes: Sequence[str]) -> None:
    pairs = most_confused(counts, classes, _PAIRS)
    sheet.write(x, y + 8, "most confused" if pairs else "nothing is confused", 14, bold=True)
    if not pairs:
        return
    rows = [(cut(row["true"], _NAME_PX, TEXT_PX), cut(row["predicted"], _NAME_PX, TEXT_PX)) for row in pairs]
    head = ("true class", "predicted")
    first, second = (
        math.ceil(max(width_of(row[column], TEXT_PX) for row in [head, *rows])) + MARGIN_PX for column in (0, 1)
    )
    ends = (x, x + first, x + first + second + 40, x + first + second + 100)
    aligned = ("left", "left", "right", "right")
    for end, text, align in zip(ends, (*head, "examples", "share"), aligned, strict=True):
        sheet.write(end, y + 34, text, colour=MUTED, align=align)
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


def _number_size(counts: Tensor, cell: int) -> int:
    """The largest size of figures, in pixels, with which the longest number fits a cell."""
    longest = "0" * max(len(_short(value)) for value in counts.flatten().tolist())
    size = min(cell // 3, 18)
    while size > _LEAST_TEXT_PX and width_of(longest, size) > cell - 6:
        size -= 1
    return size


def _short(count: int) -> str:
    return str(count) if count < 100_000 else f"{count / 1000:.0f}k"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"
