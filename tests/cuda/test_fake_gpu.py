"""Steps on a fake GPU: torch checks devices and shapes of all operations without computing anything.

It refuses operations on tensors of two devices, and operations whose result the host would wait for. These tests
therefore find on a CPU most of the code that would fail or wait on a GPU, except in the backward pass and in autocast.
Each test runs in its own process, because torch may crash after several modes of this kind.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from known import build_task
from processes import run_ranks, values
from small import ENDLESS, recipe_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from w2skd.data.sources import load_image_data
from w2skd.method.schedule import DistillSchedule
from w2skd.method.teacher import FrozenTeacher
from w2skd.platform.ranks import Ranks
from w2skd.tasks.base import Role
from w2skd.tasks.diffusion.noise_schedule import NoiseSchedule
from w2skd.training.engine import Distillation, Engine
from w2skd.training.process import Process

pytestmark = pytest.mark.cuda

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


class Uploads(TorchDispatchMode):
    """Lists copies to the GPU for which the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        answer = func(*args, **kwargs)
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            source = args[0] if func.overloadpacket is torch.ops.aten._to_copy else args[1]
            if (source.device.type, answer.device.type) == ("cpu", "cuda") and not kwargs.get("non_blocking"):
                self.found.append(f"{func} of {tuple(source.shape)}")
        return answer


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Allow tensors on a GPU inside the block, and build modules there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "to", lambda self, *_, **__: self)  # parameters of this kind cannot be moved
        patch.setattr(Tensor, "pin_memory", lambda self: self)
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield


@pytest.mark.skipif(torch.cuda.is_available(), reason="the other CUDA tests use the real GPU")
@pytest.mark.parametrize("name", ["classification", pytest.param("diffusion", marks=pytest.mark.slow)])
def test_distilled_steps_neither_fail_nor_wait(name: str, tmp_path: Path) -> None:
    values(run_ranks(take_steps, name, tmp_path, world=1, timeout_s=300))


def take_steps(_: Ranks, name: str, folder: Path) -> None:
    changes = ["train.optimizer={name: adamw, lr: 0.01}", "train.clip_grad_norm=1.0", "train.ema={decay: 0.5}"]
    if name == "classification":
        changes += [
            "data.augment=[crop, flip, cutout]",
            "data.mixup=0.2",
            "data.cutmix=1.0",
            "loss.label_smoothing=0.1",
        ]
    recipe = recipe_of(name, folder, *changes, *ENDLESS)
    task = build_task(recipe, train=recipe.train, seed=0, device=CPU, ranks=Ranks())
    load_image_data(recipe.data)  # real images, kept for the fake feed
    task._device = task._feeds._device = task._feeds._normalize.device = GPU
    with fake_gpu():
        with torch.device(GPU):
            student, teacher = task.build_model(Role.STUDENT), task.build_model(Role.TEACHER)
        if name == "diffusion":
            task._schedule = NoiseSchedule(recipe.diffusion, GPU)
        schedule = DistillSchedule(weight=1.0, warmup_steps=0, hold_steps=99, decay_steps=0)
        distillation = Distillation(FrozenTeacher(teacher, device=GPU), schedule)
        engine = Engine(task, student, train=recipe.train, seed=0, process=Process(GPU), distillation=distillation)

        def backward(loss: Tensor) -> None:
            assert (loss.device, loss.shape, loss.dtype) == (GPU, (), torch.float32)
            for parameter in engine._parameters:
                parameter.grad = torch.empty_like(parameter)

        Tensor.backward = backward
        batches = task.train_batches(0)
        engine._take_step(batches)
        with Uploads() as uploads:
            for _ in range(2):
                engine._take_step(batches)
        assert uploads.found == []
        assert engine.loss_scale._good_steps.device == GPU
        check_the_fake_gpu()


def check_the_fake_gpu() -> None:
    here = torch.ones(3, device=GPU)
    with pytest.raises(RuntimeError, match=r"same device|different devices"):
        here + torch.ones(3)
    with pytest.raises(Exception, match="_local_scalar_dense"):
        here.sum().item()
    with Uploads() as uploads:
        torch.ones(3).to(GPU, non_blocking=True)
        assert uploads.found == []
        torch.ones(3).to(GPU)
    assert len(uploads.found) == 1
