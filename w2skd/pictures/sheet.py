"""The white sheet that pictures are laid out on, in whole pixels and with text."""

import io
import math
import tempfile
import warnings
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from w2skd.errors import UsageError
from w2skd.platform.files import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

INK, MUTED = "#222222", "#666666"
MARGIN_PX, GAP_PX = 24, 8
TEXT_PX = 12
LINE_PX = 20
SHEET_PX = 2000
"""About how wide a sheet gets at most."""

_TITLE_PX = 17
_DPI = 64  # a power of two: whole pixels stay whole as inches


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


@dataclass
class Sheet:
    """White paper addressed in pixels from its top left corner, which grows with what is put on it."""

    _blocks: list[tuple[int, int, NDArray[np.uint8]]] = field(default_factory=list)
    _texts: list[tuple[float, float, str, dict[str, Any]]] = field(default_factory=list)
    _right: float = 0.0
    _bottom: float = 0.0

    def head(self, title: str, subtitle: str) -> int:
        """Title and subtitle; returns where the picture goes on."""
        self.write(MARGIN_PX, MARGIN_PX + _TITLE_PX // 2, cut(title, SHEET_PX // 2, _TITLE_PX), _TITLE_PX, bold=True)
        self.write(MARGIN_PX, MARGIN_PX + 32, subtitle, colour=MUTED)
        return MARGIN_PX + 50

    def paste(self, x: int, y: int, pixels: NDArray[np.uint8]) -> None:
        """Put RGB pixels, uint8 [H, W, 3], with their top left corner there."""
        self._blocks.append((x, y, pixels))
        self._grow(x + pixels.shape[1], y + pixels.shape[0])

    def write(
        self,
        x: float,
        y: float,
        text: str,
        size_px: int = TEXT_PX,
        *,
        colour: str = INK,
        bold: bool = False,
        align: str = "left",
        degrees: int = 0,
    ) -> None:
        """Put one line of text: begin, centre or end of its middle line there, turned left around that point."""
        look = {"color": colour, "ha": align, "rotation": degrees, "fontproperties": _font(size_px, bold)}
        self._texts.append((x, y, text, look))
        length, angle = width_of(text, size_px, bold), math.radians(degrees)
        after = length * {"left": 1, "center": 0.5, "right": 0}[align]
        self._grow(x + after * math.cos(angle), y + (length - after) * math.sin(angle) + size_px / 2)

    def _grow(self, right: float, bottom: float) -> None:
        self._right, self._bottom = max(self._right, right), max(self._bottom, bottom)

    def png(self) -> bytes:
        """The sheet with a margin around it; the same sheet gives the same bytes with the same matplotlib."""
        width, height = math.ceil(self._right) + MARGIN_PX, math.ceil(self._bottom) + MARGIN_PX
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


def enlarged(pixels: NDArray[np.uint8], zoom: int) -> NDArray[np.uint8]:
    """Every pixel of uint8 [H, W, 3] becomes a square of `zoom` pixels."""
    return pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)


@lru_cache(maxsize=4096)
def width_of(text: str, size_px: int, bold: bool = False) -> float:
    """How many pixels a line of text takes, as it will be drawn."""
    look: dict[str, Any] = {"fontproperties": _font(size_px, bold), "parse_math": False}
    with _boxes_for_missing_letters():
        return _figure(1, 1).text(0, 0, text, **look).get_window_extent().width


def cut(text: str, room_px: int, size_px: int) -> str:
    """One line that fits, with an ellipsis where it had to be cut; what cannot be printed is a question mark."""
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
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
def _boxes_for_missing_letters() -> Iterator[None]:
    """A letter that the font lacks becomes a box, which is no news for the terminal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
