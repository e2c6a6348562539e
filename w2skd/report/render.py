"""Render a report for the terminal, as Markdown and as JSON, and write all files of a report."""

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from w2skd.platform.files import write_atomically, writing
from w2skd.recipe.arms import HELPED, REFERENCE, STUDENT_ARMS
from w2skd.recipe.load import RecipeTypes
from w2skd.recipe.threshold import Threshold
from w2skd.records.rows import SEGMENTS
from w2skd.report import units
from w2skd.report.censored import Bounds, median_crossing
from w2skd.report.contract import QUANTITIES, Report, RunReport, Spread, ThresholdReport
from w2skd.report.curves import draw_curves as draw_curves
from w2skd.report.render_summary import when
from w2skd.report.scoring import in_one_line
from w2skd.report.speedup import build_report
from w2skd.report.terminal import Cells, bullet, table
from w2skd.report.verdict import not_reached_text

_SHOW = {
    "epochs": units.epochs,
    "steps": units.count,
    "examples": units.count,
    "seconds": units.duration,
    "flops": units.flops,
}
_TITLES = {"epochs": "epochs", "steps": "steps", "examples": "examples", "seconds": "training time", "flops": "FLOPs"}
_WITH_TEACHER = "  including teacher training"

_MEDIAN_HEAD = ("median", *STUDENT_ARMS, "speed-up", "over seeds")
_RUN_HEAD = ("run", "best", "final", "state", "time", "teacher", "distilled until")
_NUMBERS_ONLY = re.compile(r'[\[{]\n(?:\s*(?:"\w+": )?(?:null|-?[\d.eE+-]+),?\n)+\s*[\]}]')
"""An object or array of plain numbers, as `json.dumps` indents it; JSON strings contain no line breaks."""


_RATIOS = (
    "A speed-up over seeds is the median of each seed's own ratio, not the ratio of two medians. A run that never "
    "reaches the threshold counts as later than every other; where that leaves the median open, its bound is shown."
)
_MEASURED = (
    "A threshold counts as reached at the first validation at the level. Training time excludes validations and "
    "checkpoints; FLOPs are 3 forward passes of the student per example, and 1 of the teacher while distilling. "
    "*Including teacher training* adds the whole training of the teacher to every w2s run. "
    f"{_RATIOS}"
)


def as_json(report: Report) -> str:
    """Return the report as JSON, reproducible byte for byte; objects and arrays of plain numbers take one line."""
    values: dict[str, Any] = {}
    for key, value in asdict(report).items():
        values |= {key: value}
        if key == "metric":
            values |= {"metric": report.metric.name, "higher_is_better": report.metric.higher_is_better}
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    return _NUMBERS_ONLY.sub(lambda match: _one_line(match[0]), text) + "\n"


def as_terminal(report: Report) -> RenderableType:
    """Return the report for a terminal of at least 80 columns."""
    parts: list[RenderableType] = [Text(report.name, "bold"), Text(_about(report), "dim")]
    if report.scoring:
        parts.append(Text(_scored(report), "dim"))
    if any(len(threshold.pairs) > 1 for threshold in report.thresholds):
        parts.append(Text(_RATIOS, "dim"))
    for threshold in report.thresholds:
        parts += ["", Text(_title(threshold, report), "bold")]
        if threshold.pairs:
            coloured = threshold.shown != "no difference"
            parts.append(table(_MEDIAN_HEAD, _median_rows(threshold, report), coloured=coloured))
            parts += [Text(f" {line}", "dim") for line in [_grid_line(threshold)] if line is not None]
        if threshold.value is not None and (len(threshold.seeds) > 1 or not threshold.pairs):
            parts += [""] if threshold.pairs else []
            rows = _seed_rows(threshold, report.unit)
            parts.append(table(_seed_head(report.unit), rows, coloured=threshold.shown != "no difference"))
    parts += ["", Text("Runs", "bold"), table(_RUN_HEAD, _run_rows(report))]
    if report.warnings:
        parts += ["", Text("Caveats", "bold yellow")]
        parts += [bullet(warning, "yellow") for warning in report.warnings]
    parts += ["", Text("Result", "bold")]
    parts += [bullet(f"{_title(threshold, report)}: {threshold.verdict}") for threshold in report.thresholds]
    return Group(*parts)


def as_markdown(report: Report) -> str:
    """Return the report as GitHub-flavoured Markdown, which links ``curves.png`` in the same folder."""
    return "\n".join(_markdown_lines(report)) + "\n"


