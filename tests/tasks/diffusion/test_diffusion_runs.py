"""Diffusion end to end."""

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
from w2skd.runs.options import RunOptions, ScoreOptions
from w2skd.runs.score import score_model
from w2skd.training.checkpoint import load_checkpoint
from w2skd.training.engine import Engine
from w2skd.weights.load import load_weights


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished experiment with one seed, its recipe beside it; read only."""
    folder = tmp_path_factory.mktemp("noise")
    done("compare", "-r", recipe_of(folder), "--out", folder / "runs", "--seeds", "0", "--device", "cpu", "--quiet")
    return folder / "runs"


def distill(experiment: Path, out: Path, *settings: str) -> tuple[object, ...]:
    """Command line of the accelerated arm in another folder, with the same teacher."""
    return (
        *("distill", "-r", experiment.parent / "noise.yaml", "--out", out, "--device", "cpu"),
        *("--teacher", experiment / "teacher"),
        *(word for setting in settings for word in ("--set", setting)),
    )


def test_an_experiment_with_both_arms_is_compared(compared: Path) -> None:
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


def test_distillation_ends_once_the_student_scores_better_than_the_teacher_twice(
    compared: Path,
) -> None:
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


def test_every_validation_draws_a_picture(compared: Path) -> None:
    names = [f"pictures/step_0000000{step}.png" for step in (3, 6, 8)]
    assert [name for name in contents(run_in(compared, "baseline")) if name.endswith(".png")] == names
    assert [name for name in contents(run_in(compared)) if name.endswith(".png")] == [*names, "pictures/teacher.png"]
    assert len({contents(run_in(compared))[name] for name in names}) == 3


def course(run: Path) -> list[tuple[Any, ...]]:
    """All rows of a run, without the clock and without events of resumes."""
    found: list[tuple[Any, ...]] = []
    for row in rows(run):
        match row:
            case StepRow():
                found.append((row.step, row.epoch, row.examples, row.loss, row.parts, row.lambda_, row.lr))
            case EvalRow():
                found.append((row.step, row.epoch, row.examples, row.metrics))
            case EventRow(name=name) if name != "resumed":
                found.append((row.step, name, {key: row.details[key] for key in row.details if key != "checkpoint"}))
    return found


def test_a_run_that_is_stopped_repeatedly_equals_the_uninterrupted_one(compared: Path, tmp_path: Path) -> None:
    """Bit for bit: in warm-up, between validations, where the student is first better, at the switch, and after it."""
    out, again = tmp_path / "runs", run_in(tmp_path / "runs")
    shutil.copytree(compared / "teacher", out / "teacher")
    command = ("distill", "-r", compared.parent / "noise.yaml", "--out", out, "--device", "cpu")
    for step in (1, 3, 4):
        stopped_at(step, *command)
        assert load_checkpoint(again / "checkpoints" / "last.pt")["engine"]["step"] == step
    crashed_at(5, *command)
    for step in (6, 7):
        stopped_at(step, *command)
    output = done(*command)
    assert "resumed at step 7" in output.err
    assert_same_course(again, run_in(compared))
    assert course(again) == course(run_in(compared))
    ours, theirs = contents(again), contents(run_in(compared))
    same = [name for name in theirs if name.endswith((".png", ".safetensors"))]
    assert len(same) == 5
    assert [name for name in same if ours[name] != theirs[name]] == []
    resumed = [(row.step, row.details["lost_steps"], row.details["changed"]) for row in events(again, "resumed")]
    assert resumed == [(1, 0, {}), (3, 0, {}), (4, 1, {}), (6, 0, {}), (7, 0, {})]


def test_the_switch_can_use_kid(compared: Path, tmp_path: Path) -> None:
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


def test_a_network_with_nans_has_no_score_is_never_best_and_is_reported(compared: Path, tmp_path: Path) -> None:
    with at_step(4, poison):
        output = done(*distill(compared, tmp_path, "train.steps=6", "distill.decay=0step"))
    assert "12 of 12 samples are non-finite: fid and kid are undefined" in output.err
    fids = {step: metrics["fid"] for step, _, _, metrics in evaluations(run_in(tmp_path))}
    assert [math.isnan(value) for value in fids.values()] == [False, True]
    assert (status(run_in(tmp_path))["best"], status(run_in(tmp_path))["state"]) == (fids[3], "finished")
    assert load_checkpoint(run_in(tmp_path) / "checkpoints" / "best.pt")["engine"]["step"] == 3
    assert events(run_in(tmp_path), "distillation_off")[0].details["reason"] == "ended"


def test_a_dry_run_reports_everything_and_trains_nothing(compared: Path, tmp_path: Path) -> None:
    output = done(*distill(compared, tmp_path, "distill.switch.margin=5"), "--dry-run").out
    flat = " ".join(output.split())
    assert "24 training, 20 evaluation examples" in flat
    assert "fid of 12 samples and 24 real images in 64 features is too high" in flat
    assert "off permanently once the student's fid is better than the teacher's by 5 at 2 validations in a row" in flat
    assert [name for name in contents(tmp_path) if not name.endswith(".png")] == []


# Ranks


def score(path: Path, ranks: Ranks, samples: Path) -> dict[str, float]:
    """Score a run; write the samples into this rank's own folder."""
    evaluation = score_model(ScoreOptions(path, device="cpu", outputs=["samples"]), ranks).evaluation
    evaluation.files["samples"](samples / str(ranks.rank))
    return evaluation.metrics


