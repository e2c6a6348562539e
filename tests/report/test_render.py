"""Rendered reports: words, widths, files."""

import json
import math
import struct
from pathlib import Path

import pytest
from known import build_report, crossing_summary, read_run, write_report
from rich.console import Console, RenderableType
from synthetic_runs import FID, GENERATED, LOSS, TOP1, MakeRun, two_arms_of_generated_images

from w2skd.errors import OutputError
from w2skd.report import curves, units
from w2skd.report.crossing import Position
from w2skd.report.render import as_json, as_markdown, as_terminal, draw_curves
from w2skd.report.render_summary import summary_as_terminal

SLOW = [0.2, 0.3, 0.4, 0.5, 0.6, 0.66, 0.68, 0.71, 0.72, 0.72]
FAST = [0.3, 0.5, 0.66, 0.68, 0.71, 0.72, 0.73, 0.73, 0.73, 0.74]


@pytest.fixture
def compared(make_run: MakeRun, experiment: Path) -> Path:
    """Three seeds, the last of which is not accelerated at all."""
    make_run("teacher", 0, [0.5, 0.65])
    for seed in range(3):
        make_run("baseline", seed, SLOW)
        make_run("w2s", seed, FAST if seed < 2 else [0.1] * 10, off_epoch=4)
    return experiment


def shown(what: RenderableType, width: int) -> str:
    with Path("/dev/null").open("w") as nowhere:
        console = Console(width=width, record=True, file=nowhere)
        console.print(what)
        return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_thresholds_seeds_runs_warnings_and_results(compared: Path, width: int) -> None:
    text = shown(as_terminal(build_report(compared)), width)
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(len(line) for line in lines) <= width
    for words in (
        "teacher (65.0%)",
        "top1 70.0%",
        "0.98*baseline (70.6%)",
        "including teacher training",
        "Runs",
        "Result",
    ):
        assert words in text
    cells = [line.split() for line in lines]
    assert ["epochs", "6", "3", "2.00x", "2.00x", "to", "2.00x"] in cells
    assert ["2", "epoch", "6", "not", "reached", "by", "epoch", "10", "-", "-", "-"] in cells
    assert ["0", "epoch", "6", "epoch", "3", "2.00x", "1.67x", "1.82x"] in cells


@pytest.mark.parametrize("width", [80, 120])
def test_an_experiment_with_a_length_in_steps_is_reported_in_steps(
    make_run: MakeRun, experiment: Path, width: int
) -> None:
    two_arms_of_generated_images(make_run, seeds=3)
    text = shown(as_terminal(build_report(experiment)), width)
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(len(line) for line in lines) <= width
    for words in ("fid, lower is better; teacher 65", "0.98*baseline (55.61)", "fid 60: 1.80x in steps (1.60x to"):
        assert words in text
    cells = [line.split() for line in lines]
    assert cells.count(["seed", "baseline", "w2s", "steps", "time", "FLOPs"]) == 3
    steps, epochs = (cells.index([name, *rest]) for name, rest in STEPS_AND_EPOCHS.items())
    assert epochs == steps + 1
    assert ["0", "step", "80", "step", "50", "1.60x", "1.33x", "1.45x"] in cells
    summary = crossing_summary(read_run(experiment / "w2s" / "seed0"), experiment)
    text = shown(summary_as_terminal(summary), width)
    assert "w2s/seed0: best fid 50 at step 100" in text
    cells = [line.split() for line in text.splitlines()]
    assert ["threshold", "reached", "time", "baseline", "speed-up"] in cells
    assert "fid 60 step 50 30 s step 80 (40 s) 1.60x (1.40 to 2.00)" in map(" ".join, cells)


STEPS_AND_EPOCHS = {
    "steps": ["70", "40", "1.75x", "1.75x", "to", "2.00x"],
    "epochs": ["7", "4", "1.75x", "1.75x", "to", "2.00x"],
}


def test_a_summary_lists_excluded_runs(make_run: MakeRun, experiment: Path) -> None:
    two_arms_of_generated_images(make_run)
    run = read_run(make_run("w2s", 1, [50.0], recipe=GENERATED, metric="fid", thresholds="[60.0]", teacher=65.0))
    text = shown(summary_as_terminal(crossing_summary(run, experiment)), 200)
    assert "not compared with baseline/seed0, which is scored differently: extractor is not recorded in" in text


