"""Diffusion from end to end: the same engine, the same promises."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_ranks, values
from tiny import (
    assert_same_course,
    at_step,
    contents,
    crashed_at,
    done,
    evaluations,
    events,
    rows,
    run_in,
    status,
    step_rows,
    stopped_at,
    weights,
)
from tiny_noise import read_recipe, recipe_of

from w2skd.data.shapes import CLASSES
from w2skd.platform.ranks import Ranks, process_group
from w2skd.records.rows import EvalRow, EventRow, StepRow
from w2skd.runs.arm import train_arm
from w2skd.runs.options import RunOptions
from w2skd.runs.score import score_checkpoint
from w2skd.training.checkpoint import load_checkpoint
from w2skd.training.engine import Engine
from w2skd.weights.load import load_weights


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished experiment of one seed, and not to be changed; its recipe lies beside it."""
    folder = tmp_path_factory.mktemp("noise")
    done("compare", "-r", recipe_of(folder), "--out", folder / "runs", "--seeds", "0", "--device", "cpu", "--quiet")
    return folder / "runs"


def distill(experiment: Path, out: Path, *settings: str) -> tuple[object, ...]:
    """The accelerated arm once more, elsewhere, with the same teacher."""
    return (
        *("distill", "-r", experiment.parent / "noise.yaml", "--out", out, "--device", "cpu"),
        *("--teacher", experiment / "teacher"),
        *(word for setting in settings for word in ("--set", setting)),
    )


def test_an_experiment_of_both_arms_is_compared(compared: Path) -> None:
    ours, theirs = (step_rows(run_in(compared, arm)) for arm in ("w2s", "baseline"))
    assert [row.lambda_ for row in ours] == [0, 0.5, 1, 1, 1, 1, 0, 0]
    assert [sorted(row.parts) for row in theirs] == [["task.mse"]] * 8
    assert [sorted(row.parts) for row in ours] == [
        ["distill.mse", "task.mse"] if row.lambda_ else ["task.mse"] for row in ours
    ]
    assert (ours[0].loss, ours[0].parts) == (theirs[0].loss, theirs[0].parts), "the same weights, images and noise"
    assert ours[1].parts["task.mse"] == theirs[1].parts["task.mse"]
    assert ours[2].loss != theirs[2].loss
    for arm in ("w2s", "baseline"):
        assert status(run_in(compared, arm))["state"] == "finished"
        assert [step for step, *_ in evaluations(run_in(compared, arm))] == [3, 6, 8]
        assert set(evaluations(run_in(compared, arm))[0][-1]) == {"fid", "kid"}
    assert load_weights(run_in(compared)).details["classes"] == []
    report = json.loads((compared / "report" / "report.json").read_text())
    assert (report["metric"], report["higher_is_better"]) == ("fid", False)


def test_teacher_and_student_are_scored_alike_and_the_student_need_only_be_better_twice(compared: Path) -> None:
    [teacher] = events(run_in(compared), "teacher")
    assert teacher.details["metrics"] == evaluations(compared / "teacher")[-1][-1]
    [off] = events(run_in(compared), "distillation_off")
    fids = {step: metrics["fid"] for step, _, _, metrics in evaluations(run_in(compared))}
    assert (off.step, off.details["reason"], off.details["student"]) == (6, "surpassed", fids[6])
    assert max(fids[3], fids[6]) < off.details["teacher"] == teacher.details["metrics"]["fid"]
    scorings = [
        json.loads((run / "environment.json").read_text())["scoring"]
        for run in (compared / "teacher", run_in(compared, "baseline"), run_in(compared))
    ]
    assert scorings[0] == scorings[1] == scorings[2]


def test_every_validation_leaves_a_picture(compared: Path) -> None:
    names = [f"pictures/step_0000000{step}.png" for step in (3, 6, 8)]
    assert [name for name in contents(run_in(compared, "baseline")) if name.endswith(".png")] == names
    assert [name for name in contents(run_in(compared)) if name.endswith(".png")] == [*names, "pictures/teacher.png"]
    assert len({contents(run_in(compared))[name] for name in names}) == 3


