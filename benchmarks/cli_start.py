"""Start-up time of ``w2skd --help`` against an empty Python program. Target: a median under 0.5 s over ten runs.

With ``--profile`` the slowest imports are listed.

    python benchmarks/cli_start.py [--profile] [--json]
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from timing.alternating import build_parser, detail_rows, report, take_turns

REPOSITORY = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}


def call(arguments: Sequence[str]) -> Callable[[], None]:
    return lambda: start(arguments)


def start(arguments: Sequence[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=ENVIRONMENT)


def slowest_imports(count: int) -> dict[str, float]:
    """Return the modules with the longest import time in ms, without nested imports, from ``-X importtime``."""
    command = [sys.executable, "-X", "importtime", "-m", "w2skd", "--help"]
    trace = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT).stderr
    own: dict[str, float] = {}
    for line in trace.splitlines():
        fields = line.removeprefix("import time:").split("|")
        if len(fields) == 3 and fields[0].strip().isdigit():
            own[fields[2].strip()] = int(fields[0]) / 1e3
    return dict(sorted(own.items(), key=lambda item: -item[1])[:count])


def main() -> None:
    parser = build_parser(__doc__, rounds=10)
    parser.add_argument("--profile", action="store_true", help="list the slowest imports")
    options = parser.parse_args()
    turns = take_turns(
        {"w2skd --help": lambda: call(["-m", "w2skd", "--help"]), "python": lambda: call(["-c", "pass"])},
        options.rounds,
        builds=1,
    )
    seconds = {name: turns.seconds(name) for name in turns.wall}
    slowest = slowest_imports(12) if options.profile else {}
    rows = [
        ("w2skd --help", f"{seconds['w2skd --help']:.3f} s", "target under 0.5 s"),
        ("python -c pass", f"{seconds['python']:.3f} s", ""),
        *detail_rows({f"import {name}": value for name, value in slowest.items()}, "{:.1f} ms"),
    ]
    report(options, rows, {"seconds": seconds, "imports_ms": slowest})


if __name__ == "__main__":
    main()
