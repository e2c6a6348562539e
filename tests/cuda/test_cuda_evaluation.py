"""Scores on the device equal those on the CPU, and depend neither on ranks nor on the batches of training."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from small import CPU, NAMES, model_of, task_on
from torch import Tensor, nn

from w2skd.platform.ranks import Ranks
from w2skd.training.engine import evaluate

pytestmark = pytest.mark.cuda

CLOSE = {"classification": 1e-4, "retinanet": 2e-2, "fasterrcnn": 2e-2, "diffusion": 5e-2}
"""Largest relative difference of a score. Rounding reorders detections with equal scores; FID of few samples is the
difference of large numbers."""


def awake(task: Any) -> nn.Module:
    """Build a model whose detections score well above the threshold."""
    model = model_of(task)
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_logits.bias", "cls_score.bias")):
            nn.init.zeros_(parameter)
        elif name.endswith(("cls_logits.weight", "cls_score.weight")):
            nn.init.normal_(parameter, std=0.05)
    return model


def scores(
    device: torch.device, name: str, folder: Path, *changes: str, ranks: Ranks | None = None
) -> dict[str, float]:
    task = task_on(device, name, folder, *changes, ranks=ranks)
    train = task._train
    model = awake(task).to(device)
    if train.channels_last:
        model.to(memory_format=torch.channels_last)
    return evaluate(task, model, device, train.precision, with_predictions=True).metrics


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_those_of_the_cpu(name: str, device: torch.device, tmp_path: Path) -> None:
    found, wanted = scores(device, name, tmp_path), scores(CPU, name, tmp_path)
    assert found.keys() == wanted.keys()
    assert found == pytest.approx(wanted, rel=CLOSE[name], abs=CLOSE[name] / 2, nan_ok=True)


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("changes", [(), ("train.precision=bf16", "train.channels_last=true")], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["classification", "retinanet"])
def test_scores_do_not_depend_on_the_batches_of_training(
    name: str, changes: tuple[str, ...], device: torch.device, tmp_path: Path
) -> None:
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False):
        assert scores(device, name, tmp_path, *changes) == scores(
            device, name, tmp_path, *changes, "train.batch_size=8"
        )


class Share(Ranks):
    """One of two simulated ranks. Rank 1 adds the tensors that rank 0 has stored."""

    left: ClassVar[list[Tensor]] = []

    def sum_(self, tensor: Tensor) -> Tensor:
        self.left.append(tensor.clone())
        return tensor.copy_(sum(self.left)) if self.rank == 1 else tensor


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("changes", [(), ("train.precision=bf16", "train.channels_last=true")], ids=["fp32", "bf16"])
def test_scores_of_two_ranks_equal_those_of_one(
    changes: tuple[str, ...], device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("w2skd.data.feeds.EVALUATION_BATCH", 7)  # six batches; the last is filled up
    monkeypatch.setattr(Share, "left", [])
    whole = score_alone(device, tmp_path, Ranks(), *changes)
    score_alone(device, tmp_path, Share(rank=0, world=2), *changes)
    assert score_alone(device, tmp_path, Share(rank=1, world=2), *changes) == whole


def score_alone(device: torch.device, folder: Path, ranks: Ranks, *changes: str) -> dict[str, float]:
    task = task_on(device, "classification", folder, *changes, ranks=ranks)
    model = awake(task).to(device, memory_format=torch.channels_last if task._train.channels_last else None)
    return evaluate(task, model, device, task._train.precision).metrics


@pytest.mark.parametrize("name", ["retinanet", "diffusion"])
def test_pictures_can_be_drawn_from_tensors_on_the_device(name: str, device: torch.device, tmp_path: Path) -> None:
    task = task_on(device, name, tmp_path)
    model = awake(task).to(device)
    evaluation = evaluate(task, model, device, "fp32", with_predictions=True)
    model.eval()
    for path in evaluation.pictures(tmp_path, 2):
        assert path.stat().st_size > 0
    assert len(task.preview().captions) > 0
