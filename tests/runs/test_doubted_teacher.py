"""A teacher is measured before it is believed."""

import math
from pathlib import Path

import pytest
import tiny_boxes
import tiny_noise
import torch
from known import build_task
from tiny import done, events, recipe_file

from w2skd.platform.ranks import Ranks
from w2skd.recipe.load import load_recipe
from w2skd.tasks.base import Role, Task
from w2skd.tasks.catalog import recipe_types
from w2skd.training.engine import evaluate

TEACH = (
    "--set",
    "teacher.model=small_cnn_strong",
    "--set",
    "data.train_examples=512",
    "--set",
    "data.eval_examples=100",
)
TRAIN = ("--set", "teacher.train.steps=120", "--set", "teacher.train.lr_schedule={name: one_cycle}")


def trained(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    done("train-teacher", "-r", recipe_file(folder), "--out", folder / "taught", *TEACH, *TRAIN)
    return load_file(folder / "taught/teacher/model.safetensors")


def distill(folder: Path, weights: dict[str, torch.Tensor], name: str) -> tuple[str, Path]:
    torch.save(weights, folder / f"{name}.pth")
    out = folder / name
    found = done("distill", "-r", folder / "tiny.yaml", "--out", out, "--teacher", folder / f"{name}.pth", *TEACH)
    return " ".join((found.err + found.out).split()), out / "w2s/seed0"


def test_a_teacher_in_another_order_of_classes_is_doubted_and_no_target(tmp_path: Path) -> None:
    state = trained(tmp_path)
    said, run = distill(tmp_path, state, "sound")
    [teacher] = events(run, "teacher")
    assert "no better than chance" not in said
    assert "doubt" not in teacher.details
    moved = {key: value.roll(1, 0) if value.shape[:1] == (10,) else value for key, value in state.items()}
    said, run = distill(tmp_path, moved, "moved")
    [teacher] = events(run, "teacher")
    assert f"warning: the teacher's {teacher.details['doubt']}. Usual reasons: another order of classes" in said
    assert "is no better than chance (10.0% for the most frequent class)" in teacher.details["doubt"]
    assert said.count(f"the teacher's {teacher.details['doubt']}") == 2, "the warning and the target"


@pytest.mark.parametrize(
    ("top1", "loss", "doubted"),
    [
        (0.1, 2.4, True),
        (0.0, 9.0, True),
        (0.15, 2.31, True),
        (0.2, 3.0, False),
        (0.1, 2.2, False),
        (0.1, math.nan, True),
    ],
)
def test_a_classifier_must_beat_a_guess(top1: float, loss: float, doubted: bool, tmp_path: Path) -> None:
    task = task_of(recipe_file(tmp_path), "data.eval_examples=100")
    assert (task.doubt({"top1": top1, "top5": 0.5, "loss": loss}) is not None) == doubted


def test_an_untrained_detector_is_doubted(tmp_path: Path) -> None:
    task = task_of(tiny_boxes.recipe_of(tmp_path))
    doubt = task.doubt(evaluate(task, task.build_model(Role.TEACHER), torch.device("cpu"), "fp32").metrics)
    assert doubt is not None
    assert "ap50 0.00% is no better than chance" in doubt
    assert task.doubt({"ap": 0.01, "ap50": 0.05}) is None


def test_an_untrained_denoiser_is_doubted(tmp_path: Path) -> None:
    task = task_of(tiny_noise.recipe_of(tmp_path))
    untrained = evaluate(task, task.build_model(Role.TEACHER), torch.device("cpu"), "fp32").metrics
    doubt = task.doubt(untrained)
    assert doubt is not None
    assert "is close to that of pure noise" in doubt
    assert task.doubt({**untrained, "fid": untrained["fid"] / 2}) is None
    assert task.doubt({**untrained, "fid": math.nan}) is None, "which is reported otherwise"


def task_of(recipe: Path, *overrides: str) -> Task:
    loaded = load_recipe(str(recipe), overrides, recipe_types())
    train = loaded.train_of(Role.TEACHER)
    return build_task(loaded, train=train, seed=0, device=torch.device("cpu"), ranks=Ranks())
