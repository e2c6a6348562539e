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
from w2skd.recipe.arms import Arm
from w2skd.recipe.load import RecipeTypes
from w2skd.recipe.threshold import Threshold
from w2skd.records.rows import SEGMENTS
from w2skd.report import units
from w2skd.report.censored import Bounds, median_crossing
from w2skd.report.contract import QUANTITIES, Comparison, Report, RunReport, Spread, ThresholdReport
from w2skd.report.curves import draw_curves as draw_curves
from w2skd.report.render_equal_quality import (
    PRIMARY,
    draw_ends,
    equal_quality_head,
    equal_quality_lines,
    equal_quality_notes,
    equal_quality_rows,
)
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

_ARMS_HEAD = ("arm", "reached", "speed-up", "over seeds", "validations", "time", "FLOPs")
_CHARGED = "  + teacher"
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
    "*Including teacher training* adds the full training of its teacher to every run with a teacher. "
    f"{_RATIOS}"
)


def as_json(report: Report) -> str:
    """Return the report as JSON, reproducible byte for byte; objects and arrays of plain numbers take one line."""
    values: dict[str, Any] = {}
    for key, value in asdict(report).items():
        values |= {key: value}
        if key == "metric":
            values |= {"metric": report.metric.name, "higher_is_better": report.metric.higher_is_better}
    for ends in values["ends"].values():
        ends["values"] = [[value if math.isfinite(value) else None for value in row] for row in ends["values"]]
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    return _NUMBERS_ONLY.sub(lambda match: _one_line(match[0]), text) + "\n"


def as_terminal(report: Report) -> RenderableType:
    """Return the report for a terminal of at least 80 columns."""
    parts: list[RenderableType] = [Text(report.name, "bold"), Text(_about(report), "dim")]
    if report.scoring:
        parts.append(Text(_scored(report), "dim"))
    if any(len(found.pairs) > 1 for threshold in report.thresholds for found in threshold.arms.values()):
        parts.append(Text(_RATIOS, "dim"))
    if report.equal_quality:
        parts += ["", Text("Equal quality by complete schedules", "bold")]
        parts += [bullet(line) for line in equal_quality_lines(report)]
        parts += ["", table(equal_quality_head(report), equal_quality_rows(report))]
        parts += [Text(f" {line}", "dim") for line in equal_quality_notes(report)]
    for threshold in report.thresholds:
        parts += ["", Text(_title(threshold, report), "bold")]
        parts += _threshold_parts(threshold, report)
    parts += ["", Text("Runs", "bold"), table(_RUN_HEAD, _run_rows(report))]
    if report.warnings:
        parts += ["", Text("Caveats", "bold yellow")]
        parts += [bullet(warning, "yellow") for warning in report.warnings]
    parts += ["", Text("Result", "bold")]
    parts += [bullet(f"{title}: {summary}") for title, summary in _results(report)]
    return Group(*parts)


def _results(report: Report) -> Iterator[tuple[str, str]]:
    """Yield the title and the result of every comparison, or the reason why a threshold has none."""
    for threshold in report.thresholds:
        title, alone = _title(threshold, report), len(threshold.arms) == 1
        if threshold.value is None:
            yield title, f"no result: {threshold.reason}"
            continue
        yield from ((title if alone else f"{arm}, {title}", found.summary) for arm, found in threshold.arms.items())


def _threshold_parts(threshold: ThresholdReport, report: Report) -> Iterator[RenderableType]:
    """Yield the tables of one threshold, for the terminal."""
    coloured = any(found.verdict != "no difference" for found in threshold.arms.values())
    only = _only(threshold)
    if only is not None and threshold.arms[only].pairs:
        yield table(_median_head(report, only), _median_rows(threshold, report, only), coloured=coloured)
        if (line := _grid_line(threshold.arms[only])) is not None:
            yield Text(f" {line}", "dim")
    elif only is None and threshold.value is not None:
        yield table(_ARMS_HEAD, _arm_rows(threshold, report), coloured=coloured)
    crossed = any(found.pairs for found in threshold.arms.values())
    seeds = {seed for found in threshold.arms.values() for seed in found.seeds}
    if threshold.value is not None and (len(seeds) > 1 or not crossed):
        if crossed:
            yield ""
        yield table(_seed_head(threshold, report), _seed_rows(threshold, report), coloured=coloured)