def test_names_are_not_taken_for_markup(make_run: MakeRun, experiment: Path) -> None:
    path = make_run("baseline", 0, SLOW, state="failed")
    status = json.loads((path / "status.json").read_text())
    (path / "status.json").write_text(json.dumps({**status, "reason": "[red]loss|nan*[/red]"}))
    report = build_report(experiment)
    assert "[red]loss|nan*[/red]" in shown(as_terminal(report), 120)
    assert r"[red]loss\|nan\*[/red]" in as_markdown(report)


def test_markdown_tables_are_well_formed(compared: Path) -> None:
    text = as_markdown(build_report(compared))
    assert text.startswith("# tiny: baseline against w2s\n")
    assert "![top1 of every run](curves.png)" in text
    assert r"0.98\*baseline (70.6%)" in text
    assert "| 2 | epoch 6 | not reached by epoch 10 | - | - | - | - |" in text
    assert "| epochs | 6 | 3 | 2.00x | 2.00x to 2.00x |" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2 * 3 + 2
    for table in tables:
        assert len({line.replace(r"\|", "").count("|") for line in table}) == 1


def test_json_is_json_and_compact_where_numbers_stand(compared: Path) -> None:
    report = build_report(compared)
    text = as_json(report)
    found = json.loads(text)
    assert found["thresholds"][0]["arms"]["w2s"]["speedup_interval"]["0"] == [pytest.approx(5 / 3, abs=1e-6), 3.0]
    assert f'"value": {SLOW}' in text
    assert '"epochs": {"0": 2.0, "1": 2.0}' in text
    assert json.loads(json.dumps(found)) == found


def test_json_has_null_for_a_validation_that_was_not_finite(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, [0.5, math.nan, 0.9], thresholds="[0.7]")
    found = json.loads(as_json(build_report(experiment)))
    assert found["runs"][0]["curve"]["value"] == [0.5, None, 0.9]
    assert found["thresholds"][0]["first"]["baseline"]["0"]["epoch"] == 3.0


def test_write_report_leaves_three_files_and_repeats_itself(compared: Path) -> None:
    report = write_report(compared)
    folder = compared / "report"
    assert sorted(path.name for path in folder.iterdir()) == ["curves.png", "report.json", "report.md"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before["report.json"] == as_json(report).encode()
    write_report(compared)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_write_report_names_the_file_that_it_cannot_write(compared: Path) -> None:
    (compared / "report").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot write .*report"):
        write_report(compared)


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


@pytest.mark.parametrize("case", ["nothing yet", "one point", "never crossed", "all nan", "no clock"])
def test_curves_of_thin_experiments_are_drawn(make_run: MakeRun, experiment: Path, tmp_path: Path, case: str) -> None:
    values = {"nothing yet": [], "one point": [0.5], "never crossed": [0.5, 0.5], "all nan": [math.nan] * 2}
    path = make_run("baseline", 0, values.get(case, SLOW))
    make_run("w2s", 0, [0.5, 0.6, 0.7, 0.8], off_epoch=3)
    if case == "no clock":
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        (path / "metrics.jsonl").write_text("".join(json.dumps({**row, "clock": {}}) + "\n" for row in rows))
    picture = tmp_path / "curves.png"
    draw_curves(build_report(experiment), picture)
    assert png_size(picture) == (1800, 750)


@pytest.mark.parametrize(
    ("values", "by_logarithm"),
    [
        ([312.0, 60.0], True),
        ([312.0, 70.0], False),
        ([3.0, 0.0], False),
        ([0.5, -0.001], False),
        ([math.nan, 400.0, 4.0], True),
        ([], False),
    ],
)
def test_a_wide_range_that_is_no_share_is_drawn_by_its_logarithm(
    make_run: MakeRun, experiment: Path, tmp_path: Path, values: list[float], by_logarithm: bool
) -> None:
    make_run("teacher", 0, [1e6, 1e-6], recipe=GENERATED, metric="fid", thresholds="[60.0]")  # it is not drawn
    make_run("baseline", 0, values, recipe=GENERATED, metric="fid", thresholds="[60.0, 0, -1]")
    report = build_report(experiment)
    assert curves._Heights.of_report(report).by_logarithm is by_logarithm
    draw_curves(report, tmp_path / "curves.png")
    assert png_size(tmp_path / "curves.png") == (1800, 750)


def test_a_share_is_drawn_as_it_is_however_wide_its_range(compared: Path) -> None:
    assert curves._Heights.of_report(build_report(compared)) == curves._Heights(TOP1, by_logarithm=False)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (50, 312, ["50", "70", "100", "200", "300"]),
        (4, 400, ["10", "30", "100", "300"]),
        (0.9, 20_000, ["1", "10", "100", "1000", "10,000"]),
        (51, 62, ["60"]),
    ],
)
def test_ticks_are_round_and_at_their_logarithms(low: float, high: float, expected: list[str]) -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set_ylim(math.log10(low), math.log10(high))
    curves._Heights(FID, by_logarithm=True).mark(axes)
    assert [label.get_text() for label in axes.get_yticklabels()] == expected
    assert axes.get_yticks() == pytest.approx([math.log10(float(text.replace(",", ""))) for text in expected])


