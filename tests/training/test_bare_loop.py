"""The engine computes the same as a bare distillation loop. `benchmarks/peers.py` relies on this."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

STEPS = 20


@pytest.fixture
def contenders(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    from contenders import bare, setting, stage, w2skd_engine

    return {"bare": bare.BareLoop, "engine": w2skd_engine.W2skdEngine, "Setting": setting.Setting, "stage": stage}


def weights_after(contender_type, setting):
    contender = contender_type(setting)
    contender.run(STEPS)
    return torch.nn.utils.parameters_to_vector(contender.student.parameters()).detach()


def test_engine_and_bare_loop_have_equal_weights_after_distilling_for_20_steps(contenders, tmp_path):
    setting = contenders["Setting"](
        "small_cnn_weak", "small_cnn_weak", str(tmp_path), classes=10, size_px=16, batch_size=8, log_every=STEPS
    )
    contenders["stage"].write_weights(setting)
    engine, bare = (weights_after(contenders[name], setting) for name in ("engine", "bare"))
    torch.testing.assert_close(engine, bare, rtol=0, atol=1e-5)
    other = weights_after(contenders["bare"], replace(setting, temperature=3.0))
    assert (other - bare).abs().max() > 1e-3, "20 steps are too few to notice another loss"
