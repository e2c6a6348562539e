"""Tables and lists of a report in a terminal."""

import re
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_WORDS = frozenset({"median", "seed", "run", "arm", "threshold", "reached", "state", "over seeds", "distilled until"})
"""Left-aligned columns."""

Cells = Sequence[str]


def table(head: Cells, rows: Iterable[Cells], *, coloured: bool = True) -> RenderableType:
    """Return a plain table with text left-aligned and numbers right-aligned; `coloured` shows ratios in colour."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    for name in head:
        table.add_column(
            name, justify="left" if name in _WORDS else "right", no_wrap=name == head[0], min_width=len(name)
        )
    for row in rows:
        table.add_row(*(Text(cell, style=_cell_style(cell) if coloured else "") for cell in row))
    return Padding(table, (0, 0, 0, 1))


def _cell_style(cell: str) -> str:
    """Return the colour of a ratio, by which arm it favours, or of a missed threshold."""
    if re.fullmatch(r"\d+\.\d\dx", cell):
        return "green" if float(cell[:-1]) > 1 else "red" if float(cell[:-1]) < 1 else ""
    return "yellow" if cell.startswith("not reached") else ""


def bullet(text: str, style: str = "") -> RenderableType:
    """Return a list item with a hanging indent."""
    table = Table.grid(padding=(0, 1))
    table.add_row(Text("-", style=style), Text(text, style=style))
    return table