def write_report(
    experiment: Path,
    types: RecipeTypes,
    thresholds: Sequence[Threshold] | None = None,
    allow_different: Collection[str] = (),
) -> Report:
    """Build the report and write ``report.json``, ``report.md`` and ``curves.png`` under ``<experiment>/report/``.

    Args:
        experiment: the folder that holds ``baseline/`` and ``w2s/``.
        types: value of ``task`` -> type of the recipe.
        thresholds: used instead of the recipe's.
        allow_different: see `build_report`.

    Raises:
        RunDirError: see `build_report`.
        OutputError: the files cannot be written.
    """
    report = build_report(experiment, types, thresholds, allow_different)
    folder = experiment / "report"
    with writing(folder):
        folder.mkdir(exist_ok=True)
    draw_curves(report, folder / "curves.png")
    write_atomically(folder / "report.md", as_markdown(report).encode())
    write_atomically(folder / "report.json", as_json(report).encode())
    return report


def _markdown_lines(report: Report) -> Iterator[str]:
    yield from (f"# {_escape(report.name)}: {REFERENCE} against {HELPED}", "", f"{_escape(_about(report))}.", "")
    if report.scoring:
        yield from (f"{_escape(_scored(report))}.", "")
    yield from (f"![{report.metric.name} of every run](curves.png)", "")
    for threshold in report.thresholds:
        yield from (f"- **{_escape(_title(threshold, report))}**: {_escape(threshold.verdict)}",)
    if report.warnings:
        yield from ("", "## Caveats", "", *(f"- {_escape(warning)}" for warning in report.warnings))
    for threshold in report.thresholds:
        yield from ("", f"## {_escape(_title(threshold, report))}", "", *_threshold_markdown(threshold, report))
    yield from _pictures(report)
    yield from ("", "## Runs", "", *_markdown_table(_RUN_HEAD, _run_rows(report)))
    yield from ("", "Time per segment:", "", *_markdown_table(("run", *SEGMENTS), _clock_rows(report)))
    yield from ("", "## Definitions", "", _MEASURED)


def _threshold_markdown(threshold: ThresholdReport, report: Report) -> Iterator[str]:
    if threshold.value is None:
        yield f"Unknown: {_escape(threshold.reason or '')}."
        return
    if threshold.pairs:
        yield from (*_markdown_table(_MEDIAN_HEAD, _median_rows(threshold, report)), "")
        if (line := _grid_line(threshold)) is not None:
            yield from (f"{line[0].upper()}{line[1:]}.", "")
    head = (*_seed_head(report.unit), "between validations")
    yield from _markdown_table(head, _seed_rows(threshold, report.unit, interval=True))
    if threshold.note:
        yield from ("", f"Note: {_escape(threshold.note)}.")


def _pictures(report: Report) -> Iterator[str]:
    """Yield the last pictures of both arms side by side, for the first seed that has both."""
    pictures = {(run.arm, run.seed): run for run in report.runs if run.picture is not None}
    for (arm, seed), baseline in pictures.items():
        w2s = pictures.get((HELPED, seed))
        if arm == REFERENCE and w2s is not None:
            head = [run.run for run in (baseline, w2s)]
            shown = [f"![{run.run}](../{run.picture})" for run in (baseline, w2s)]
            yield from ("", "## Model outputs", "", *_markdown_table(head, iter([shown])))
            return


def _about(report: Report) -> str:
    """Return metric, teacher and devices in one line."""
    parts = [f"{report.metric.name}, {'higher' if report.metric.higher_is_better else 'lower'} is better"]
    teacher = report.teacher
    if teacher is not None:
        text = f"teacher {units.level(teacher.level, report.metric)}" if teacher.level is not None else "teacher"
        cost = ", ".join(
            shown(value)
            for shown, value in ((units.duration, teacher.seconds), (units.flops, teacher.flops))
            if value is not None
        )
        parts.append(f"{text} (trained in {cost})" if cost else text)
    devices = {_device(run) for run in report.runs} - {""}
    return "; ".join([*parts, *sorted(devices)])


def _scored(report: Report) -> str:
    return f"scored alike: {in_one_line(report.scoring)}"


def _device(run: RunReport) -> str:
    known = run.environment
    text = str(known.get("device_name") or known.get("device") or "")
    for key in ("threads", "ranks"):
        count = known.get(key)
        if text and isinstance(count, int):
            text += f", {count} {key if count != 1 else key.removesuffix('s')}"
    return text


def _title(threshold: ThresholdReport, report: Report) -> str:
    return units.threshold(threshold.name, threshold.value, report.metric)


