"""Render where a run crossed its thresholds, for the end of ``w2skd distill``."""

from rich.console import Group, RenderableType
from rich.text import Text

from w2skd.recipe.evaluation import Metric
from w2skd.report import units
from w2skd.report.crossing import SwitchOff, shown
from w2skd.report.summary import CrossingSummary, SummaryLine
from w2skd.report.terminal import Cells, table
from w2skd.report.verdict import not_reached_text


def summary_as_terminal(summary: CrossingSummary) -> RenderableType:
    """Return where a run crossed its thresholds, for the end of ``w2skd distill``."""
    parts: list[RenderableType] = [Text(f"{summary.run}: {_scores(summary)}", "bold")]
    if summary.distills:
        teacher = units.level(summary.teacher_level, summary.metric)
        off = (
            _switched_off(summary.distillation_off, summary.metric, summary.unit) or f"on to the end, teacher {teacher}"
        )
        parts.append(Text(f"distillation {off}"))
    parts += [Text(f"not compared with {line}", "yellow") for line in summary.left_out]
    if summary.lines:
        other = "step" if summary.unit == "epoch" else "epoch"
        head = ("threshold", "reached", "time", summary.reference, "speed-up")
        alone = ("threshold", "reached", other, "time")
        cells = [_summary_cells(line, summary) for line in summary.lines]
        parts.append(table(head if summary.reference_run else alone, cells))
    return Group(*parts)


def when(off: SwitchOff, unit: str) -> str:
    """Format where distillation ended: ``epoch 6`` or ``step 6,000``."""
    return f"epoch {units.epochs(off.epoch)}" if unit == "epoch" and off.epoch is not None else f"step {off.step:,}"


def _switched_off(off: SwitchOff | None, metric: Metric, unit: str) -> str:
    """Return when and why distillation ended; empty if it did not."""
    if off is None:
        return ""
    where = f"off at {when(off, unit)}"
    student, teacher = units.level(off.student, metric), units.level(off.teacher, metric)
    if off.reason == "surpassed":
        return f"{where}: the student ({student}) surpassed its teacher ({teacher})"
    if off.reason == "ended":
        return f"{where}: the schedule ended (teacher {teacher})"
    return f"{where}: {off.reason}"


def _scores(summary: CrossingSummary) -> str:
    if summary.best is None or summary.last is None:
        return f"no validation of {summary.metric.name} yet"
    best = f"best {summary.metric.name} {units.level(summary.best.value, summary.metric)} at "
    best += units.place(summary.best.at, summary.unit)
    last = units.level(summary.final.value if summary.final else None, summary.metric)
    return f"{best}, {last} at {units.place(summary.last, summary.unit)}"


def _summary_cells(line: SummaryLine, summary: CrossingSummary) -> Cells:
    title, place, unit = units.threshold(line.name, line.value, summary.metric), line.reached, summary.unit
    if line.value is None:
        return (title, line.reason or "")
    other, time = "", ""
    if place:
        other = f"{place.step:,}" if unit == "epoch" else units.epochs(place.epoch)
        time = units.duration(place.seconds)
    reached = units.place(place, unit) if place else not_reached_text(summary.last, unit)
    if summary.reference_run is None:
        return (title, reached, other, time)
    theirs = not_reached_text(summary.reference_last, unit)
    if line.theirs:
        seconds = line.theirs.seconds
        theirs = units.place(line.theirs, unit) + (f" ({units.duration(seconds)})" if seconds is not None else "")
    return (title, reached, time, theirs, _summary_ratio(line))


def _summary_ratio(line: SummaryLine) -> str:
    """Return the ratio with its bounds between validations; a ratio whose bounds contain 1 is no speed-up."""
    if line.speedup is None or line.interval is None:
        return units.NONE
    low, high = line.interval
    bounds = f"> {low:.2f}" if high is None else f"{low:.2f} to {high:.2f}"
    is_none = shown(line.interval) == "no difference"
    return f"{'none' if is_none else units.ratio(line.speedup)} ({bounds})"