def course(run: Path) -> list[tuple[Any, ...]]:
    """All its rows, but for the clock and what resumes say of themselves."""
    told: list[tuple[Any, ...]] = []
    for row in rows(run):
        match row:
            case StepRow():
                told.append((row.step, row.epoch, row.examples, row.loss, row.parts, row.lambda_, row.lr))
            case EvalRow():
                told.append((row.step, row.epoch, row.examples, row.metrics))
            case EventRow(name=name) if name != "resumed":
                told.append((row.step, name, {key: row.details[key] for key in row.details if key != "checkpoint"}))
    return told


def test_a_run_that_was_stopped_again_and_again_goes_on_as_if_nothing_had_been(compared: Path, tmp_path: Path) -> None:
    """In warm-up, between validations, where the student was first better, at the switch and after; bit for bit."""
    out, again = tmp_path / "runs", run_in(tmp_path / "runs")
    shutil.copytree(compared / "teacher", out / "teacher")
    command = ("distill", "-r", compared.parent / "noise.yaml", "--out", out, "--device", "cpu")
    for step in (1, 3, 4):
        stopped_at(step, *command)
        assert load_checkpoint(again / "checkpoints" / "last.pt")["engine"]["step"] == step
    crashed_at(5, *command)
    for step in (6, 7):
        stopped_at(step, *command)
    said = done(*command)
    assert "resumed at step 7" in said.err
    assert_same_course(again, run_in(compared))
    assert course(again) == course(run_in(compared))
    ours, theirs = contents(again), contents(run_in(compared))
    same = [name for name in theirs if name.endswith((".png", ".safetensors"))]
    assert len(same) == 5
    assert [name for name in same if ours[name] != theirs[name]] == []
    resumed = [(row.step, row.details["lost_steps"], row.details["changed"]) for row in events(again, "resumed")]
    assert resumed == [(1, 0, {}), (3, 0, {}), (4, 1, {}), (6, 0, {}), (7, 0, {})]


def test_kid_can_be_what_the_switch_is_about(compared: Path, tmp_path: Path) -> None:
    done(*distill(compared, tmp_path, "report.metric=kid", "train.steps=6"))
    [teacher] = events(run_in(tmp_path), "teacher")
    [off] = events(run_in(tmp_path), "distillation_off")
    kids = {step: metrics["kid"] for step, _, _, metrics in evaluations(run_in(tmp_path))}
    assert (off.step, off.details["student"], off.details["teacher"]) == (6, kids[6], teacher.details["metrics"]["kid"])
    [finished] = events(run_in(tmp_path), "finished")
    assert (finished.details["metric"], finished.details["best"]) == ("kid", min(kids.values()))


def poison(engine: Engine) -> None:
    for parameter in engine.student.parameters():
        parameter.data.fill_(math.nan)


def test_a_network_that_broke_has_no_score_is_never_best_and_is_told(compared: Path, tmp_path: Path) -> None:
    with at_step(4, poison):
        said = done(*distill(compared, tmp_path, "train.steps=6", "distill.decay=0step"))
    assert "12 of 12 samples are not finite: there is no fid and no kid of them" in said.err
    fids = {step: metrics["fid"] for step, _, _, metrics in evaluations(run_in(tmp_path))}
    assert [math.isnan(value) for value in fids.values()] == [False, True]
    assert (status(run_in(tmp_path))["best"], status(run_in(tmp_path))["state"]) == (fids[3], "finished")
    assert load_checkpoint(run_in(tmp_path) / "checkpoints" / "best.pt")["engine"]["step"] == 3
    assert events(run_in(tmp_path), "distillation_off")[0].details["reason"] == "ended"


def test_a_dry_run_tells_all_and_trains_nothing(compared: Path, tmp_path: Path) -> None:
    said = done(*distill(compared, tmp_path, "distill.switch.margin=5"), "--dry-run").out
    flat = " ".join(said.split())
    assert "24 training, 20 evaluation examples" in flat
    assert "fid of 12 samples and 24 real images in 64 features is too high" in flat
    assert "off for good when the student's fid is better than the teacher's by 5 at 2 validations in a row" in flat
    assert [name for name in contents(tmp_path) if not name.endswith(".png")] == []


