"""CUDA graphs of student and teacher: the same losses, and a switch in the middle of a run."""

import gc
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small import HARD, engine_on, state_of, steps

from w2skd.method.schedule import DistillSchedule

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.needs_gpu(reason="records CUDA graphs"),
    pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="Triton needs a C compiler"),
]

GRAPHS = ("train.compile=reduce-overhead", "teacher.compile=reduce-overhead")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    """Free the pool of the graphs, which outlives its modules."""
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("distilled", [True, False])
def test_losses_and_weights_are_those_of_a_run_without_graphs(
    distilled: bool, device: torch.device, tmp_path: Path
) -> None:
    """With several micro-batches per step, each of which overwrites the outputs of the one before."""
    plain, recorded = (
        engine_on(device, "classification", tmp_path, *HARD, *settings, distilled=distilled)
        for settings in ((), GRAPHS)
    )
    for _ in range(3):  # the first steps record, later ones replay
        wanted = steps(plain, 4)
        assert steps(recorded, 4) == pytest.approx(wanted, rel=1e-3)
    for name, value in state_of(plain.student).items():
        torch.testing.assert_close(state_of(recorded.student)[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_training_continues_after_the_switch(device: torch.device, tmp_path: Path) -> None:
    engines = []
    for settings in ((), GRAPHS):
        engine = engine_on(device, "classification", tmp_path, "train.steps=12", "train.log_every=1", *settings)
        engine.schedule = DistillSchedule(weight=1.0, warmup_steps=0, hold_steps=6, decay_steps=0)
        model = weakref.ref(engine.teacher.model)
        list(engine.train())
        gc.collect()
        assert engine.teacher is None
        assert model() is None
        engines.append(engine)
    for name, value in state_of(engines[0].student).items():
        torch.testing.assert_close(state_of(engines[1].student)[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_a_compiled_teacher_frees_its_weights(device: torch.device, tmp_path: Path) -> None:
    engine = engine_on(device, "classification", tmp_path, "train.steps=6", "train.log_every=1", "teacher.compile=true")
    engine.schedule = DistillSchedule(weight=1.0, warmup_steps=0, hold_steps=3, decay_steps=0)
    model = weakref.ref(engine.teacher.model)
    list(engine.train())
    gc.collect()
    assert model() is None
