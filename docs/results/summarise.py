"""Makes every published report again from its records, and the table in the README from all of them.

python docs/results/summarise.py           writes docs/results/*/report and README.md
python docs/results/summarise.py --check   exits with 1 if the README's table is not what the records say
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from w2skd.report import units
from w2skd.report.contract import Report, ThresholdReport, pair
from w2skd.report.render import write_report
from w2skd.report.speedup import build_report
from w2skd.tasks.catalog import recipe_types

RESULTS = Path(__file__).resolve().parent
README = RESULTS.parent.parent / "README.md"
BEGIN, END = "<!-- results: made by docs/results/summarise.py -->\n", "<!-- /results -->\n"


def table() -> str:
    """One line for each target of each published experiment."""
    lines = [
        "| experiment | target | reached at epoch or step | speed-up there | in FLOPs | teacher's training added |",
        "|---|---|---|---|---|---|",
    ]
    for folder in experiments():
        report = build_report(folder, recipe_types())
        lines += [line(folder.name, threshold, report) for threshold in report.thresholds]
    return "\n".join(lines) + "\n"


def experiments() -> Iterator[Path]:
    """The folders with records."""
    yield from (path for path in sorted(RESULTS.iterdir()) if (path / "baseline").is_dir())


def line(name: str, threshold: ThresholdReport, report: Report) -> str:
    """A row: medians over the seeds, the range of the ratio, and how many seeds it stands on."""
    pairs = [pair(seed, threshold.first) for seed in threshold.pairs]
    in_epochs = report.unit == "epoch"
    reached = " → ".join(
        units.epochs(median(place.epoch for place in arm))
        if in_epochs
        else units.count(median(place.step for place in arm))
        for arm in zip(*pairs, strict=True)
    )
    spread = threshold.speedup_over_seeds["epochs" if in_epochs else "steps"]
    flops, charged = threshold.speedup_over_seeds["flops"], threshold.speedup_with_teacher_over_seeds.get("flops")
    ratio = "-"
    if spread is not None:
        lowest, highest = units.ratio(spread.min), units.ratio(spread.max)
        seeds = f"{spread.seeds} of {len(threshold.seeds)} seeds"
        ratio = f"**{units.ratio(spread.median)}** ({lowest} to {highest}, {seeds})"
    cells = [
        f"[{name}](docs/results/{name}/report/report.md)",
        units.threshold(threshold.name, threshold.value, report.metric),
        f"{report.unit} {reached}" if reached else "not by a pair",
        ratio,
        units.ratio(flops.median) if flops else "-",
        units.ratio(charged.median) if charged else "-",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Write, or check."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    fresh = f"{before}{BEGIN}{table()}{END}{after}"
    if "--check" in sys.argv:
        return int(fresh != text)
    for folder in experiments():
        write_report(folder, recipe_types())
    README.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
