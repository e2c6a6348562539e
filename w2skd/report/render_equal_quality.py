"""Render the comparison of complete schedules: a table, and a picture of final scores over lengths."""

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from w2skd.platform.files import write_atomically
from w2skd.report import units
from w2skd.report.contract import Report
from w2skd.report.equal_quality_contract import AtLength, EqualQuality, Estimate
from w2skd.report.equal_quality_text import line_sentence, sentence
from w2skd.report.looks import looks
from w2skd.report.terminal import Cells

PRIMARY = (
    "The primary length is marked with \\*. A row gives the mean score at the end of an arm's schedule, the length at "
    "which the reference ends as well, and the speed-up with its confidence interval. The speed-up is the reference's "
    "length divided by the arm's; outside the lengths that were trained it is a bound. *+ teacher* adds the teacher's "
    "training, in epochs or steps of equal FLOPs, to the arm's length."
)
"""Explanation of the table, in Markdown."""

_SIZE_IN, _DPI = (7.0, 5.0), 150


def equal_quality_head(report: Report) -> Cells:
    """Return the head of the table."""
    intervals = {f"{100 * found.level:.4g}%" for found in report.equal_quality.values()}
    return ("arm", "length", "end", report.reference, "speed-up", *intervals, "+ teacher")


def equal_quality_rows(report: Report) -> Iterator[Cells]:
    """Yield one row per arm and length."""
    for arm, found in report.equal_quality.items():
        for at in found.lengths:
            mark = " *" if found.primary is not None and at.length == found.primary.length else ""
            yield (
                f"{arm}{mark}",
                _length(at.length, found),
                units.level(at.end, report.metric),
                show_length(at.reference_length, found),
                show_ratio(at.speedup),
                show_interval(at),
                units.NONE if at.with_teacher is None else show_ratio(at.with_teacher),
            )


def equal_quality_lines(report: Report) -> Iterator[str]:
    """Yield the result of every arm, and the line through its lengths, as sentences."""
    for found in report.equal_quality.values():
        yield sentence(found)
        if (line := line_sentence(found)) is not None:
            yield line


def equal_quality_notes(report: Report) -> list[str]:
    """Return the caveats of all comparisons, each once, and name the arms unless a caveat concerns all of them."""
    arms: dict[str, list[str]] = {}
    for arm, found in report.equal_quality.items():
        for line in found.notes:
            arms.setdefault(line.removesuffix("."), []).append(arm)
    count = len(report.equal_quality)
    return [
        line if len(names) == count or line.startswith(names[0]) else f"{', '.join(names)}: {line}"
        for line, names in arms.items()
    ]


def draw_ends(report: Report, path: Path) -> None:
    """Plot the final score of every complete schedule over its length, and the mean of every arm.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    scale = 100.0 if report.metric.is_share else 1.0
    with rc_context({"font.size": 11}):
        figure = Figure(figsize=_SIZE_IN, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.set_xscale("log")
        ticks = sorted({length for ends in report.ends.values() for length in ends.lengths})
        for arm, ends in report.ends.items():
            look: dict[str, Any] = looks(report.arms)[arm]
            dots: dict[str, Any] = {"color": look["color"], "linestyle": "none", "marker": "o", "markersize": 3.5}
            columns = list(zip(*ends.values, strict=True))
            for length, column in zip(ends.lengths, columns, strict=True):
                values = [scale * value for value in column if math.isfinite(value)]
                axes.plot([length] * len(values), values, alpha=0.4, **dots)
            means = [_mean(column) for column in columns]
            points = [(x, scale * y) for x, y in zip(ends.lengths, means, strict=True) if y is not None]
            axes.plot(*zip(*points, strict=True), linewidth=2.2, marker="o", markersize=5, label=arm, **look)
        axes.set_xticks(_apart(ticks))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"length of the complete schedule ({report.unit}s)")
        axes.set_ylabel(f"{report.metric.name} at the end{' (%)' if report.metric.is_share else ''}")
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        axes.set_title(f"{report.name}: complete schedules", loc="left", weight="bold")
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
    write_atomically(path, content.getvalue())


def _mean(column: tuple[float, ...]) -> float | None:
    values = [value for value in column if math.isfinite(value)]
    return sum(values) / len(values) if values else None


def _apart(ticks: list[float], least: float = 1.15) -> list[float]:
    """Return the ticks whose labels do not overlap on a logarithmic axis."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick >= least * kept[-1]:
            kept.append(tick)
    return kept


def _length(value: float, found: EqualQuality) -> str:
    return units.epochs(value) if found.unit == "epoch" else units.count(value)


def show_length(estimate: Estimate, found: EqualQuality) -> str:
    """Format the reference's length: ``12.4``, or a bound such as ``> 32``."""
    if estimate.more_than is not None:
        return f"> {_length(estimate.more_than, found)}"
    if estimate.less_than is not None:
        return f"< {_length(estimate.less_than, found)}"
    return units.NONE if estimate.value is None else _length(round(estimate.value, 1), found)


def show_ratio(estimate: Estimate) -> str:
    """Format a speed-up: ``2.06x``, or a bound such as ``> 2.67x``."""
    if estimate.more_than is not None:
        return f"> {units.ratio(estimate.more_than)}"
    return f"< {units.ratio(estimate.less_than)}" if estimate.less_than is not None else units.ratio(estimate.value)


def show_interval(at: AtLength) -> str:
    """Format the interval of a speed-up: ``1.20x to 1.80x``, ``> 1.20x``, or ``-`` without one."""
    interval = at.speedup.interval
    return units.NONE if interval is None else units.between((interval.low or 0.0, interval.high))
