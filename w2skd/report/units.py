"""Format numbers with their units and significant digits."""

import math

from w2skd.recipe.evaluation import Metric
from w2skd.report.contract import Spread
from w2skd.report.crossing import Position

NONE = "-"


def level(value: float | None, metric: Metric) -> str:
    """Format a share as ``70.9%`` and other metrics with four digits: ``41.25``, ``0.001234``, ``12,345``."""
    if value is None:
        return NONE
    if metric.is_share:
        return f"{100 * value:.1f}%"
    return f"{value:,.0f}" if 9999.5 <= abs(value) < 1e7 else f"{value:.4g}"


def threshold(name: str, value: float | None, metric: Metric) -> str:
    """Format a threshold as ``teacher (70.9%)``, or as ``top1 90.0%`` if it is a number."""
    if value is None:
        return f"{name} (unknown)"
    return f"{metric.name} {level(value, metric)}" if _is_number(name) else f"{name} ({level(value, metric)})"


def epochs(value: float | None) -> str:
    """Format epochs: ``6``, ``7.5``."""
    return NONE if value is None else f"{round(value, 2):.10g}"


def count(value: float | None) -> str:
    """Format a count: ``3,910``, ``50,048``, ``1.28M``."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if value < 1e6 else _scaled(value, "")


def duration(seconds: float | None) -> str:
    """Format seconds: ``0.84 s``, ``84 s``, ``12.3 min``, ``5.2 h``."""
    if seconds is None:
        return NONE
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def flops(value: float | None) -> str:
    """Format operations: ``1.2 PFLOP``."""
    return NONE if value is None else _scaled(value, "FLOP")


def ratio(value: float | None) -> str:
    """Format a ratio: ``1.67x``."""
    return NONE if value is None else f"{value:.2f}x"


def median(spread: Spread | None) -> str:
    """Format a median ratio: ``1.67x``, or its bound where runs that never crossed leave it open: ``> 1.67x``."""
    if spread is None:
        return NONE
    if spread.median is not None:
        return ratio(spread.median)
    return between((spread.low, spread.high))


def between(interval: tuple[float, float | None]) -> str:
    """Format bounds of a ratio: ``1.20x to 1.80x``, ``> 1.20x``, ``< 1.80x``."""
    low, high = interval
    if high is None:
        return f"> {ratio(low)}" if low > 0 else "unknown"
    return f"{ratio(low)} to {ratio(high)}" if low > 0 else f"< {ratio(high)}"


def share(value: float | None) -> str:
    """Format a share of 1 in percent."""
    return NONE if value is None else f"{100 * value:.1f}%"


def place(position: Position | None, unit: str) -> str:
    """Format a position: ``epoch 6`` or ``step 6,000``."""
    if position is None:
        return NONE
    return f"epoch {epochs(position.epoch)}" if unit == "epoch" else f"step {position.step:,}"


def _scaled(value: float, unit: str) -> str:
    power = min(max(int(math.log10(value)) // 3, 0), 7) if value >= 1 else 0
    prefix = ("", "k", "M", "G", "T", "P", "E", "Z")[power]
    number = f"{value / 1000**power:.3g}" if value / 1000**power < 999.5 else f"{value / 1000**power:.0f}"
    return f"{number} {prefix}{unit}" if unit else f"{number}{prefix}"


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
