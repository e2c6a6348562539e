"""Plot an experiment's metric over epochs and over training time."""

import io
import math
import statistics
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2skd.platform.files import write_atomically
from w2skd.recipe.arms import TEACHER
from w2skd.recipe.evaluation import Metric
from w2skd.report import units
from w2skd.report.censored import median_crossing
from w2skd.report.contract import Report, RunReport, ThresholdReport
from w2skd.report.looks import looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _MUTED, _FAINT = "#222222", "#666666", "#DDDDDD"
_TEACHER: Any = {"color": "#999999", "linewidth": 1.6, "linestyle": (0, (1, 1.2))}
_SIZE_IN, _DPI = (12.0, 5.0), 150
_ROW = 0.05  # height of a label as a share of the panel's height
_BOLD_PT, _PLAIN_PT = 8, 6  # average width of a letter
_NEAR = 0.25  # levels beyond the values by up to this share of their range are shown
_WORST_LEFT_OUT = 0.1  # share of the values cut off, since the first validations would squeeze the rest
_WIDE = 5.0  # ratio of largest to smallest value from which metrics that are not shares get a log axis
_MANTISSAS = ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9))
_LEAST_TICKS = 4
_MOST_IN_A_ROW = 5  # entries of the legend


@dataclass(frozen=True)
class _Heights:
    """Maps a metric's values to the y axis: in percent, unchanged, or as logarithms.

    An FID falls from hundreds to a few; a linear axis would hide the interesting part.
    """

    metric: Metric
    by_logarithm: bool

    @classmethod
    def of_report(cls, report: Report) -> "_Heights":
        runs = [run for run in report.runs if run.arm in report.arms]
        values = [value for run in runs for value in run.curve.value if value is not None]
        is_share = report.metric.is_share
        wide = bool(values) and min(values) > 0 and max(values) >= _WIDE * min(values)
        return cls(report.metric, not is_share and wide)

    def of(self, value: float) -> float:
        if self.by_logarithm:
            return math.log10(value) if value > 0 else -math.inf
        return 100 * value if self.metric.is_share else value

    @property
    def name(self) -> str:
        if self.by_logarithm:
            return f"{self.metric.name} (logarithmic)"
        return f"{self.metric.name} (%)" if self.metric.is_share else self.metric.name

    def mark(self, axes: "Axes") -> None:
        """Put ticks at round values of a logarithmic axis; to matplotlib, the axis is linear in log10."""
        if not self.by_logarithm:
            return
        low, high = axes.get_ylim()
        ticks: list[float] = []
        for mantissas in _MANTISSAS:
            powers = range(math.floor(low), math.ceil(high) + 1)
            ticks = [mantissa * 10.0**power for power in powers for mantissa in mantissas]
            ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
            if len(ticks) >= _LEAST_TICKS:
                break
        axes.set_yticks([math.log10(tick) for tick in ticks], [units.level(tick, self.metric) for tick in ticks])


@dataclass(frozen=True)
class _Line:
    """The plotted points of one run in one panel, by step."""

    steps: Sequence[int]
    x: Sequence[float]
    y: Sequence[float]

    def at(self, step: int) -> tuple[float, float] | None:
        """Return the point at a step, interpolated between validations; None outside the line."""
        after = bisect_left(self.steps, step)
        if after < len(self.steps) and self.steps[after] == step:
            return self.x[after], self.y[after]
        if not 0 < after < len(self.steps):
            return None
        before = after - 1
        share = (step - self.steps[before]) / (self.steps[after] - self.steps[before])
        x, y = ((1 - share) * values[before] + share * values[after] for values in (self.x, self.y))
        return x, y


@dataclass(frozen=True)
class _Label:
    """A level, drawn as a line across the panel, and the text at its right end."""

    level: float
    text: str
    ratio: str
    ends: tuple[tuple[str, float], ...] = ()


