"""Steps on the device against steps on the CPU: the average of weights, channels-last, accumulation."""

from pathlib import Path

import pytest
import torch
from small import CPU, NAMES, ONE_SHAPE, engine_on, state_of, steps
from waiting import no_waiting

pytestmark = pytest.mark.cuda

CLOSE = {"rtol": 2e-3, "atol": 5e-4}
"""Tolerance for rounding, which four steps amplify."""


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "optimizer", ["{name: sgd, lr: 0.01, momentum: 0.9, nesterov: true}", "{name: adamw, lr: 1.0e-3}"]
)
def test_weights_after_some_steps(optimizer: str, accumulate: int, device: torch.device, tmp_path: Path) -> None:
    changes = (f"train.optimizer={optimizer}", f"train.accumulate={accumulate}", "train.clip_grad_norm=1.0")
    found, wanted = (engine_on(where, "classification", tmp_path, *changes) for where in (device, CPU))
    assert steps(found, 4) == pytest.approx(steps(wanted, 4), rel=2e-3)
    exact = state_of(wanted.student)
    for name, value in state_of(found.student).items():
        torch.testing.assert_close(value, exact[name], **CLOSE)


@pytest.mark.parametrize("name", ONE_SHAPE)
def test_the_average_equals_a_float64_reference(name: str, device: torch.device, tmp_path: Path) -> None:
    engine = engine_on(device, name, tmp_path, "train.ema={decay: 0.7}")
    batches = engine.task.train_batches(0)
    mean: dict[str, torch.Tensor] = {}
    for step in range(5):
        engine._take_step(batches)
        for each, value in state_of(engine.student).items():
            inherits = step == 0 or not value.is_floating_point()
            mean[each] = value.double() if inherits else 0.7 * mean[each] + 0.3 * value.double()
    found = state_of(engine.average.module)
    assert {value.device.type for value in engine.average.module.state_dict().values()} == {device.type}
    for each, value in found.items():
        torch.testing.assert_close(value.double(), mean[each], rtol=1e-5, atol=1e-6)
    with no_waiting(device, [engine.average.n_averaged]):
        engine.average.update_parameters(engine.student)


@pytest.mark.parametrize(("name", "precision"), [*((name, "fp32") for name in NAMES), ("classification", "bf16")])
def test_channels_last_changes_the_layout_and_not_the_losses(
    name: str, precision: str, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same noise for both: torch draws numbers in the order of the memory.
    monkeypatch.setattr(torch, "randn_like", lambda like: torch.randn(like.shape, device=like.device))
    last, first = (
        engine_on(device, name, tmp_path, f"train.channels_last={flag}", f"train.precision={precision}")
        for flag in ("true", "false")
    )
    batch = next(last.task.train_batches(0))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    for model in (last.student, last.teacher.model):
        filters = [value for value in model.parameters() if value.ndim == 4]
        assert filters
        assert all(value.is_contiguous(memory_format=torch.channels_last) for value in filters)
    found, wanted = steps(last, 1), steps(first, 1)
    assert all(
        value.is_contiguous(memory_format=torch.channels_last) for value in last.student.parameters() if value.ndim == 4
    )
    if name != "fasterrcnn":  # its proposals depend on rounding
        assert found == pytest.approx(wanted, rel=1e-3 if precision == "fp32" else 0.1, abs=1e-2)
