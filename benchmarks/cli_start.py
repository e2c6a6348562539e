"""How long ``w2skd --help`` takes, against a Python that does nothing. Target: under 0.5 s, the median of ten.

With ``--profile`` the modules that take longest to import are listed.

    python benchmarks/cli_start.py [--profile] [--json]
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from timing.alternating import parser, report, take_turns

REPOSITORY = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}


def call(arguments: Sequence[str]) -> Callable[[], None]:
    return lambda: start(arguments)


def start(arguments: Sequence[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=ENVIRONMENT)


def slowest_imports(count: int) -> dict[str, float]:
    """Module -> milliseconds of its own code, as ``-X importtime`` tells them."""
    command = [sys.executable, "-X", "importtime", "-m", "w2skd", "--help"]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT).stderr
    own: dict[str, float] = {}
    for line in told.splitlines():
        fields = line.removeprefix("import time:").split("|")
        if len(fields) == 3 and fields[0].strip().isdigit():
            own[fields[2].strip()] = int(fields[0]) / 1e3
    return dict(sorted(own.items(), key=lambda item: -item[1])[:count])


def main() -> None:
    arguments = parser(__doc__, rounds=10)
    arguments.add_argument("--profile", action="store_true", help="list what takes longest to import")
    options = arguments.parse_args()
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
        *((f"  import {name}", f"{milliseconds:.1f} ms", "") for name, milliseconds in slowest.items()),
    ]
    report(options, rows, {"seconds": seconds, "imports_ms": slowest})


if __name__ == "__main__":
    main()
