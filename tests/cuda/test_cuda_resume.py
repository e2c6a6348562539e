"""Runs of the commands on the device: a resumed run repeats bit for bit, and matrix products may be deterministic."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import tiny_boxes
import tiny_noise
import torch
from tiny import assert_same_course, done, events, run_in, step_rows, stopped_at, weights

pytestmark = pytest.mark.cuda

REPEATABLE = ("classification", "retinanet", "diffusion")
"""Faster R-CNN is left out: torchvision compiles deterministic region pooling for a GPU, which takes long."""

STOP = {"classification": 14, "retinanet": 3, "diffusion": 5}
"""Step of the interruption, in the middle of distillation and of an epoch."""

SHORT = {
    "classification": ("train.steps=18", "train.validate_every=6step", "distill.decay=6step"),
    "retinanet": ("train.steps=5", "train.validate_every=5step"),
    "diffusion": ("train.steps=7", "train.validate_every=7step", "train.checkpoint_every=3step"),
}

MIXED = ("train.precision=fp16", "train.ema={decay: 0.9}", "train.clip_grad_norm=1.0", "train.accumulate=2")


def recipe_file(name: str, folder: Path) -> Path:
    if name == "classification":
        return tiny.recipe_file(folder)
    return tiny_noise.recipe_of(folder) if name == "diffusion" else tiny_boxes.recipe_of(folder, name)


def commands(name: str, folder: Path, device: torch.device, *changes: str) -> dict[str, tuple[object, ...]]:
    """Return the command of a distilled run, for two folders with the same teacher."""
    more = [word for change in changes for word in ("--set", change)]
    common = ("--recipe", recipe_file(name, folder), "--quiet", "--device", device.type, *more)
    done("train-teacher", *common, "--out", folder / "whole")
    teacher = ("--teacher", folder / "whole" / "teacher")
    return {part: ("distill", *common, *teacher, "--out", folder / part) for part in ("whole", "parts")}


@pytest.mark.parametrize(("name", "changes"), [*((name, MIXED) for name in REPEATABLE), ("classification", ())])
def test_a_resumed_run_equals_an_uninterrupted_one(
    name: str, changes: tuple[str, ...], device: torch.device, tmp_path: Path
) -> None:
    runs = commands(name, tmp_path, device, *SHORT[name], *changes)
    done(*runs["whole"])
    stopped_at(STOP[name], *runs["parts"])
    done(*runs["parts"])
    whole, parts = (run_in(tmp_path / part) for part in runs)
    assert len(events(parts, "resumed")) == 1
    assert_same_course(parts, whole)
    ours, theirs = ([(row.step, row.loss, row.parts) for row in step_rows(run)] for run in (parts, whole))
    assert [row for row in theirs if row[0] > STOP[name] + 2] == [row for row in ours if row[0] > STOP[name] + 2]
    assert all(bool(value.isfinite().all()) for value in weights(whole).values() if value.is_floating_point())


PRODUCTS = """
import sys
import torch
from w2skd.platform.device import open_device
from w2skd.platform.ranks import Ranks

device = open_device(sys.argv[1], Ranks())
matrix = torch.rand(64, 64, device=device)
first = matrix @ matrix  # here torch reads the environment, once
torch.use_deterministic_algorithms(True)
assert torch.equal(matrix @ matrix, matrix @ matrix)
"""


@pytest.mark.needs_gpu(reason="only a GPU needs it")
def test_a_deterministic_run_may_follow_another_one_in_a_process(device: torch.device) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    command = [sys.executable, "-c", PRODUCTS, device.type]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.needs_gpu(reason="checks memory formats and devices of checkpoints")
def test_checkpoints_of_a_gpu_resume_on_the_cpu(device: torch.device, tmp_path: Path) -> None:
    runs = commands("classification", tmp_path, device, "train.channels_last=true", *MIXED)
    stopped_at(14, *runs["parts"])
    command = [word if word != device.type else "cpu" for word in runs["parts"]]
    done(*command)
    [resumed] = events(run_in(tmp_path / "parts"), "resumed")
    assert resumed.details["changed"]["device"] == "cpu"