def draw_curves(report: Report, path: Path) -> None:
    """Draw every run (thin), the median over seeds (thick), the thresholds and the ends of distillation.

    The teacher's own training is dotted if it belongs to the experiment and was scored like the other runs.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {"font.size": 11, "axes.edgecolor": _MUTED, "xtick.color": _MUTED, "ytick.color": _MUTED}
    style |= {"text.color": _INK, "axes.labelcolor": _INK}
    with rc_context(style):
        figure = Figure(figsize=_SIZE_IN, layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharey=True)
        heights = _Heights.of_report(report)
        _panel(left, report, report.unit, heights)
        _panel(right, report, "seconds", heights)
        left.set_ylabel(heights.name)
        right.tick_params(labelleft=False)
        _head(figure, report)
        content = io.BytesIO()
        # Omit matplotlib's version, so that the bytes depend on the drawing only.
        figure.savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
    write_atomically(path, content.getvalue())


def _panel(axes: "Axes", report: Report, against: str, heights: _Heights) -> None:
    from matplotlib.ticker import MaxNLocator

    scale, unit = _time_unit(report) if against == "seconds" else (1.0, against)
    axes.set_xlabel(f"training time ({unit})" if against == "seconds" else unit)
    drawn: list[_Line] = []
    for arm, look in looks(report.arms).items():
        runs = [run for run in report.runs if run.arm == arm]
        lines = {run.run: _line(run, against, scale, heights) for run in runs}
        for line in lines.values() if len(lines) > 1 else ():
            axes.plot(line.x, line.y, color=look["color"], linewidth=0.9, alpha=0.4, zorder=2)
        middle = _median(list(lines.values()))
        axes.plot(middle.x, middle.y, linewidth=2.6, zorder=3, **look)
        _mark_switches(axes, runs, lines, look["color"])
        drawn += lines.values()
    for run in _teachers(report):
        line = _line(run, against, scale, heights)
        axes.plot(line.x, line.y, zorder=1.5, **_TEACHER)
    labels = _labels(report, against, scale, heights)
    _limit(axes, report, drawn, labels, all_values=heights.by_logarithm)
    heights.mark(axes)
    # Both panels share the y axis, so only one shows names.
    _mark_levels(axes, labels, named=against == "seconds")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3)
    if against != "seconds":
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", color=_FAINT, linewidth=0.5)
    axes.set_axisbelow(True)


def _teachers(report: Report) -> list[RunReport]:
    return [
        run
        for run in report.runs
        if run.arm == TEACHER and (run.environment.get("scoring") or {}) == report.scoring and run.curve.value
    ]


def _line(run: RunReport, against: str, scale: float, heights: _Heights) -> _Line:
    points = [
        (step, x / scale, heights.of(y))
        for step, x, y in zip(run.curve.step, getattr(run.curve, against), run.curve.value, strict=True)
        if x is not None and y is not None
    ]
    steps, xs, ys = zip(*points, strict=True) if points else ((), (), ())
    return _Line(steps, xs, ys)


def _median(lines: Sequence[_Line]) -> _Line:
    """Return the median over seeds at the validations that all seeds share, since it would jump where one ends."""
    common = sorted(set.intersection(*(set(line.steps) for line in lines))) if lines else []
    points = [[line.at(step) or (0.0, 0.0) for line in lines] for step in common]
    x, y = ([statistics.median(point[axis] for point in places) for places in points] for axis in (0, 1))
    return _Line(common, x, y)


def _mark_switches(axes: "Axes", runs: Sequence[RunReport], lines: Mapping[str, _Line], colour: str) -> None:
    for run in runs:
        point = lines[run.run].at(run.distillation_off.step) if run.distillation_off else None
        if point:
            axes.plot(*point, marker="o", markersize=7, markerfacecolor="white", color=colour, zorder=5)


def _labels(report: Report, against: str, scale: float, heights: _Heights) -> list[_Label]:
    """Return all levels of the report, and the teacher's level unless a threshold equals it."""
    labels = [
        _Label(
            heights.of(threshold.value),
            units.threshold(threshold.name, threshold.value, report.metric),
            _ratio(threshold, against),
            _ends(threshold, report, against, scale),
        )
        for threshold in report.thresholds
        if threshold.value is not None
    ]
    level = report.teacher.level if report.teacher else None
    if level is not None and all(threshold.value != level for threshold in report.thresholds):
        text = f"teacher ({units.level(level, report.metric)})"
        labels.append(_Label(heights.of(level), text, ""))
    return sorted(labels, key=lambda label: label.level)


def _ratio(threshold: ThresholdReport, against: str) -> str:
    """Return the speed-up if only one arm is compared with the reference, else an empty string."""
    if len(threshold.arms) != 1:
        return ""
    (found,) = threshold.arms.values()
    spread = found.speedup_over_seeds[{"epoch": "epochs", "step": "steps"}.get(against, against)]
    if spread:
        return "no difference" if found.verdict == "no difference" else units.median(spread)
    arrived = [arm for arm, places in threshold.first.items() if any(places.values())]
    return f"{arrived[0]} only" if len(arrived) == 1 else "" if arrived else "not reached"


