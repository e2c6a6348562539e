"""Synthetic experiments: real recipes and real rows, with curves that a test writes down by hand.

An epoch has 10 steps of 8 examples; a step takes 0.5 s, and 0.1 s more while the teacher looks on.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from w2skd.recipe.evaluation import Metric
from w2skd.records.rows import EvalRow, EventRow, Row, StepRow
from w2skd.report.contract import Report, ThresholdReport

TOP1 = Metric("top1", higher_is_better=True, is_share=True)
LOSS = Metric("loss", higher_is_better=False)
FID = Metric("fid", higher_is_better=False)

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

GENERATED = """
name: tiny_ddpm
task: diffusion
data: {source: shapes}
teacher: {model: unet_mini_nc16_rb1}
student: {model: unet_mini_nc32_rb1}
train:
  steps: 140
  batch_size: 8
  optimizer: {name: adamw, lr: 0.001}
  lr_schedule: {name: constant}
report: {metric: fid}
"""
"""Of generated images, scored by FID, with a length in steps."""

SCORING = {
    "extractor": "inception-v3-compat",
    "weights": "6726825d0af5f729",
    "samples": 10_000,
    "reference": "50,000 images of train, 32 px",
    "seed": 0,
    "sampler": "DDIM, 50 steps, trailing",
}
FID_SLOW = [312.0, 188.0, 131.0, 97.0, 80.5, 71.0, 64.0, 59.5, 56.0, 53.5]
FID_FAST = [260.0, 110.0, 74.0, 61.0, 56.5, 54.0, 52.5, 51.5, 50.5, 50.0]

MakeRun = Callable[..., Path]


def forward_flops(arm: str) -> dict[str, float]:
    """What a run of that arm records: the model that it trains is its student, a teacher's run included."""
    if arm == "teacher":
        return {"student": TEACHER_FLOPS}
    return {"student": STUDENT_FLOPS} | ({"teacher": TEACHER_FLOPS} if arm == "w2s" else {})


def epoch_rows(
    epoch: int, value: float, metric: str, arm: str, off_epoch: int | None, teacher: float | None = 0.65
) -> list[Row]:
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
        details = {"reason": "surpassed", "student": value, "teacher": teacher, "epoch": float(epoch)}
        rows.append(EventRow(step, "distillation_off", details))
    return rows


SLOW = [0.2, 0.3, 0.4, 0.5, 0.6, 0.66, 0.68, 0.71, 0.72, 0.72]
FAST = [0.3, 0.5, 0.66, 0.68, 0.71, 0.72, 0.73, 0.73, 0.73, 0.74]


def threshold(report: Report, name: str) -> ThresholdReport:
    return next(found for found in report.thresholds if found.name == name)


def mentions(report: Report, *words: str) -> bool:
    return any(all(word in line for word in words) for line in report.warnings)


def two_arms_of_generated_images(make_run: MakeRun, seeds: int = 1, **options: Any) -> None:
    given = {"recipe": GENERATED, "metric": "fid", "thresholds": "[teacher, 60.0, 0.98*baseline]", "teacher": 65.0}
    given |= {"environment": {"scoring": SCORING}} | options
    for seed in range(seeds):
        make_run("baseline", seed, [value + seed for value in FID_SLOW], **given)
        make_run("w2s", seed, [value + seed for value in FID_FAST], off_epoch=5, **given)


def two_arms(make_run: MakeRun, seeds: int = 1, **options: Any) -> None:
    for seed in range(seeds):
        make_run("baseline", seed, SLOW, **options)
        make_run("w2s", seed, FAST, off_epoch=4, **options)
