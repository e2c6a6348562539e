"""Random weights for Inception whose features still differ from image to image."""

from pathlib import Path

import torch
from torch import nn

from w2skd.tasks.diffusion.features import BareInception


def write_random_inception(path: Path) -> Path:
    """Write a state dict of torch-fidelity's Inception to a ``.pth`` file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = BareInception()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(network.state_dict(), path)
    return path
