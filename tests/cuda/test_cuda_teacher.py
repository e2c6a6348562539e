"""The teacher on the device: ordinary outputs, its own time, and an unchanged state."""

from pathlib import Path

import pytest
import torch
from small import NAMES, engine_on, model_of, steps, task_on
from torch.nn import functional

from w2skd.method.teacher import FrozenTeacher, state_fingerprint
from w2skd.tasks.base import Role
from w2skd.training.clock import Clock

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("loss", [functional.mse_loss, functional.smooth_l1_loss])
def test_a_loss_may_save_its_outputs(loss: object, precision: str, device: torch.device, tmp_path: Path) -> None:
    task = task_on(device, "classification", tmp_path)
    teacher = FrozenTeacher(model_of(task, Role.TEACHER), device=device, precision=precision, channels_last=True)
    student, batch = model_of(task).to(device), next(task.train_batches(0))
    taught = teacher(batch.images)
    assert not taught.is_inference()
    assert not taught.requires_grad
    assert (taught.device.type, taught.dtype) == (device.type, DTYPES[precision])
    loss(student(batch.images), taught.float()).backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in student.parameters())


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def test_the_callers_autocast_has_no_effect(device: torch.device, tmp_path: Path) -> None:
    task = task_on(device, "classification", tmp_path)
    teacher = FrozenTeacher(model_of(task, Role.TEACHER), device=device)
    images = next(task.train_batches(0)).images
    alone = teacher(images)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(teacher(images), alone)


@pytest.mark.parametrize(("name", "precision"), [*((name, "fp32") for name in NAMES), ("classification", "bf16")])
def test_training_leaves_its_state_and_counts_its_time(
    name: str, precision: str, device: torch.device, tmp_path: Path
) -> None:
    clock = Clock()
    engine = engine_on(device, name, tmp_path, f"train.precision={precision}", clock=clock)
    before = state_fingerprint(engine.teacher.model)
    steps(engine, 3)
    assert state_fingerprint(engine.teacher.model) == before
    waiting = clock.read()
    engine.teacher.settle()
    seconds = clock.read()
    assert seconds["teacher"] > 0
    assert sum(seconds.values()) == pytest.approx(sum(waiting.values()), abs=1e-4)
    if device.type == "cuda":
        assert waiting["teacher"] == 0.0
        assert len(engine.teacher._events) == 0


def test_a_fingerprint_does_not_depend_on_device_or_layout(device: torch.device, tmp_path: Path) -> None:
    model = model_of(task_on(device, "classification", tmp_path))
    wanted = state_fingerprint(model)
    assert state_fingerprint(model.to(device).to(memory_format=torch.channels_last)) == wanted
