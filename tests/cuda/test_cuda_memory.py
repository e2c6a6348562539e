"""The end of distillation frees the teacher's memory."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from small import engine_on
from torch import nn

from w2skd.method.schedule import DistillSchedule
from w2skd.records.rows import EventRow

pytestmark = pytest.mark.cuda

EXTRA = 4_000_000
"""Number of parameters (16 MB) that make the teacher larger than everything else."""


def allocated(device: torch.device) -> int:
    gc.collect()
    return torch.cuda.memory_allocated() if device.type == "cuda" else 0


def test_the_switch_frees_the_teacher(device: torch.device, tmp_path: Path) -> None:
    engine = engine_on(device, "classification", tmp_path, "train.steps=6", "train.log_every=1")
    engine.schedule = DistillSchedule(weight=1.0, warmup_steps=0, hold_steps=3, decay_steps=0)
    engine.teacher.model.register_parameter("extra", nn.Parameter(torch.zeros(EXTRA, device=device), False))
    model, sizes = weakref.ref(engine.teacher.model), {}
    for row in engine.train():
        if isinstance(row, EventRow) and row.name == "distillation_off":
            assert engine.step == 3
        sizes[engine.step] = allocated(device)
    assert engine.teacher is None
    assert model() is None
    if device.type == "cuda":
        assert sizes[2] - sizes[4] >= 4 * EXTRA
        assert sizes[6] <= sizes[4] + 2**22
