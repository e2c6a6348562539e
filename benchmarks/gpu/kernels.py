"""The most expensive kernels of a distilled step for each task, and the memory of CUDA graphs after the switch.

PYTHONPATH=benchmarks python benchmarks/gpu/kernels.py --out FILE [--tiny]
"""

import argparse
import time
from typing import Any

import torch
from overhead import FULL, TINY, Case, build
from results import Results, read_options
from timing.training import NEVER, SteppedEngine
from torch.profiler import ProfilerActivity, profile

SHOWN = 10
PROFILED = ("resnet56_cifar", "resnet50_224px", "retinanet_r50_800px", "unet_nc128")


def most_expensive(case: Case, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Profile one block of distilled steps and return its most expensive kernels (operators on a CPU)."""
    block = SteppedEngine(build(case, options), NEVER)
    block()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if options.device == "cuda" else [])]
    with profile(activities=activities) as profiled:
        block()
    on_gpu = options.device == "cuda"

    def microseconds(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)

    events = sorted(profiled.key_averages(), key=microseconds, reverse=True)
    total = sum(map(microseconds, events))
    return [
        {
            "name": event.key[:120],
            "calls_per_step": event.count / case.steps,
            "us_per_step": round(microseconds(event) / case.steps, 1),
            "share": round(microseconds(event) / total, 4),
        }
        for event in events[:SHOWN]
    ]


def graphs_after_the_switch(case: Case, options: argparse.Namespace) -> dict[str, float]:
    """Measure the memory of CUDA graphs around the switch, and the first steps after it."""
    block = SteppedEngine(build(case, options), case.steps)

    def timed() -> float:
        began = time.perf_counter()
        block()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    def reserved() -> float:
        return round(torch.cuda.memory_reserved() / 2**20, 1)

    first = timed()
    distilled = reserved()
    after = timed()
    steady = timed()
    kept = reserved()
    torch.compiler.reset()
    torch.cuda.empty_cache()
    return {
        "first_block_s": round(first, 3),
        "first_block_after_the_switch_s": round(after, 3),
        "later_block_s": round(steady, 3),
        "reserved_mib_while_distilling": distilled,
        "reserved_mib_after_the_switch": kept,
        "reserved_mib_after_reset": reserved(),
    }


def main() -> None:
    options = read_options(__doc__)
    torch.set_num_threads(1)
    results = Results(options.out, torch=torch.__version__, precision=options.precision)
    for case in TINY if options.tiny else [case for case in FULL if case.name in PROFILED]:
        try:
            results.add(case.name, most_expensive(case, options))
        except Exception as error:  # measure the other cases all the same
            results.fail(case.name, error)
    if options.device == "cuda":
        try:
            case = next(case for case in FULL if case.name == "resnet20_graphs")
            results.add("graphs_after_the_switch", graphs_after_the_switch(case, options))
        except Exception as error:  # a failure is a result, too, and the others are written already
            results.fail("graphs_after_the_switch", error)


if __name__ == "__main__":
    main()
