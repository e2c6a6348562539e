"""Robust time ratios on a noisy machine: A and B alternate in short blocks, and the median of their ratios is reported.

Other load slows neighbouring blocks alike, and the order within a round alternates, so that drift cancels. Results are
wall time; the CPU time of the process is reported as a check.
"""

import argparse
import gc
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch

Block = Callable[[], object]
"""Work to be timed. A returned `Spent` replaces the measured time."""

Row = tuple[str, str, str]
"""Label, result, target."""


class Spent(NamedTuple):
    """Seconds of a block that measures its own time, such as a block in another process."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Rounds:
    """Seconds of each block in each round, by block name."""

    wall: Mapping[str, Sequence[float]]
    cpu: Mapping[str, Sequence[float]]

    def seconds(self, name: str) -> float:
        """Return the median wall time of a block."""
        return median(self.wall[name])

    def ratio(self, above: str, *below: str) -> "Ratio":
        """Divide the time of one block by the sum of others, round by round."""
        wall = [a / sum(b) for a, *b in zip(self.wall[above], *(self.wall[name] for name in below), strict=True)]
        cpu = [a / sum(b) for a, *b in zip(self.cpu[above], *(self.cpu[name] for name in below), strict=True)]
        low, _, high = quantiles(wall, n=4)
        return Ratio(median(wall), low, high, median(cpu), len(wall))


@dataclass(frozen=True)
class Ratio:
    """Median and quartiles of wall-time ratios over the rounds, and the median ratio of CPU times."""

    median: float
    low: float
    high: float
    cpu: float
    rounds: int

    @property
    def inverse(self) -> "Ratio":
        """Convert a ratio of times to a ratio of rates."""
        return Ratio(1 / self.median, 1 / self.high, 1 / self.low, 1 / self.cpu, self.rounds)

    def times(self, factor: float) -> "Ratio":
        """Scale the ratio, for blocks with unequal amounts of work."""
        return Ratio(self.median * factor, self.low * factor, self.high * factor, self.cpu * factor, self.rounds)

    def as_dict(self) -> dict[str, float]:
        return {"median": self.median, "q1": self.low, "q3": self.high, "cpu": self.cpu, "rounds": self.rounds}

    def __str__(self) -> str:
        return f"{self.median:.3f} (quartiles {self.low:.3f} to {self.high:.3f}; CPU time {self.cpu:.3f})"


def take_turns(builders: Mapping[str, Callable[[], Block]], rounds: int, builds: int = 6) -> Rounds:
    """Run every block once per round, for `rounds` rounds in total.

    The blocks are rebuilt `builds` times, because the memory placement of tensors alone can change a model's speed by
    some percent. The first round after each build is discarded.
    """
    wall: dict[str, list[float]] = {name: [] for name in builders}
    cpu: dict[str, list[float]] = {name: [] for name in builders}
    for build in range(builds):
        blocks = {name: builders[name]() for name in _alternate(builders, build)}
        for block in blocks.values():
            block()
        for number in range(-(-rounds // builds)):
            gc.collect()
            for name in _alternate(builders, number):
                began, cpu_began = time.perf_counter(), time.process_time()
                result = blocks[name]()
                if torch.cuda.is_initialized():
                    torch.cuda.synchronize()
                spent = Spent(time.perf_counter() - began, time.process_time() - cpu_began)
                if isinstance(result, Spent):
                    spent = result
                wall[name].append(spent.wall)
                cpu[name].append(spent.cpu)
    return Rounds(wall, cpu)


def _alternate(names: Iterable[str], number: int) -> list[str]:
    return list(names)[:: -1 if number % 2 else 1]


def build_parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Create a parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"number of rounds [{rounds}]")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch threads [1]")
    return parser


def detail_rows(values: Mapping[str, float], form: str) -> list[Row]:
    """Return an indented table row per value, formatted with `form`, for example ``"{:.1f} ms"``."""
    return [(f"  {name}", form.format(value), "") for name, value in values.items()]


def report(options: argparse.Namespace, rows: Sequence[Row], values: Mapping[str, Any]) -> None:
    """Print the rows as a table, or options and values as JSON with ``--json``."""
    if options.json:
        print(json.dumps({"cores": os.cpu_count(), **vars(options), **values}, indent=2, default=_to_json))
        return
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for label, result, target in rows:
        print(f"{label:<{widths[0]}}  {result:<{widths[1]}}  {target}".rstrip())


def _to_json(value: object) -> object:
    return value.as_dict() if isinstance(value, Ratio) else str(value)
