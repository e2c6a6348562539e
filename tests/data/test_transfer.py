"""Copies to the device. On the CPU nothing is copied; tests/cuda tests copies to a GPU."""

import torch

from w2skd.data.transfer import to_device


def test_on_the_cpu_nothing_is_copied() -> None:
    tensor = torch.arange(3)
    assert to_device(tensor, torch.device("cpu")) is tensor
