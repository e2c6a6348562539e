"""A compiled student: the same losses, and one compilation per image size."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from small import engine_on, steps
from torch._dynamo.utils import counters

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize(
    ("name", "precision", "kernels"),
    [
        pytest.param(
            "classification", "fp32", True, marks=pytest.mark.needs_gpu(reason="compiles for a minute on a CPU")
        ),
        ("classification", "fp32", False),
        pytest.param("diffusion", "bf16", False, marks=pytest.mark.needs_gpu(reason="takes long on a CPU")),
    ],
)
def test_a_compiled_student(
    name: str, precision: str, kernels: bool, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compile with Inductor, which takes long, or run the traced graph with torch's own kernels."""
    if kernels and not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("Triton needs a C compiler")
    if not kernels:
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    changes = (f"train.precision={precision}", "train.channels_last=true")
    wanted = steps(engine_on(device, name, tmp_path, *changes), 3)
    torch._dynamo.reset()
    counters.clear()
    engine = engine_on(device, name, tmp_path, *changes, "train.compile=true")
    assert steps(engine, 3) == pytest.approx(wanted, rel=1e-3 if precision == "fp32" else 5e-2)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= 1
    list(engine._validate())
    steps(engine, 2)
    assert counters["stats"]["unique_graphs"] == graphs, "a validation or a later step compiled again"
