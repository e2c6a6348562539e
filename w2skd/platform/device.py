"""The device of this process, and a description of its machine."""

import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from w2skd import __version__
from w2skd.errors import DeviceError
from w2skd.platform.memory import keep_freed_memory
from w2skd.platform.ranks import Ranks


def open_device(name: str, ranks: Ranks) -> torch.device:
    """Return the device of this rank. Make a GPU torch's current device; for the CPU, set up the allocator.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        ranks: this process among the ranks; with several, each takes the GPU of its local rank.

    Raises:
        DeviceError: the device is unknown or does not exist, or all ranks would share it.
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
            raise DeviceError(f"--device {name}: all {ranks.world} ranks would share it; use cuda for one GPU per rank")
        index = device.index if device.index is not None else ranks.local_rank
        if index >= gpus:
            available = f"only GPUs 0 to {gpus - 1}" if gpus else "no GPU"
            raise DeviceError(f"--device {name}: this machine has {available}")
        # Deterministic matrix products need it. torch reads it once per process, at the first product of any kind.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    if device.type != "cpu":
        raise DeviceError(f"--device {name}: unknown; use auto, cpu, cuda or cuda:N")
    keep_freed_memory()
    return device


@contextmanager
def float32_math(*, tf32: bool) -> Iterator[None]:
    """Allow or forbid TF32 in matrix products and convolutions of float32 inside the block, on GPUs that have it.

    By default, torch allows it for convolutions only.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    # Setting `allow_tf32` sets `fp32_precision`, too.
    before = matmul.fp32_precision == "tf32", _convolves_in_tf32()
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Restrict torch to kernels that repeat bit for bit inside the block."""
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark


def _convolves_in_tf32() -> bool:
    # Reading `allow_tf32` fails after `fp32_precision` was set, which plug-ins may do.
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined,no-any-return]


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the generators of the CPU and of one device: a `torch.manual_seed` that is fast enough for every step.

    `torch.manual_seed` seeds all devices and, if CUDA is installed but unused, takes 0.3 ms to record its caller.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def describe_environment(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """Return versions, device, threads and commit for the run's records."""
    return {
        "w2skd": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "tf32": device.type == "cuda" and _convolves_in_tf32(),
        "ranks": ranks.world,
        "commit": _commit(),
    }


def _processor() -> str:
    """Return the CPU's name, or the architecture if it is unknown, and the number of usable cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.*\S)", info.read_text() if info.exists() else "", re.MULTILINE)
    return f"{found[1] if found else platform.processor() or platform.machine()}, {cores} cores"


def _commit() -> str | None:
    """Return the commit of w2skd's checkout, marked ``-dirty`` if it has changes, or None outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
