"""A white sheet on which pictures are laid out in whole pixels, with text."""

import io
import math
import warnings
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from w2skd.errors import UsageError
from w2skd.platform.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

INK, MUTED = "#222222", "#666666"
MARGIN_PX, GAP_PX = 24, 8
TEXT_PX = 12
LINE_PX = 20
SHEET_PX = 2000
"""Approximate maximum width of a sheet."""

_TITLE_PX = 17
_DPI = 64  # a power of two, so that whole pixels are exact in inches


@dataclass(frozen=True)
class TextStyle:
    """The look of a line of text.

    Attributes:
        size_px: font size.
        colour: as matplotlib names it.
        bold: use the bold font.
        align: which end of the line is at its position: ``left``, ``center`` or ``right``.
        degrees: counterclockwise rotation around that position.
    """

    size_px: int = TEXT_PX
    colour: str = INK
    bold: bool = False
    align: Literal["left", "center", "right"] = "left"
    degrees: int = 0


_TITLE, _SUBTITLE = TextStyle(_TITLE_PX, bold=True), TextStyle(colour=MUTED)


@dataclass
class Sheet:
    """A white canvas with pixel coordinates from the top left corner, which grows with its content."""

    _blocks: list[tuple[int, int, NDArray[np.uint8]]] = field(default_factory=list)
    _texts: list[tuple[float, float, str, TextStyle]] = field(default_factory=list)
    _right: float = 0.0
    _bottom: float = 0.0

    def head(self, title: str, subtitle: str) -> int:
        """Write title and subtitle; returns the y coordinate below them."""
        self.write(MARGIN_PX, MARGIN_PX + _TITLE_PX // 2, cut(title, SHEET_PX // 2, _TITLE_PX), _TITLE)
        self.write(MARGIN_PX, MARGIN_PX + 32, subtitle, _SUBTITLE)
        return MARGIN_PX + 50

    def paste(self, x: int, y: int, pixels: NDArray[np.uint8]) -> None:
        """Paste RGB pixels, uint8 [H, W, 3], with their top left corner at (x, y)."""
        self._blocks.append((x, y, pixels))
        self._grow(x + pixels.shape[1], y + pixels.shape[0])

    def write(self, x: float, y: float, text: str, style: TextStyle = TextStyle()) -> None:
        """Write one line of text, vertically centred at y."""
        self._texts.append((x, y, text, style))
        length, angle = width_of(text, style.size_px, style.bold), math.radians(style.degrees)
        after = length * {"left": 1, "center": 0.5, "right": 0}[style.align]
        self._grow(x + after * math.cos(angle), y + (length - after) * math.sin(angle) + style.size_px / 2)

    def _grow(self, right: float, bottom: float) -> None:
        self._right, self._bottom = max(self._right, right), max(self._bottom, bottom)

    def save(self, path: Path) -> None:
        """Write the sheet with a margin as a PNG file; the same matplotlib gives the same bytes.

        Raises:
            UsageError: the file name does not end in ``.png``.
            OutputError: the file cannot be written.
        """
        if path.suffix.lower() != ".png":
            raise UsageError(f"cannot draw {path}: pictures are PNG files; name it {path.stem or 'picture'}.png")
        width, height = math.ceil(self._right) + MARGIN_PX, math.ceil(self._bottom) + MARGIN_PX
        canvas = np.full((height, width, 3), 255, dtype=np.uint8)
        for left, top, pixels in self._blocks:
            canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        figure = _figure(width, height)
        figure.figimage(canvas, origin="upper")
        for x, y, text, style in self._texts:
            look: dict[str, Any] = {
                "color": style.colour,
                "ha": style.align,
                "va": "center",
                "rotation": style.degrees,
                "rotation_mode": "anchor",
                "fontproperties": _font(style.size_px, style.bold),
                "parse_math": False,  # dollar signs in class names are not formulas
            }
            figure.text(x / width, 1 - y / height, text, **look)
        content = io.BytesIO()
        with _without_glyph_warnings():
            figure.savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
        write_atomically(path, content.getvalue())


def enlarged(pixels: NDArray[np.uint8], zoom: int) -> NDArray[np.uint8]:
    """Enlarge an image, uint8 [H, W, 3], by the factor `zoom` without interpolation."""
    return pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)


@lru_cache(maxsize=4096)
def width_of(text: str, size_px: int, bold: bool = False) -> float:
    """Return the width in pixels of a line of text."""
    look: dict[str, Any] = {"fontproperties": _font(size_px, bold), "parse_math": False}
    with _without_glyph_warnings():
        return _figure(1, 1).text(0, 0, text, **look).get_window_extent().width


def cut(text: str, room_px: int, size_px: int) -> str:
    """Shorten a text to one line of at most `room_px`, with an ellipsis; unprintable characters become ``?``."""
    text = "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
    if width_of(text, size_px) <= room_px:
        return text
    kept = bisect_left(range(len(text)), True, key=lambda end: width_of(f"{text[: end + 1]}…", size_px) > room_px)
    return f"{text[:kept].rstrip()}…"


def _figure(width_px: int, height_px: int) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_px / _DPI, height_px / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    return figure


def _font(size_px: int, bold: bool) -> "FontProperties":
    from matplotlib.font_manager import FontProperties

    return FontProperties(family="DejaVu Sans", size=size_px * 72 / _DPI, weight="bold" if bold else "normal")


@contextmanager
def _without_glyph_warnings() -> Iterator[None]:
    """Suppress matplotlib's warnings about characters that the font lacks, which are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
