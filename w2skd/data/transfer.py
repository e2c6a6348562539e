"""Copies from the host to the training device."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to the device; on CUDA, the host does not wait for the copy.

    A copy from ordinary (pageable) memory would block the host until the device has finished all earlier work.
    """
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