# Ranks


def score(path: Path, ranks: Ranks, samples: Path) -> dict[str, float]:
    """Its metrics; the samples go into a folder of this rank's own."""
    keys: dict[str, Any] = {"recipe_name": None, "overrides": [], "role": None, "device_name": "cpu"}
    evaluation = score_checkpoint(path, ranks=ranks, wanted=["samples"], **keys).evaluation
    evaluation.files["samples"](samples / str(ranks.rank))
    return evaluation.metrics


def train_and_score(ranks: Ranks, folder: Path, out: Path, accumulate: int) -> list[dict[str, float]]:
    """The run's own last scores, and those of the uninterrupted experiment's student."""
    with process_group(ranks, torch.device("cpu")):
        experiment = folder / "runs"
        teacher = f"teacher.checkpoint={experiment}/teacher"
        recipe = read_recipe(folder, teacher, f"train.accumulate={accumulate}", "train.steps=4")
        path = train_arm(recipe, "w2s", RunOptions(out, device="cpu", quiet=True), ranks)
        return [score(path, ranks, out / "own"), score(run_in(experiment), ranks, out / "samples")]


def test_two_ranks_learn_and_score_what_one_process_does(compared: Path, tmp_path: Path) -> None:
    """With twice the accumulation: slices have their own noise, whoever works on them."""
    first, second = values(run_ranks(train_and_score, compared.parent, tmp_path / "two", 1, timeout_s=300))
    alone = train_and_score(Ranks(), compared.parent, tmp_path / "one", 2)
    assert first == second
    for ours, theirs in zip(first, alone, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2)
    two, one = (run_in(tmp_path / name) for name in ("two", "one"))
    assert evaluations(two)[-1][-1] == first[0]
    for ours, theirs in zip(step_rows(two), step_rows(one), strict=True):
        assert ours.lambda_ == theirs.lambda_
        assert ours.parts == pytest.approx(theirs.parts, rel=1e-4)
    for name, value in weights(two).items():
        torch.testing.assert_close(value, weights(one)[name], rtol=1e-3, atol=1e-4)
    pictures = contents(tmp_path / "one" / "samples" / "0")
    assert list(pictures) == [f"{number:06}.png" for number in range(12)]
    for rank in (0, 1):
        assert contents(tmp_path / "two" / "samples" / str(rank)) == pictures
    assert len(list((two / "pictures").iterdir())) == 3


# What else there is


def test_samples_and_a_grid_of_them_can_be_written(compared: Path, tmp_path: Path) -> None:
    leaves = ("--samples", tmp_path / "samples", "--pictures", 4, "--pictures-to", tmp_path / "grid")
    said = json.loads(done("evaluate", "-c", run_in(compared), *leaves, "--device", "cpu", "--json").out)
    assert said["metrics"] == pytest.approx(evaluations(run_in(compared))[-1][-1])
    assert said["account"][0].startswith(
        "12 samples (seed 0; DDIM, 2 steps, trailing) against 24 images of train, 8 px"
    )
    assert len(list((tmp_path / "samples").iterdir())) == 12
    assert [file.name for file in (tmp_path / "grid").iterdir()] == ["samples.png"]


def test_networks_that_are_told_classes_train_and_teach(compared: Path, tmp_path: Path) -> None:
    told = ("--set", "diffusion.class_conditional=true", "--set", "train.steps=2", "--device", "cpu", "--quiet")
    recipe = compared.parent / "noise.yaml"
    done("train-teacher", "-r", recipe, "--out", tmp_path, *told)
    done("distill", "-r", recipe, "--out", tmp_path, *told)
    assert load_weights(run_in(tmp_path)).details["classes"] == list(CLASSES)
    assert [sorted(row.parts) for row in step_rows(run_in(tmp_path))] == [["task.mse"], ["distill.mse", "task.mse"]]
