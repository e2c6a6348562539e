"""Every loss and its gradient on the device against float64 on the CPU."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small import CPU, NAMES, model_of, task_on
from torch import Tensor
from torch.nn import functional

from w2skd.method.losses import distillation_kl
from w2skd.method.teacher import FrozenTeacher
from w2skd.tasks.base import Losses, Role
from w2skd.tasks.detection.losses import dense_distillation, region_distillation
from w2skd.tasks.diffusion.loss import weighted_squared_error

pytestmark = pytest.mark.cuda

FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}
"""Tolerance for rounding of sums over some hundred numbers around 1."""

NETWORK = {"rtol": 1e-3, "atol": 1e-4}
"""Tolerance for rounding of a whole network, whose layers sum in a different order on each device."""


CHOSEN = {"rtol": 0.1, "atol": 1e-3}
"""Rounding may select other proposals of an untrained Faster R-CNN, because all have about the same score."""


def draw(*shape: int, seed: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(device: torch.device, loss: Callable[..., Tensor], reference: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Compare the loss and its gradient with respect to the first input."""
    exact = inputs[0].clone().requires_grad_()
    here = inputs[0].float().to(device).requires_grad_()
    wanted = reference(exact, *inputs[1:])
    found = loss(
        here, *(each.float().to(device) if each.is_floating_point() else each.to(device) for each in inputs[1:])
    )
    assert (found.device.type, found.dtype) == (device.type, torch.float32)
    torch.testing.assert_close(found.cpu().double(), wanted, **FLOAT32)
    wanted.backward()
    found.backward()
    torch.testing.assert_close(here.grad.cpu().double(), exact.grad, **FLOAT32)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl(temperature: float, device: torch.device) -> None:
    def reference(student: Tensor, teacher: Tensor) -> Tensor:
        p, q = (torch.softmax(each / temperature, dim=1) for each in (teacher, student))
        return temperature**2 * (p * (p.log() - q.log())).sum() / len(p)

    check(device, lambda s, t: distillation_kl(s, t, temperature), reference, draw(8, 10, seed=0), draw(8, 10, seed=1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing: float, device: torch.device) -> None:
    labels = torch.arange(8) % 10

    def reference(logits: Tensor, labels: Tensor) -> Tensor:
        wanted = functional.one_hot(labels, 10) * (1 - smoothing) + smoothing / 10
        return -(wanted * torch.log_softmax(logits, dim=1)).sum(dim=1).mean()

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, label_smoothing=smoothing)

    check(device, loss, reference, draw(8, 10, seed=2), labels)


def smooth_l1(student: Tensor, teacher: Tensor) -> Tensor:
    away = (student - teacher).abs()
    return torch.where(away < 1 / 9, 4.5 * away.square(), away - 1 / 18).sum(dim=-1)


@pytest.mark.parametrize("part", ["class", "box"])
def test_dense_distillation(part: str, device: torch.device) -> None:
    logits, deltas = (draw(2, 30, 5, seed=3), draw(2, 30, 5, seed=4)), (draw(2, 30, 4, seed=5), draw(2, 30, 4, seed=6))
    weights = logits[1].sigmoid().amax(dim=2).square()
    total = weights.sum().clamp(min=2)

    def of_class(student: Tensor, teacher: Tensor) -> Tensor:
        p, q = teacher.sigmoid(), student.sigmoid()
        divergence = p * (p.log() - q.log()) + (1 - p) * (torch.log1p(-p) - torch.log1p(-q))
        return (weights * divergence.sum(dim=2)).sum() / total

    def of_boxes(student: Tensor, teacher: Tensor) -> Tensor:
        return (weights * smooth_l1(student, teacher)).sum() / total

    def on(value: Tensor) -> Tensor:
        return value.float().to(device)

    if part == "class":
        check(device, lambda s, t: dense_distillation(s, t, *map(on, deltas))["class"], of_class, *logits)
    else:
        check(device, lambda s, t: dense_distillation(*map(on, logits), s, t)["box"], of_boxes, *deltas)