def test_curves_of_an_experiment_without_any_validation(make_run: MakeRun, experiment: Path, tmp_path: Path) -> None:
    make_run("baseline", 0, [])
    draw_curves(build_report(experiment), tmp_path / "curves.png")
    assert png_size(tmp_path / "curves.png") == (1800, 750)


@pytest.mark.parametrize("width", [80, 120])
def test_the_summary_of_a_run(compared: Path, width: int) -> None:
    text = shown(summary_as_terminal(crossing_summary(read_run(compared / "w2s" / "seed0"), compared)), width)
    assert "w2s/seed0: best top1 74.0% at epoch 10" in text
    assert "distillation off at epoch 4: the student (68.0%) surpassed its teacher (65.0%)" in text
    cells = [line.split() for line in text.splitlines()]
    assert "teacher (65.0%) epoch 3 18 s epoch 6 (30 s) 2.00x (1.67 to 3.00)" in map(" ".join, cells)


def test_the_summary_shows_missed_and_unknown_levels(make_run: MakeRun, experiment: Path) -> None:
    run = read_run(make_run("w2s", 0, [0.1, 0.2]))
    text = shown(summary_as_terminal(crossing_summary(run, experiment)), 80)
    assert "not reached by epoch 2" in text
    assert "no baseline run has a validation yet" in text
    assert "on to the end, teacher 65.0%" in text
    run = read_run(make_run("baseline", 0, []))
    assert "no validation of top1 yet" in shown(summary_as_terminal(crossing_summary(run, None)), 80)


def test_numbers_carry_units_and_no_needless_digits() -> None:
    assert [units.epochs(value) for value in (6.0, 7.5, 9.9974, None)] == ["6", "7.5", "10", "-"]
    assert [units.duration(value) for value in (0.0, 0.842, 9.99, 84.2, 738.0, 18720.0)] == [
        "0 s",
        "0.84 s",
        "10 s",
        "84 s",
        "12.3 min",
        "5.2 h",
    ]
    assert [units.count(value) for value in (480, 3910, 1_281_167)] == ["480", "3,910", "1.28M"]
    assert [units.flops(value) for value in (999.0, 1.2e15, 9.996e14, None)] == [
        "999 FLOP",
        "1.2 PFLOP",
        "1000 TFLOP",
        "-",
    ]
    assert (units.level(0.7094, TOP1), units.level(1.23456, LOSS)) == ("70.9%", "1.235")
    assert [units.level(value, FID) for value in (412.3456, 12345.6, 9999.6, 2e8)] == [
        "412.3",
        "12,346",
        "10,000",
        "2e+08",
    ]
    assert units.level(0.00123456, FID) == "0.001235"
    assert units.threshold("teacher", 0.709, TOP1) == "teacher (70.9%)"
    assert units.threshold("0.9", 0.9, TOP1) == "top1 90.0%"
    assert units.threshold("0.98*baseline", None, TOP1) == "0.98*baseline (unknown)"
    assert units.place(Position(6000, 12.0, 1, None), "step") == "step 6,000"
    assert units.ratio(5 / 3) == "1.67x"