def train_and_score(ranks: Ranks, folder: Path, out: Path, accumulate: int) -> list[dict[str, float]]:
    """Train, then score this run and the experiment's student."""
    with process_group(ranks, torch.device("cpu")):
        experiment = folder / "runs"
        teacher = f"teacher.checkpoint={experiment}/teacher"
        recipe = read_recipe(folder, teacher, f"train.accumulate={accumulate}", "train.steps=4")
        path = train_arm(recipe, "w2s", RunOptions(out, device="cpu", quiet=True), ranks)
        return [score(path, ranks, out / "own"), score(run_in(experiment), ranks, out / "samples")]


def test_two_ranks_train_and_score_like_one_process(compared: Path, tmp_path: Path) -> None:
    """One process with twice the accumulation: each micro-batch has its own noise on any rank."""
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


# Options


def test_evaluate_writes_samples_and_a_grid(compared: Path, tmp_path: Path) -> None:
    options = ("--samples", tmp_path / "samples", "--pictures", 4, "--pictures-to", tmp_path / "grid")
    result = json.loads(done("evaluate", "-c", run_in(compared), *options, "--device", "cpu", "--json").out)
    assert result["metrics"] == pytest.approx(evaluations(run_in(compared))[-1][-1])
    assert result["account"][0].startswith(
        "12 samples (seed 0; DDIM, 2 steps, trailing) against 24 images of train, 8 px"
    )
    assert len(list((tmp_path / "samples").iterdir())) == 12
    assert [file.name for file in (tmp_path / "grid").iterdir()] == ["samples.png"]


def test_class_conditional_networks_train_and_teach(compared: Path, tmp_path: Path) -> None:
    options = ("--set", "diffusion.class_conditional=true", "--set", "train.steps=2", "--device", "cpu", "--quiet")
    recipe = compared.parent / "noise.yaml"
    done("train-teacher", "-r", recipe, "--out", tmp_path, *options)
    done("distill", "-r", recipe, "--out", tmp_path, *options)
    assert load_weights(run_in(tmp_path)).details["classes"] == list(CLASSES)
    assert [sorted(row.parts) for row in step_rows(run_in(tmp_path))] == [["task.mse"], ["distill.mse", "task.mse"]]


# Growing

GROWN = """
arms:
  baseline: {help: none}
  grown: {help: grow}
"""


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a student with twice the teacher's channels and blocks, and its recipe; read-only."""
    folder = tmp_path_factory.mktemp("grown")
    recipe = recipe_of(folder)
    wider = recipe.read_text().replace("student: {model: unet_mini_nc16_rb1}", "student: {model: unet_mini_nc32_rb2}")
    recipe.write_text(wider + GROWN)
    out = ("--out", folder / "runs", "--device", "cpu", "--quiet")
    done("train-teacher", "-r", recipe, *out)
    done("distill", "-r", recipe, "--arm", "grown", *out)
    return folder / "runs"


def test_a_grown_student_is_scored_as_in_training(grown: Path) -> None:
    """The checkpoint records the settings that differ from those of a U-Net built for the recipe."""
    run = run_in(grown, "grown")
    settings = {"norm_num_groups": 4, "freq_shift": 2}
    assert load_weights(run).details["beside_weights"] == settings
    scored = score_model(ScoreOptions(run, device="cpu"), Ranks())
    assert scored.evaluation.metrics == evaluations(run)[-1][-1]
    facts = json.loads((run / "environment.json").read_text())
    assert "norms have the teacher's 4 groups, not 8" in facts["growth"]["notes"]


def test_a_grown_student_resumes_with_its_settings(grown: Path, tmp_path: Path) -> None:
    command = ("distill", "-r", grown.parent / "noise.yaml", "--arm", "grown", "--out", tmp_path, "--device", "cpu")
    command = (*command, "--teacher", grown / "teacher", "--quiet")
    stopped_at(4, *command)
    done(*command)
    assert_same_course(run_in(tmp_path, "grown"), run_in(grown, "grown"))


def test_weights_of_a_grown_student_can_be_the_start_of_another_run(grown: Path, tmp_path: Path) -> None:
    start = ("--init-from", run_in(grown, "grown"), "--set", "train.steps=3", "--device", "cpu", "--quiet")
    done("distill", "-r", grown.parent / "noise.yaml", "--arm", "baseline", "--out", tmp_path, *start)
    again = load_weights(run_in(tmp_path, "baseline"))
    assert again.details["beside_weights"] == {"norm_num_groups": 4, "freq_shift": 2}
