"""The collectives of a run on NCCL (and gloo, for tensors on the CPU), in a group of one process.

`Ranks` with a world of two makes the code take the path of several ranks, while the process group has a single rank:
NCCL refuses two ranks on one GPU.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_ranks, values
from small import model_of, task_on
from torch import nn

from w2skd.platform.ranks import Ranks, process_group
from w2skd.training.network import Network

pytestmark = pytest.mark.cuda

PAIR = Ranks(rank=0, world=2)


def collectives(_: Ranks, name: str) -> dict[str, Any]:
    device = torch.device(name)
    with process_group(PAIR, device):
        backends = dist.get_backend_config()
        here, host = torch.full((3,), 2.0, device=device), torch.ones(2)
        counted = torch.full((2,), 0.1, dtype=torch.float64, device=device)
        norm = nn.BatchNorm1d(2).to(device)
        norm.running_mean.fill_(3.0)
        norm.num_batches_tracked.fill_(7)
        PAIR.average_buffers_([norm])
        with torch.inference_mode():  # as an evaluation does
            inside = PAIR.sum_(torch.ones(2, device=device)).tolist()
        return {
            "backends": backends,
            "sums": [PAIR.sum_(each).tolist() for each in (here, host, counted)],
            "inside": inside,
            "any": [PAIR.any(flag) for flag in (True, False)],
            "decided": PAIR.decide({"best": 0.5}),
            "gathered": PAIR.gather("mine")[0],
            "statistics": (norm.running_mean.tolist(), norm.num_batches_tracked.item()),
        }


def test_collectives(device: torch.device) -> None:
    [found] = values(run_ranks(collectives, device.type, world=1, timeout_s=60))
    assert ("nccl" in found.pop("backends")) == (device.type == "cuda")
    assert found == {
        "sums": [[2.0] * 3, [1.0] * 2, [0.1] * 2],
        "inside": [1.0, 1.0],
        "any": [True, False],
        "decided": {"best": 0.5},
        "gathered": "mine",
        "statistics": ([1.5, 1.5], 7),  # a sum over one rank, divided by two
    }


def gradients(_: Ranks, name: str, folder: Path) -> float:
    """Return the largest difference between gradients with and without DDP, accumulated over two micro-batches."""
    device = torch.device(name)
    task = task_on(device, "classification", folder, "train.accumulate=2", "train.channels_last=true")
    with process_group(PAIR, device):
        found = []
        for ranks in (PAIR, Ranks()):
            student = model_of(task).to(device).to(memory_format=torch.channels_last)
            network, batches = Network(student, ranks=ranks, compiled=False), task.train_batches(0)
            for last in (False, True):
                with network.sync_gradients(last=last):
                    sum(task.losses(network.module, None, next(batches)).task.values()).backward()
            found.append([parameter.grad for parameter in student.parameters()])
            for parameter in student.parameters():
                assert parameter.grad.stride() == parameter.stride(), "a fused optimizer refuses other strides"
        return max(float((ours - theirs).abs().max()) for ours, theirs in zip(*found, strict=True))


def test_gradients_of_a_data_parallel_student(device: torch.device, tmp_path: Path) -> None:
    [difference] = values(run_ranks(gradients, device.type, tmp_path, world=1, timeout_s=60))
    assert difference < 1e-5


def fails(_: Ranks, name: str) -> None:
    with process_group(PAIR, torch.device(name)):
        PAIR.sum_(torch.ones(1, device=name))
        raise ValueError("a bug")


def test_a_failure_ends_the_group(device: torch.device) -> None:
    [outcome] = run_ranks(fails, device.type, world=1, timeout_s=60)
    assert isinstance(outcome.error, ValueError), outcome
    assert outcome.exit_code == 0
