"""The process of one contender. It reads commands from standard input and answers on standard output, in JSON lines.

    python -m contenders.worker NAME THREADS

Commands: ``build`` a contender, ``run`` steps, ``save`` the student, ``score`` it, measure ``memory``.
"""

import gc
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torchvision import transforms
from torchvision.datasets import ImageFolder

from contenders.processes import cpu_seconds, wait_until_idle
from contenders.setting import MEAN, STD, Contender, Setting

CONTENDERS = {
    "bare": ("contenders.bare", "BareLoop"),
    "torchdistill": ("contenders.torchdistill_box", "TorchdistillBox"),
    "timm": ("contenders.timm_task", "TimmTask"),
    "w2skd": ("contenders.w2skd_engine", "W2skdEngine"),
}
MIB = 2**20
SCORING_BATCH = 500


class Worker:
    """Builds and runs one contender at a time."""

    def __init__(self, name: str):
        module, kind = CONTENDERS[name]
        self._type = getattr(importlib.import_module(module), kind)
        self._setting: Setting | None = None
        self._contender: Contender | None = None
        self._resident = _status("VmRSS")
        self._tests: tuple[torch.Tensor, torch.Tensor] | None = None

    def build(self, **setting: Any) -> dict[str, Any]:
        self._contender, self._tests = None, None
        gc.collect()
        self._setting = Setting(**setting)
        torch.manual_seed(0)
        _forget_peak(self._setting.torch_device)
        began = time.perf_counter()
        self._contender = self._type(self._setting)
        return {"wall": time.perf_counter() - began}

    def run(self, steps: int, lead: int = 0) -> dict[str, Any]:
        """Take `lead` steps, which use up prefetched batches, and measure the next `steps` steps."""
        if lead:
            self._contender.run(lead)
        self._synchronize()
        began, cpu_began = time.perf_counter(), cpu_seconds()
        self._contender.run(steps)
        self._synchronize()
        wall, cpu = time.perf_counter() - began, cpu_seconds() - cpu_began
        wait_until_idle()
        return {"wall": wall, "cpu": cpu}

    def save(self, path: str) -> dict[str, Any]:
        state = {name: value.detach().cpu() for name, value in self._contender.student.state_dict().items()}
        torch.save(state, path)
        return {}

    def score(self) -> dict[str, Any]:
        """Return the student's top-1 accuracy on the test images."""
        if self._tests is None:
            normalize = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
            images, labels = zip(*ImageFolder(f"{self._setting.data}/test", normalize), strict=True)
            self._tests = torch.stack(images), torch.tensor(labels)
        student, device = self._contender.student.eval(), self._setting.torch_device
        with torch.inference_mode():
            guesses = torch.cat([student(part.to(device)).argmax(1) for part in self._tests[0].split(SCORING_BATCH)])
        student.train()
        return {"top1": float((guesses.cpu() == self._tests[1]).float().mean())}

    def memory(self) -> dict[str, Any]:
        """Return the peak memory since `build` in MiB: that of tensors on a GPU, else the growth since the imports."""
        if self._setting.torch_device.type == "cuda":
            return {"mib": torch.cuda.max_memory_allocated() / MIB}
        return {"mib": (_status("VmHWM") - self._resident) / MIB}

    def _synchronize(self) -> None:
        if self._setting.torch_device.type == "cuda":
            torch.cuda.synchronize()


def _status(key: str) -> int:
    """Return an entry of this process's memory status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak VmHWM to the present size


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print to standard output
    torch.set_num_threads(int(sys.argv[2]))
    torch.backends.cudnn.benchmark = True
    try:
        worker = Worker(sys.argv[1])
    except ImportError as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)
        return
    print(json.dumps({"torch": torch.__version__}), file=answers)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(worker, command.pop("do"))(**command)
        except Exception as error:  # the table must show any error of a contender
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)
            raise
        print(json.dumps(answer), file=answers)
    os._exit(0)  # data workers may still be blocked on their queues


if __name__ == "__main__":
    main()