def _ends(threshold: ThresholdReport, report: Report, against: str, scale: float) -> tuple[tuple[str, float], ...]:
    """Return the colour and the median crossing of every arm; empty unless the medians of all arms are known."""
    seeds = set.intersection(*(set(crossings) for crossings in threshold.first.values()))
    colours, ends = looks(report.arms), []
    for arm in threshold.first:
        bounds = median_crossing(threshold, arm, against, sorted(seeds))
        if bounds is None or bounds.high > bounds.low:
            return ()
        ends.append((colours[arm]["color"], bounds.low / scale))
    return tuple(ends) if len(ends) > 1 else ()


def _limit(axes: "Axes", report: Report, lines: Sequence[_Line], labels: Sequence[_Label], *, all_values: bool) -> None:
    """Set the axis limits; unless `all_values`, cut off the worst of the first validations."""
    axes.set_xlim(0, 1.02 * max([x for line in lines for x in line.x], default=1.0))
    values = sorted(y for line in lines for y in line.y)
    if not values:
        return
    skipped = 0 if all_values else int(_WORST_LEFT_OUT * len(values))
    shown = values[skipped:] if report.metric.higher_is_better else values[: len(values) - skipped]
    reach = _NEAR * (values[-1] - values[0])
    levels = [label.level for label in labels if values[0] - reach <= label.level <= values[-1] + reach]
    low, high = min(*shown, *levels, shown[0]), max(*shown, *levels, shown[0])
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)


def _mark_levels(axes: "Axes", labels: Sequence[_Label], named: bool) -> None:
    """Draw a line at every level, mark the distance between the crossings, and label it beside the panel."""
    low, high = axes.get_ylim()
    inside = [label for label in labels if low <= label.level <= high]
    heights = _apart([(label.level - low) / (high - low) for label in inside])
    for label, height in zip(inside, heights, strict=True):
        axes.axhline(label.level, color=_MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        if label.ends:
            places = [x for _, x in label.ends]
            axes.plot([min(places), max(places)], [label.level] * 2, color=_INK, linewidth=1.4, zorder=4)
            for colour, x in label.ends:
                axes.plot(x, label.level, marker="o", markersize=5.5, color=colour, markeredgecolor="white", zorder=6)
        beside: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "center"}
        axes.annotate(label.ratio, (1, height), (5, 0), weight="bold" if label.ends else "normal", size=11, **beside)
        if named:
            gap = (_BOLD_PT if label.ends else _PLAIN_PT) * len(label.ratio) + 5
            axes.annotate(
                label.text, (1, height), (5 + (gap if label.ratio else 0), 0), color=_MUTED, size=10, **beside
            )


def _apart(heights: Sequence[float]) -> list[float]:
    """Push ascending label heights apart until no labels overlap, within the panel."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + _ROW) if placed else height)
    top = 1.0
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], top)
        top = placed[index] - _ROW
    return placed


def _head(figure: "Figure", report: Report) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for arm, look in looks(report.arms).items():
        seeds = sum(run.arm == arm for run in report.runs)
        text = f"{arm}, median of {seeds}" if seeds > 1 else f"{arm}, {seeds} seed{'s' if seeds != 1 else ''}"
        handles.append(Line2D([], [], linewidth=2.6, label=text, **look))
    if _teachers(report):
        handles.append(Line2D([], [], label="teacher", **_TEACHER))
    if any(run.distillation_off for run in report.runs):
        ended = {run.arm for run in report.runs if run.distillation_off}
        colour = looks(report.arms)[ended.pop()]["color"] if len(ended) == 1 else _INK
        mark: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 7, "markerfacecolor": "white"}
        handles.append(Line2D([], [], color=colour, label="distillation off", **mark))
    mark = {"marker": "o", "markersize": 5, "linewidth": 1.4, "markeredgecolor": "white"}
    handles.append(Line2D([], [], color=_INK, label="between crossings", **mark))
    rows = 1 + (len(handles) > _MOST_IN_A_ROW)
    columns = math.ceil(len(handles) / rows)
    figure.legend(handles=handles, loc="outside upper right", ncols=columns, frameon=False, fontsize=10.5)
    figure.suptitle(report.name, x=0.012, ha="left", size=13, weight="bold")


def _time_unit(report: Report) -> tuple[float, str]:
    """Return the scale and name of the time unit that gives readable ticks."""
    longest = max([s for run in report.runs for s in run.curve.seconds if s is not None], default=0.0)
    return (1.0, "s") if longest < 180 else (60.0, "min") if longest < 7200 else (3600.0, "h")
