"""Between two log rows the host never waits for the device, and an evaluation waits at its end."""

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from small import HARD, NAMES, ONE_SHAPE, engine_on, model_of, task_on
from waiting import listed_waits, no_waiting

from w2skd.data import feeds
from w2skd.data.streaming import Request
from w2skd.tasks.diffusion.sampling import generate
from w2skd.training.engine import Engine, evaluate

pytestmark = pytest.mark.cuda

DETECTORS = [name for name in NAMES if name not in ONE_SHAPE]
PER_IMAGE = {"retinanet": 12, "fasterrcnn": 24}
"""Maximum number of waits per step and image, nearly all for the number of selected anchors or boxes."""

OURS = ("/w2skd/", "/torch/optim/", "/torch/nn/")
"""Code that must not wait, even if torchvision does."""


def counters(engine: Engine) -> list[torch.Tensor]:
    return [] if engine.average is None else [engine.average.n_averaged]


@pytest.mark.parametrize(("precision", "distilled"), [("fp32", False), ("bf16", True), ("fp16", True)])
@pytest.mark.parametrize("name", ONE_SHAPE)
def test_steps_between_log_rows_never_wait(
    name: str, precision: str, distilled: bool, device: torch.device, tmp_path: Path
) -> None:
    engine = engine_on(device, name, tmp_path, *HARD, f"train.precision={precision}", distilled=distilled)
    batches = engine.task.train_batches(0)
    for _ in range(2):  # tables reach the device, the optimizer creates its state, and the average starts
        engine._take_step(batches)
    with no_waiting(device, counters(engine)):
        for _ in range(engine.task.steps_per_epoch + 1):  # over the border of an epoch
            engine._take_step(batches)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_neither_optimizer_waits_for_an_overflow(optimizer: str, device: torch.device, tmp_path: Path) -> None:
    options = (f"train.optimizer={{name: {optimizer}, lr: 0.01}}", "train.precision=fp16")
    engine = engine_on(device, "classification", tmp_path, *HARD, *options)
    batches = engine.task.train_batches(0)
    engine._take_step(batches)
    with no_waiting(device, counters(engine)):
        engine.loss_scale.value = torch.full((), 2.0**24, device=device)
        engine._take_step(batches)
    assert engine.loss_scale.value.item() == 2.0**23


@pytest.mark.parametrize("feed", [("resident", 0), ("streaming", 1)])
def test_feeds_never_wait(feed: tuple[str, int], device: torch.device, tmp_path: Path) -> None:
    changes = ("data.augment=[crop, flip, cutout]", "data.mixup=0.2", "data.cutmix=1.0")
    kind = (f"data.feed={feed[0]}", f"data.workers={feed[1]}")
    task = task_on(device, "classification", tmp_path, *changes, *kind)
    batches = task.train_batches(0)
    next(batches)
    with no_waiting(device):
        for _ in range(2 * task.steps_per_epoch):
            next(batches)


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_wait_in_torchvision_only(name: str, distilled: bool, device: torch.device, tmp_path: Path) -> None:
    """torchvision's matcher and losses select anchors by masks, and the host waits for their number."""
    engine = engine_on(device, name, tmp_path, *HARD, "train.precision=fp16", distilled=distilled)
    batches = engine.task.train_batches(0)
    for _ in range(2):
        engine._take_step(batches)
    ready = list(islice(batches, 2))
    with listed_waits(device, counters(engine)) as found:
        engine._take_step(iter(ready))
    assert [place for place in found if any(part in place for part in OURS)] == []
    assert len(found) <= PER_IMAGE[name] * sum(map(len, ready)), Counter(found)
    assert len(found) > len(ready), "the check detects too little"


def test_detection_batches_reach_the_device_without_waiting(device: torch.device, tmp_path: Path) -> None:
    task = task_on(device, "retinanet", tmp_path)
    made = task._read(task._listing.train)(Request([0, 1]))
    pinned, ids = made.pin_memory() if device.type == "cuda" else made, torch.arange(2, device=device)
    with no_waiting(device):
        task._deliver(pinned, ids)


def test_the_check_detects_waiting(device: torch.device) -> None:
    flag = torch.ones((), device=device)
    with pytest.raises((AssertionError, RuntimeError), match=r"waits|synchronizing"), no_waiting(device):
        bool(flag)
    with listed_waits(device) as found:
        bool(flag)
        torch.ones(3, device=device).nonzero()
    assert len(found) == 2


def test_a_validation_waits_at_its_end(device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "EVALUATION_BATCH", 13)  # four batches, of which the last is filled up
    task = task_on(device, "classification", tmp_path)
    model = model_of(task).to(device)
    evaluate(task, model, device, "bf16")
    with listed_waits(device) as found:
        evaluate(task, model, device, "bf16")
    assert len(found) <= 2, found  # for the scores and for the table of classes


@pytest.mark.needs_gpu(reason="reads tables that stay on the CPU, which a rehearsal cannot distinguish")
def test_generation_never_waits(device: torch.device, tmp_path: Path) -> None:
    task = task_on(device, "diffusion", tmp_path)
    model, noise = model_of(task).to(device).eval(), torch.randn(4, 3, 8, 8, device=device)
    generate(model, noise, schedule=task._schedule, sampler=task._recipe.sampler)
    with no_waiting(device):
        generate(model, noise, schedule=task._schedule, sampler=task._recipe.sampler)