def _only(threshold: ThresholdReport) -> Arm | None:
    """Return the arm that is compared with the reference if there is only one."""
    return next(iter(threshold.arms)) if len(threshold.arms) == 1 else None


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
        experiment: the folder that holds one folder per arm.
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
    if report.equal_quality:
        draw_ends(report, folder / "complete.png")
    write_atomically(folder / "report.md", as_markdown(report).encode())
    write_atomically(folder / "report.json", as_json(report).encode())
    return report


def _markdown_lines(report: Report) -> Iterator[str]:
    arms = " against ".join(report.arms) if len(report.arms) == 2 else f"{len(report.arms)} arms"
    yield from (f"# {_escape(report.name)}: {arms}", "", f"{_escape(_about(report))}.", "")
    if any(arm.note for arm in report.arms.values()):
        yield from (*(f"- {_escape(_arm_line(name, report))}" for name in report.arms), "")
    if report.scoring:
        yield from (f"{_escape(_scored(report))}.", "")
    if report.equal_quality:
        yield from ("## Equal quality by complete schedules", "")
        yield from (f"- {_escape(line)}" for line in equal_quality_lines(report))
        yield from ("", f"![{report.metric.name} at the end of every schedule](complete.png)", "")
        yield from _markdown_table(equal_quality_head(report), equal_quality_rows(report))
        yield from ("", PRIMARY, "", *(f"- {_escape(line)}" for line in equal_quality_notes(report)), "")
        yield from ("## First crossings", "")
    yield from (f"![{report.metric.name} of every run](curves.png)", "")
    yield from (f"- **{_escape(title)}**: {_escape(summary)}" for title, summary in _results(report))
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
    only = _only(threshold)
    if only is not None and threshold.arms[only].pairs:
        found = threshold.arms[only]
        yield from (*_markdown_table(_median_head(report, only), _median_rows(threshold, report, only)), "")
        if (line := _grid_line(found)) is not None:
            yield from (f"{line[0].upper()}{line[1:]}.", "")
    elif only is None:
        yield from (*_markdown_table(_ARMS_HEAD, _arm_rows(threshold, report)), "")
    head = (*_seed_head(threshold, report), *(["between validations"] if only else []))
    yield from _markdown_table(head, _seed_rows(threshold, report, interval=True))
    if threshold.note:
        yield from ("", f"Note: {_escape(threshold.note)}.")


def _pictures(report: Report) -> Iterator[str]:
    """Yield the last pictures of all arms side by side, for the first seed with a picture of every arm."""
    pictures = {(run.arm, run.seed): run for run in report.runs if run.picture is not None}
    for seed in sorted({seed for _, seed in pictures}):
        found = [pictures.get((arm, seed)) for arm in report.arms]
        runs = [run for run in found if run is not None]
        if len(runs) == len(found):
            shown = [f"![{run.run}](../{run.picture})" for run in runs]
            yield from ("", "## Model outputs", "", *_markdown_table([run.run for run in runs], iter([shown])))
            return


def _arm_line(name: Arm, report: Report) -> str:
    """Describe an arm in one line."""
    arm = report.arms[name]
    how = {(): "no help", ("distill",): "distilled", ("grow",): "grown"}.get(arm.help, " and ".join(arm.help))
    return f"{name}: {arm.note or how}" + (" (the reference)" if name == report.reference else "")


def _about(report: Report) -> str:
    """Return metric, teacher and devices in one line."""
    parts = [f"{report.metric.name}, {'higher' if report.metric.higher_is_better else 'lower'} is better"]
    teacher = report.teacher
    if teacher is not None:
        noun = "teacher" if teacher.count == 1 else f"{teacher.count} teachers, median"
        text = f"{noun} {units.level(teacher.level, report.metric)}" if teacher.level is not None else noun
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


def _median_head(report: Report, arm: Arm) -> Cells:
    return ("median", report.reference, arm, "speed-up", "over seeds")