def test_region_distillation(device: torch.device) -> None:
    logits, deltas = (draw(20, 6, seed=7), draw(20, 6, seed=8)), (draw(20, 6, 4, seed=9), draw(20, 6, 4, seed=10))
    likeliest, rows = logits[1][:, 1:].argmax(dim=1) + 1, torch.arange(20)
    foreground = 1 - logits[1].softmax(dim=1)[:, 0]

    def of_boxes(student: Tensor, teacher: Tensor) -> Tensor:
        return (foreground * smooth_l1(student[rows, likeliest], teacher[rows, likeliest])).sum() / 20

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return region_distillation(*(each.float().to(device) for each in logits), student, teacher)["box"]

    check(device, loss, of_boxes, *deltas)
    none = torch.empty(0, 6, device=device), torch.empty(0, 6, 4, device=device)
    empty = region_distillation(none[0], none[0], none[1], none[1])
    assert {name: value.item() for name, value in empty.items()} == {"class": 0.0, "box": 0.0}


def test_weighted_squared_error(device: torch.device) -> None:
    weights = draw(4, seed=11).abs()

    def reference(predicted: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        return (weights * (predicted - target).square().mean(dim=(1, 2, 3))).mean()

    check(device, weighted_squared_error, reference, draw(4, 3, 8, 8, seed=12), draw(4, 3, 8, 8, seed=13), weights)


# The losses of whole tasks: network, targets and distillation


RANDINT = torch.randint


class SameDraws:
    """Replaces torch's generators, whose numbers differ between devices."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def randint(self, high: int, size: tuple[int, ...], *, device: torch.device) -> Tensor:
        return RANDINT(high, size, generator=self.generator).to(device)

    def randn_like(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator).to(like.device)

    def randperm(self, count: int, *, device: torch.device) -> Tensor:
        return torch.arange(count).to(device)


def losses_on(device: torch.device, name: str, folder: Path) -> tuple[Losses, Mapping[str, Tensor]]:
    """Return the losses of the first batch and the gradients of all parameters, on the CPU."""
    task = task_on(device, name, folder, *CONFIDENT.get(name, ()))
    student, weak = model_of(task).to(device), model_of(task, Role.TEACHER)
    batch = next(task.train_batches(0))
    found = task.losses(student.train(), FrozenTeacher(weak, device=device), batch)
    (sum(found.task.values()) + sum(found.distill.values())).backward()
    gradients = {each: value.grad.cpu() for each, value in student.named_parameters() if value.grad is not None}
    return found, gradients


CONFIDENT = {"classification": ("loss.label_smoothing=0.1", "data.cutmix=1.0", "data.augment=[crop, flip]")}


@pytest.mark.parametrize("name", NAMES)
def test_a_tasks_losses_and_gradients(
    name: str, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_same_draws(where: torch.device) -> Any:
        draws = SameDraws()
        with monkeypatch.context() as patch:
            for function in ("randint", "randn_like", "randperm"):
                patch.setattr(torch, function, getattr(draws, function))
            return losses_on(where, name, tmp_path)

    (found, gradients), (wanted, exact) = with_same_draws(device), with_same_draws(CPU)
    tolerance = CHOSEN if name == "fasterrcnn" else NETWORK
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for part, value in ours.items():
            assert value.device.type == device.type
            torch.testing.assert_close(value.detach().cpu(), theirs[part].detach(), **tolerance)
    assert gradients.keys() == exact.keys()
    assert all(bool(each.isfinite().all()) for each in gradients.values())
    if name == "fasterrcnn":
        return
    largest = max(float(each.abs().max()) for each in exact.values())
    for each, gradient in gradients.items():
        difference = float((gradient - exact[each]).abs().max()) / largest
        assert difference < 1e-3, (each, difference)
