"""The device of this process, and the machine around it."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from w2skd import __version__
from w2skd.errors import DeviceError
from w2skd.platform.ranks import Ranks


def open_device(name: str, ranks: Ranks) -> torch.device:
    """The device of this rank.

    Raises:
        DeviceError: it is not there; what is there is told.
    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"--device {name}: unknown; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if device.index is not None and ranks.world > 1:
            raise DeviceError(f"--device {name}: all {ranks.world} ranks would share it; use cuda, one GPU a rank")
        index = device.index if device.index is not None else ranks.local_rank
        if index >= gpus:
            raise DeviceError(
                f"--device {name}: there {'is no GPU' if not gpus else f'are GPUs 0 to {gpus - 1} only'} here"
            )
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    if device.type != "cpu":
        raise DeviceError(f"--device {name}: unknown; use auto, cpu, cuda or cuda:N")
    return device


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the CPU's and this device's generator: `torch.manual_seed` for the inside of a loop.

    That one reaches for all devices, and where CUDA is installed but not in use it takes 0.3 ms to note who called.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def describe_environment(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """Versions, device, threads and commit, for the run's records."""
    return {
        "w2skd": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cudnn.allow_tf32 and device.type == "cuda",
        "ranks": ranks.world,
        "commit": _commit(),
    }


def _processor() -> str:
    """The CPU's name where the system tells it, else the architecture; with the number of cores at hand."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    return f"{name}, {cores} cores"


def _commit() -> str | None:
    """The commit of w2skd's checkout, marked when it has changes; None when installed from a package."""
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