def _median_rows(threshold: ThresholdReport, report: Report, arm: Arm) -> Iterator[Cells]:
    """Yield medians over the seeds of both arms, the experiment's unit first; late runs count as never crossing."""
    teacher, found = report.teacher, threshold.arms[arm]
    for quantity in sorted(QUANTITIES, key=lambda name: name != f"{report.unit}s"):
        attribute = QUANTITIES[quantity]
        theirs, ours = (median_crossing(threshold, one, attribute, found.seeds) for one in (report.reference, arm))
        if theirs is None and ours is None:
            continue
        show = _SHOW[quantity]
        spread = found.speedup_over_seeds[quantity]
        yield (_TITLES[quantity], _median_cell(theirs, show), _median_cell(ours, show), *_spread_cells(spread))
        charged = found.speedup_with_teacher_over_seeds.get(quantity)
        if charged and teacher and ours is not None:
            cost = getattr(teacher, attribute)
            total = Bounds(ours.low + cost, ours.high + cost)
            yield (_WITH_TEACHER, _median_cell(theirs, show), _median_cell(total, show), *_spread_cells(charged))


def _arm_rows(threshold: ThresholdReport, report: Report) -> Iterator[Cells]:
    """Yield one row per arm: where it reaches the level, and its speed-up over the reference."""
    attribute, show = report.unit, _SHOW[f"{report.unit}s"]
    reference = report.reference
    place = median_crossing(threshold, reference, attribute, sorted(threshold.first[reference]))
    yield (reference, _median_cell(place, show), *[""] * (len(_ARMS_HEAD) - 2))
    for arm, found in threshold.arms.items():
        place = median_crossing(threshold, arm, attribute, sorted(threshold.first[arm]))
        over = found.speedup_over_seeds
        grid = units.NONE if found.grid_interval is None else units.between(found.grid_interval)
        ratios = [units.median(over[name]) for name in ("seconds", "flops")]
        yield (arm, _median_cell(place, show), *_spread_cells(over[f"{report.unit}s"]), grid, *ratios)
        if charged := found.speedup_with_teacher_over_seeds.get("flops"):
            seconds = found.speedup_with_teacher_over_seeds.get("seconds")
            yield (_CHARGED, *[""] * 4, units.median(seconds), units.median(charged))


def _median_cell(bounds: Bounds | None, show: Callable[[float | None], str]) -> str:
    if bounds is None:
        return units.NONE
    return show(bounds.low) if bounds.high < math.inf else f"> {show(bounds.low)}"


def _spread_cells(spread: Spread | None) -> Cells:
    if spread is None:
        return (units.NONE, units.NONE)
    over = f"{units.ratio(spread.min)} to {units.ratio(spread.max)}" if spread.seeds > 1 else units.NONE
    return (units.median(spread), over)


def _grid_line(found: Comparison) -> str | None:
    """Return what the spacing of the validations leaves open, in one line."""
    if found.grid_interval is None:
        return None
    open_ = f"between validations, the speed-up in epochs is {units.between(found.grid_interval)}"
    return f"{open_}: no difference is shown" if found.verdict == "no difference" else open_


def _seed_head(threshold: ThresholdReport, report: Report) -> Cells:
    ratios = (f"{report.unit}s", "time", "FLOPs") if _only(threshold) else ()
    return ("seed", *threshold.first, *ratios)


def _seed_rows(threshold: ThresholdReport, report: Report, interval: bool = False) -> Iterator[Cells]:
    """Yield one row per seed: where each arm crossed the level, or its last validation."""
    only, unit = _only(threshold), report.unit
    for seed in sorted({seed for crossings in threshold.first.values() for seed in crossings}):
        cells = [str(seed), *(_crossing_cell(threshold, arm, seed, unit) for arm in threshold.first)]
        if only is not None:
            found = threshold.arms[only]
            cells += [units.ratio(found.speedup[name].get(seed)) for name in (f"{unit}s", "seconds", "flops")]
            cells += [_interval_cell(found.speedup_interval.get(seed))] if interval else []
        yield cells


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
        if run.distills:
            off = "the end" if run.state == "finished" else "now" if run.reached else units.NONE
        if run.distillation_off:
            off = f"{when(run.distillation_off, report.unit)}, {run.distillation_off.reason}"
        yield (
            run.run,
            units.level(run.best.value if run.best else None, report.metric),
            units.level(run.final.value if run.final else None, report.metric),
            run.state,
            units.duration(run.reached.seconds if run.reached else None),
            units.share(run.teacher_share) if run.distills else "",
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
