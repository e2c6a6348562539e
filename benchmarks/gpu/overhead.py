"""Overhead of the engine on a GPU: bare loop, baseline, distilled step and step after the switch, for each task.

PYTHONPATH=benchmarks python benchmarks/gpu/overhead.py --out FILE [--tiny]
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from results import Results, read_options
from timing import workloads
from timing.alternating import Rounds
from timing.training import BareLoop, SteppedEngine, time_steps, train_values

from w2skd.models.measure import counted_flops
from w2skd.models.modes import in_train_mode

BF16_PEAK = {"H100": 989e12, "H200": 989e12, "GH200": 989e12, "B200": 2250e12, "A100": 312e12}
"""Dense bf16 FLOP/s by the name of the card, from NVIDIA's data sheets."""

HOST_LIMIT_US = 200


@dataclass(frozen=True)
class Case:
    """One pair of models to measure.

    Attributes:
        name: name in the results.
        task: the task.
        models: names of the teacher and the student.
        batch_size: examples per step.
        size_px: side of the images.
        steps: steps per block and per log row.
        launches_dominate: whether a step is so short that the host's launches of kernels determine its time.
        train: changes of the ``train`` section.
        compile_teacher: ``teacher.compile``.
    """

    name: str
    task: Literal["classification", "detection", "diffusion"]
    models: tuple[str, str]
    batch_size: int
    size_px: int
    steps: int = 25
    launches_dominate: bool = False
    train: dict[str, Any] = field(default_factory=dict)
    compile_teacher: Any = False


_SMALL = ("cifar_resnet8", "cifar_resnet20")
_CIFAR = ("cifar_resnet20", "cifar_resnet56")
_RESNETS = ("torchvision:resnet18", "torchvision:resnet50")
_GRAPHS = "reduce-overhead"

FULL = (
    Case("resnet20_batch32", "classification", _SMALL, 32, 32, steps=50, launches_dominate=True),
    Case("resnet56_cifar", "classification", _CIFAR, 128, 32, steps=50, launches_dominate=True),
    Case("resnet18_cifar", "classification", ("cifar_resnet56", "torchvision:resnet18"), 512, 32),
    Case("resnet50_224px", "classification", _RESNETS, 128, 224, steps=10),
    Case("retinanet_r50_800px", "detection", ("retinanet_resnet34", "retinanet_resnet50"), 8, 800, steps=5),
    Case("unet_nc128", "diffusion", ("unet_nc64_rb2", "unet_nc128_rb3"), 128, 32, steps=5),
    Case("resnet56_cifar_compiled", "classification", _CIFAR, 128, 32, steps=50, train={"compile": True}),
    Case("resnet20_graphs", "classification", _SMALL, 128, 32, 50, train={"compile": _GRAPHS}, compile_teacher=_GRAPHS),
)
TINY = (
    Case("resnet8_batch8", "classification", ("small_cnn_weak", "cifar_resnet8"), 8, 16, steps=2),
    Case("retinanet_slim", "detection", ("retinanet_slim", "retinanet_slim"), 1, 64, steps=1),
    Case("unet_mini", "diffusion", ("unet_mini_nc16_rb1", "unet_mini_nc32_rb2"), 2, 16, steps=1),
)


def build(case: Case, options: argparse.Namespace) -> workloads.Workload:
    """Build models and batches of a case."""
    given = argparse.Namespace(
        batch_size=case.batch_size, steps=case.steps, device=options.device, precision=options.precision, compile=False
    )
    train = {**train_values(given), **case.train}
    if case.task == "diffusion":
        train["optimizer"] = {"name": "adamw", "lr": 1e-4}
    extra = {"compile_teacher": case.compile_teacher} if case.compile_teacher else {}
    workload: workloads.Workload = getattr(workloads, case.task)(
        case.models, train, options.device, size_px=case.size_px, **extra
    )
    return workload


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Return the step times, ratios, rate and memory of one case."""
    workload = build(case, options)
    turns = time_steps(workload, steps=case.steps, rounds=options.rounds, builds=1)
    per_step = {name: turns.seconds(name) / case.steps for name in turns.wall}
    flops = 3 * _forward_flops(workload) * case.batch_size
    peak = next((value for name, value in BF16_PEAK.items() if name in _card(options.device)), None)
    return {
        "models": case.models,
        "batch_size": case.batch_size,
        "size_px": case.size_px,
        "train": case.train,
        "step_ms": {name: round(1e3 * seconds, 4) for name, seconds in per_step.items()},
        "ratios": _ratios(turns),
        "host_us_over_bare": round(1e6 * (per_step["baseline"] - per_step["bare"]), 1),
        "host_us_limit": HOST_LIMIT_US if case.launches_dominate else None,
        "examples_per_s": round(case.batch_size / per_step["baseline"], 1),
        "share_of_bf16_peak": None if peak is None else round(flops / per_step["baseline"] / peak, 4),
        "peak_memory_mib": _peak_memory(workload, case.steps) if options.device == "cuda" else None,
    }


def _ratios(turns: Rounds) -> dict[str, dict[str, float]]:
    return {
        "engine_over_bare": turns.ratio("baseline", "bare").inverse.as_dict(),
        "distilled_over_student_and_teacher": turns.ratio("distilled", "baseline", "teacher").as_dict(),
        "after_the_switch_over_baseline": turns.ratio("after the switch", "baseline").inverse.as_dict(),
    }


def _forward_flops(workload: workloads.Workload) -> int:
    """Count the FLOPs of a student's forward pass per example."""
    task, student = workload.task(), workload.student()
    batch = next(task.train_batches(0))
    with in_train_mode(student):
        return counted_flops(lambda: task.losses(student, None, batch)) // len(batch)


def _peak_memory(workload: workloads.Workload, steps: int) -> dict[str, float]:
    """Return the peak of allocated memory in MiB while each kind of step runs alone."""
    kinds: dict[str, Callable[[], Callable[[], object]]] = {
        "bare": lambda: BareLoop(workload, steps),
        "baseline": lambda: SteppedEngine(workload),
        "distilled": lambda: SteppedEngine(workload, 10**9),
    }
    peaks = {}
    for name, build in kinds.items():
        torch.cuda.empty_cache()
        block = build()
        torch.cuda.reset_peak_memory_stats()
        block()
        peaks[name] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        del block
    return peaks


def _card(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def main() -> None:
    options = read_options(__doc__)
    options.rounds = 3 if options.tiny else 9
    torch.set_num_threads(1)
    cases: Sequence[Case] = TINY if options.tiny else FULL
    if options.tiny:
        for case in FULL:
            build(case, options)  # checks the recipe; no model is built
    results = Results(options.out, device=_card(options.device), torch=torch.__version__, precision=options.precision)
    for case in cases:
        try:
            measured = measure(case, options)
        except Exception as error:  # measure the other cases all the same
            results.fail(case.name, error)
            continue
        results.add(case.name, measured)
        ratio = measured["ratios"]["engine_over_bare"]["median"]
        print(f"{case.name}: engine / bare {ratio:.3f}, {measured['host_us_over_bare']:.0f} us over bare", flush=True)


if __name__ == "__main__":
    main()
