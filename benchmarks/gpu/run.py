"""Run all parts of the GPU benchmark, each with its own time limit, and summarise the outcomes.

A part that exceeds its limit is stopped and keeps its measurements so far. A part that fails, is stopped or measures
nothing is reported as red, and the exit code is 1.

    python benchmarks/gpu/run.py --out DIR [--data DIR] [--parts correctness,overhead] [--tiny]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BENCHMARKS = HERE.parent
GRACE_S = 5


@dataclass(frozen=True)
class Part:
    """One part of the benchmark.

    Attributes:
        name: name of the part and of its JSON file.
        script: relative to `benchmarks`.
        limit_s: time limit on a GPU.
        arguments: arguments of the script, besides ``--out``.
        tiny: arguments of the rehearsal.
    """

    name: str
    script: str
    limit_s: int
    arguments: tuple[str, ...] = ()
    tiny: tuple[str, ...] = ("--tiny",)


PEERS = (
    *("--cases", "step,data", "--device", "cuda", "--precision", "bf16", "--batch-size", "128", "--workers", "4"),
    *("--student", "cifar_resnet20", "--teacher", "cifar_resnet8", "--examples", "2048"),
    *("--rounds", "5", "--builds", "1", "--steps", "40", "--data-steps", "20"),
)
PARTS = (
    Part("correctness", "gpu/correctness.py", 120),
    Part("overhead", "gpu/overhead.py", 120),
    Part("experiment", "gpu/experiment.py", 215, ("--budget-s", "200"), ("--tiny", "--processes", "1")),
    Part("peers", "peers.py", 60, PEERS, ("--quick",)),
    Part("kernels", "gpu/kernels.py", 40),
)
REHEARSAL_LIMIT_S = 900


def run(part: Part, options: argparse.Namespace) -> dict[str, Any]:
    """Run one part and return ``ran``, ``n``, ``seconds`` and why it is red, if it is."""
    path = options.out / f"{part.name}.json"
    path.unlink(missing_ok=True)
    data = ("--data", str(options.data)) if options.data and part.name == "experiment" else ()
    own = ("--peers-env", str(Path(tempfile.gettempdir()) / "w2skd-peers")) if part.name == "peers" else ()
    arguments = (*(part.tiny if options.tiny else (*part.arguments, *data)), *own)
    command = [sys.executable, str(BENCHMARKS / part.script), "--out", str(path), *arguments]
    limit_s = REHEARSAL_LIMIT_S if options.tiny else part.limit_s
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])}
    began = time.monotonic()
    with (options.out / "log.txt").open("a") as log:
        print(f"--- {part.name}", file=log, flush=True)
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        code = _wait(process, limit_s)
    seconds = round(time.monotonic() - began, 1)
    found = json.loads(path.read_text()) if path.exists() else {}
    n = int(found.get("n", 0))
    reasons = [] if n else ["measured nothing"]
    reasons += [f"{len(found['failed'])} failed"] if found.get("failed") else []
    reasons += ["cut off"] if code is None else [f"exit code {code}"] if code else []
    return {"ran": n > 0, "n": n, "seconds": seconds, "limit_s": limit_s, "red": "; ".join(reasons) or None}


def _wait(process: "subprocess.Popen[bytes]", limit_s: float) -> int | None:
    """Return the exit code, or None if the process and its children had to be killed."""
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(process.pid, number)
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                continue
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 images in train/ and test/")
    parser.add_argument("--parts", default=",".join(part.name for part in PARTS), help="comma-separated")
    parser.add_argument("--tiny", action="store_true", help="rehearse on the CPU")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = options.parts.split(",")
    summary: dict[str, Any] = {}
    for part in PARTS:
        if part.name not in wanted:
            continue
        summary[part.name] = outcome = run(part, options)
        (options.out / "summary.json").write_text(json.dumps(summary, indent=1))
        state = "ok" if outcome["red"] is None else f"RED ({outcome['red']})"
        print(f"{part.name}: {state}, n {outcome['n']}, {outcome['seconds']} s of {outcome['limit_s']} s", flush=True)
    red = [name for name, outcome in summary.items() if outcome["red"] is not None]
    reached = ", ".join(f"{name} {outcome['n']}" for name, outcome in summary.items())
    print(f"reached: {reached}; {'red: ' + ', '.join(red) if red else 'all parts are green'}")
    return int(bool(red))


if __name__ == "__main__":
    sys.exit(main())
