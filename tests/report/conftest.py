"""Synthetic experiments: real recipes and real rows, with curves that a test writes down by hand.

An epoch has 10 steps of 8 examples; a step takes 0.5 s, and 0.1 s more while the teacher looks on.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from w2skd.recipe.load import dump_recipe, load_recipe
from w2skd.records import EvalRow, EventRow, Row, StepRow, encode

STEPS_PER_EPOCH = 10
BATCH_SIZE = 8
STUDENT_FLOPS, TEACHER_FLOPS = 1000.0, 300.0

RECIPE = """
name: tiny
task: classification
data: {source: shapes}
teacher: {model: small_cnn_weak}
student: {model: small_cnn_strong}
train:
  epochs: 14
  batch_size: 8
  optimizer: {name: sgd, lr: 0.1}
  lr_schedule: {name: cosine}
"""

MakeRun = Callable[..., Path]


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Where the runs of a test go."""
    path = tmp_path / "tiny"
    path.mkdir()
    return path


@pytest.fixture
def make_run(experiment: Path, tmp_path: Path) -> MakeRun:
    """Write one run directory whose metric takes the given values, one validation an epoch."""

    def make(
        arm: str,
        seed: int,
        values: Sequence[float],
        *,
        metric: str = "top1",
        thresholds: str = "[teacher, 0.7, 0.98*baseline]",
        teacher: float | None = 0.65,
        off_epoch: int | None = None,
        state: str = "finished",
        overrides: Sequence[str] = (),
        environment: dict[str, Any] | None = None,
        extra: Sequence[Row] = (),
    ) -> Path:
        path = experiment / "teacher" if arm == "teacher" else experiment / arm / f"seed{seed}"
        path.mkdir(parents=True)
        (tmp_path / "recipe.yaml").write_text(RECIPE)
        settings = [f"seed={seed}", f"report.metric={metric}", f"report.thresholds={thresholds}", *overrides]
        recipe = load_recipe(str(tmp_path / "recipe.yaml"), settings)
        rows: list[Row] = []
        if arm == "w2s":
            rows.append(EventRow(0, "teacher", {"metrics": {metric: teacher}, "checkpoint": "teacher"}))
        for epoch, value in enumerate(values, start=1):
            rows += epoch_rows(epoch, value, metric, arm, off_epoch)
        status = {"arm": arm, "seed": seed, "state": state, "step": 10 * len(values), "total_steps": 140}
        facts = {
            "w2skd": "0.1.0",
            "device": "cpu",
            "device_name": "a processor",
            "threads": 1,
            "ranks": 1,
            "data_fingerprint": "f00d",
            "forward_flops": forward_flops(arm),
        }
        (path / "recipe.yaml").write_text(dump_recipe(recipe))
        (path / "status.json").write_text(json.dumps(status))
        (path / "environment.json").write_text(json.dumps({**facts, **(environment or {})}))
        (path / "metrics.jsonl").write_text("".join(encode(row) + "\n" for row in [*rows, *extra]))
        return path

    return make


def forward_flops(arm: str) -> dict[str, float]:
    """What a run of that arm records: the model that it trains is its student, a teacher's run included."""
    if arm == "teacher":
        return {"student": TEACHER_FLOPS}
    return {"student": STUDENT_FLOPS} | ({"teacher": TEACHER_FLOPS} if arm == "w2s" else {})


def epoch_rows(epoch: int, value: float, metric: str, arm: str, off_epoch: int | None) -> list[Row]:
    """A progress row, a validation and, where its time has come, the switch."""
    step = epoch * STEPS_PER_EPOCH
    distilled = 0 if arm != "w2s" else step if off_epoch is None else min(step, off_epoch * STEPS_PER_EPOCH)
    clock = {
        "train": 0.5 * step,
        "teacher": 0.1 * distilled,
        "data": 0.0,
        "evaluate": 3.0 * epoch,
        "checkpoint": 0.5,
        "compile": 0.0,
    }
    place = (step, float(epoch), step * BATCH_SIZE)
    rows: list[Row] = [
        StepRow(*place, loss=1.0, parts={"task.cross_entropy": 1.0}, lambda_=0.0, lr=0.1, clock=clock),
        EvalRow(*place, metrics={metric: value}, clock=clock),
    ]
    if arm == "w2s" and epoch == off_epoch:
        details = {"reason": "surpassed", "student": value, "teacher": 0.65, "epoch": float(epoch)}
        rows.append(EventRow(step, "distillation_off", details))
    return rows
