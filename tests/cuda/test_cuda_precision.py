"""Training in 16 bits is finite and close to float32, and an overflow only halves the loss scale."""

from pathlib import Path

import pytest
import torch
from small import NAMES, engine_on, state_of, steps
from tiny import assert_same_weights
from torch import Tensor

from w2skd.training import precision
from w2skd.training.engine import Engine
from w2skd.training.precision import LossScale

pytestmark = pytest.mark.cuda

CLOSE = {"bf16": 0.1, "fp16": 0.02}
"""Largest relative difference from float32 of a loss after two steps. bf16 has three digits, fp16 four."""


def weights_of(engine: Engine) -> dict[str, Tensor]:
    names = {name for name, _ in engine.student.named_parameters()}
    return {name: value for name, value in state_of(engine.student).items() if name in names}


def statistics_of(engine: Engine) -> dict[str, Tensor]:
    names = {name for name, value in engine.student.named_buffers() if value.is_floating_point()}
    return {name: value for name, value in state_of(engine.student).items() if name in names}


def moments_of(engine: Engine) -> dict[str, Tensor]:
    state = engine.optimizer.state_dict()["state"]
    return {f"{number}.{name}": value.cpu().clone() for number, each in state.items() for name, value in each.items()}


@pytest.mark.parametrize("number_format", ["bf16", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_losses_in_16_bits(name: str, number_format: str, device: torch.device, tmp_path: Path) -> None:
    engine = engine_on(device, name, tmp_path, f"train.precision={number_format}", "train.clip_grad_norm=1.0")
    before = state_of(engine.student)
    found = steps(engine, 2)
    assert engine.guard.report() == []
    assert engine.guard.rescaled_steps <= 1  # the first scale may be too high
    assert all(parameter.dtype is torch.float32 for parameter in engine.student.parameters())
    assert any(not torch.equal(value, before[each]) for each, value in state_of(engine.student).items())
    wanted = steps(engine_on(device, name, tmp_path, "train.clip_grad_norm=1.0"), 2)
    assert found.keys() == wanted.keys()
    assert found != wanted, "autocast has no effect"
    if name != "fasterrcnn":  # its proposals depend on rounding
        assert found == pytest.approx(wanted, rel=CLOSE[number_format], abs=CLOSE[number_format] / 10)


@pytest.mark.parametrize("optimizer", ["{name: sgd, lr: 0.01, momentum: 0.9}", "{name: adamw, lr: 0.01}"])
def test_an_overflow_changes_nothing_but_the_loss_scale(optimizer: str, device: torch.device, tmp_path: Path) -> None:
    engine = engine_on(device, "classification", tmp_path, "train.precision=fp16", f"train.optimizer={optimizer}")
    steps(engine, 1)
    engine.guard.report()
    before, moments = weights_of(engine), moments_of(engine)
    engine.loss_scale.value = torch.full((), 2.0**24, device=device)
    steps(engine, 1)
    assert engine.loss_scale.value.item() == 2.0**23
    assert engine.guard.report() == []
    assert engine.guard.rescaled_steps == 1
    assert_same_weights(weights_of(engine), before)
    assert_same_weights(moments_of(engine), moments)
    engine.loss_scale.value = torch.full((), 2.0**8, device=device)
    steps(engine, 1)
    assert not torch.equal(weights_of(engine)["head.weight"], before["head.weight"])
    assert engine.loss_scale.value.item() == 2.0**8


def test_a_non_finite_loss_suppresses_its_update(device: torch.device, tmp_path: Path) -> None:
    engine = engine_on(device, "classification", tmp_path)
    steps(engine, 1)
    engine.guard.report()
    before, statistics, original = weights_of(engine), statistics_of(engine), engine.task.losses

    def poisoned(*arguments: object) -> object:
        losses = original(*arguments)
        return losses._replace(task={name: value * torch.nan for name, value in losses.task.items()})

    engine.task.losses = poisoned
    steps(engine, 1)
    [bad] = engine.guard.report()
    assert bad.step == 1
    assert len(bad.ids) == engine.train_section.batch_size
    assert_same_weights(weights_of(engine), before)
    assert_same_weights(statistics_of(engine), statistics)


def test_the_loss_scale_doubles_after_good_steps(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "GROWTH_STEPS", 3)
    scale = LossScale(device, enabled=True)
    seen = []
    for found_inf in (0, 0, 0, 0, 1, 0, 0, 0):
        scale.update(torch.full((), float(found_inf), device=device))
        assert scale.value.device.type == device.type
        seen.append(scale.value.item() / 2**16)
    assert seen == [1, 1, 2, 2, 1, 1, 1, 2]
    again = LossScale(device, enabled=True)
    again.load_state_dict(scale.state_dict())
    assert again.state_dict() == scale.state_dict()
