import math

import pytest
import torch
from torch import Tensor, nn

from w2skd.method.teacher import autocast
from w2skd.training import precision as module
from w2skd.training.precision import HIGHEST_SCALE, LossScale

CPU = torch.device("cpu")
GOOD, BAD = torch.tensor(0.0), torch.tensor(1.0)


def value(scale: LossScale) -> float:
    assert scale.value is not None
    return scale.value.item()


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_forward_passes_have_the_requested_precision(precision: str, dtype: torch.dtype) -> None:
    layer = nn.Linear(2, 2)
    with autocast(CPU, precision):
        assert layer(torch.ones(1, 2)).dtype == dtype
    assert layer.weight.dtype == torch.float32


def test_the_scale_equals_that_of_torchs_grad_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROWTH_STEPS", 3)
    ours, theirs = LossScale(CPU, enabled=True), torch.amp.GradScaler("cpu", growth_interval=3)
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], 0.0)
    seen = set()
    for bad in [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]:
        theirs.scale(weight.sum()).backward()
        weight.grad = torch.tensor([math.inf if bad else 1.0])
        theirs.step(optimizer)
        theirs.update()
        ours.update(torch.tensor(float(bad)))
        assert value(ours) == theirs.get_scale()
        seen.add(value(ours))
    assert len(seen) > 4


def test_the_scale_has_a_minimum_and_a_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    scale = LossScale(CPU, enabled=True)
    for _ in range(20):
        scale.update(BAD)
    assert value(scale) == 1.0
    monkeypatch.setattr(module, "GROWTH_STEPS", 1)
    for _ in range(30):
        scale.update(GOOD)
    assert value(scale) == HIGHEST_SCALE == 2**24


def test_small_gradients_survive_float16() -> None:
    def gradient(scale: LossScale) -> Tensor:
        weight = nn.Parameter(torch.ones(1))
        scale.scaled((weight.half() * 2e-8).float().sum() * 1e-3).backward()
        assert weight.grad is not None
        return scale.unscaled(weight.grad.norm())

    assert gradient(LossScale(CPU, enabled=False)) == 0
    assert gradient(LossScale(CPU, enabled=True)) > 0


def test_disabled_it_computes_nothing() -> None:
    scale, loss = LossScale(CPU, enabled=False), torch.ones(())
    scale.update(BAD)
    assert scale.value is None
    assert scale.scaled(loss) is loss
    assert scale.unscaled(loss) is loss
    assert scale.state_dict() is None


def test_the_value_is_never_changed_in_place() -> None:
    scale = LossScale(CPU, enabled=True)
    held = scale.value
    scale.update(BAD)
    assert held == 2**16
    assert value(scale) == 2**15


def test_a_resume_restores_scale_and_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROWTH_STEPS", 3)
    first, second = LossScale(CPU, enabled=True), LossScale(CPU, enabled=True)
    for found_inf in (BAD, GOOD, GOOD):
        first.update(found_inf)
    assert first.state_dict() == {"scale": 2.0**15, "good_steps": 2}
    second.load_state_dict(first.state_dict())
    second.update(GOOD)
    assert value(second) == 2**16


@pytest.mark.parametrize("enabled", [True, False])
def test_a_resume_without_a_saved_scale_starts_with_the_initial_one(enabled: bool) -> None:
    scale = LossScale(CPU, enabled=enabled)
    scale.load_state_dict(None)
    assert scale.value == (2**16 if enabled else None)