def _median_rows(threshold: ThresholdReport, report: Report) -> Iterator[Cells]:
    """Yield medians over the seeds of both arms, the experiment's unit first; late runs count as never crossing."""
    teacher = report.teacher
    for quantity in sorted(QUANTITIES, key=lambda name: name != f"{report.unit}s"):
        attribute = QUANTITIES[quantity]
        baseline, w2s = (median_crossing(threshold, arm, attribute) for arm in STUDENT_ARMS)
        if baseline is None and w2s is None:
            continue
        show = _SHOW[quantity]
        spread = threshold.speedup_over_seeds[quantity]
        yield (_TITLES[quantity], _median_cell(baseline, show), _median_cell(w2s, show), *_spread_cells(spread))
        charged = threshold.speedup_with_teacher_over_seeds.get(quantity)
        if charged and teacher and w2s is not None:
            cost = getattr(teacher, attribute)
            total = Bounds(w2s.low + cost, w2s.high + cost)
            yield (_WITH_TEACHER, _median_cell(baseline, show), _median_cell(total, show), *_spread_cells(charged))


def _median_cell(bounds: Bounds | None, show: Callable[[float | None], str]) -> str:
    if bounds is None:
        return units.NONE
    return show(bounds.low) if bounds.high < math.inf else f"> {show(bounds.low)}"


def _spread_cells(spread: Spread | None) -> Cells:
    if spread is None:
        return (units.NONE, units.NONE)
    over = f"{units.ratio(spread.min)} to {units.ratio(spread.max)}" if spread.seeds > 1 else units.NONE
    return (units.median(spread), over)


def _grid_line(threshold: ThresholdReport) -> str | None:
    """Return what the spacing of the validations leaves open, in one line."""
    if threshold.grid_interval is None:
        return None
    open_ = f"between validations, the speed-up in epochs is {units.between(threshold.grid_interval)}"
    return f"{open_}: no difference is shown" if threshold.shown == "no difference" else open_


def _seed_head(unit: str) -> Cells:
    return ("seed", *STUDENT_ARMS, f"{unit}s", "time", "FLOPs")


def _seed_rows(threshold: ThresholdReport, unit: str, interval: bool = False) -> Iterator[Cells]:
    """Yield one row per seed: where each arm crossed the level, or its last validation."""
    for seed in sorted(set(threshold.first[REFERENCE]) | set(threshold.first[HELPED])):
        crossings = [_crossing_cell(threshold, arm, seed, unit) for arm in STUDENT_ARMS]
        ratios = [units.ratio(threshold.speedup[name].get(seed)) for name in (f"{unit}s", "seconds", "flops")]
        cells = (str(seed), *crossings, *ratios)
        yield (*cells, _interval_cell(threshold.speedup_interval.get(seed))) if interval else cells


def _crossing_cell(threshold: ThresholdReport, arm: str, seed: int, unit: str) -> str:
    if seed not in threshold.first[arm]:
        return "no run"
    place = threshold.first[arm][seed]
    return units.place(place, unit) if place else not_reached_text(threshold.not_reached[arm].get(seed), unit)


def _interval_cell(interval: tuple[float, float | None] | None) -> str:
    if interval is None:
        return units.NONE
    low, high = interval
    return f"{units.ratio(low)} to {units.ratio(high)}" if high is not None else f"above {units.ratio(low)}"


def _run_rows(report: Report) -> Iterator[Cells]:
    for run in report.runs:
        off = ""
        if run.arm == HELPED:
            off = "the end" if run.state == "finished" else "now" if run.reached else units.NONE
        if run.distillation_off:
            off = f"{when(run.distillation_off, report.unit)}, {run.distillation_off.reason}"
        yield (
            run.run,
            units.level(run.best.value if run.best else None, report.metric),
            units.level(run.final.value if run.final else None, report.metric),
            run.state,
            units.duration(run.reached.seconds if run.reached else None),
            units.share(run.teacher_share) if run.arm == HELPED else "",
            off,
        )


def _clock_rows(report: Report) -> Iterator[Cells]:
    for run in report.runs:
        yield (run.run, *(units.duration(run.clock.get(name)) for name in SEGMENTS))


def _markdown_table(head: Cells, rows: Iterator[Cells]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join(['---', *['---:'] * (len(head) - 1)])}|"
    for row in rows:
        cells = [_escape(cell).replace("  ", "&nbsp;&nbsp;") for cell in row]
        yield f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    return re.sub(r"([\\*|<`])", r"\\\1", text)


def _one_line(block: str) -> str:
    inner = " ".join(line.strip() for line in block[1:-1].strip().splitlines())
    return f"{block[0]}{inner}{block[-1]}"
