"""Ratios that a noisy machine cannot bend: A and B take turns in short blocks, and the median of their ratios counts.

Whatever else runs on the machine slows a block and its neighbour alike. The order within a round is turned every other
time, so that a drift cancels. Wall time is what counts; the process's own CPU time stands beside it as a check.
"""

import argparse
import gc
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

Block = Callable[[], object]


@dataclass(frozen=True)
class Rounds:
    """Seconds of every block: name -> one number a round."""

    wall: Mapping[str, Sequence[float]]
    cpu: Mapping[str, Sequence[float]]

    def seconds(self, name: str) -> float:
        """The median block's wall time."""
        return median(self.wall[name])

    def ratio(self, above: str, *below: str) -> "Ratio":
        """Time of one block over the sum of others, round by round."""
        wall = [a / sum(b) for a, *b in zip(self.wall[above], *(self.wall[name] for name in below), strict=True)]
        cpu = [a / sum(b) for a, *b in zip(self.cpu[above], *(self.cpu[name] for name in below), strict=True)]
        low, _, high = quantiles(wall, n=4)
        return Ratio(median(wall), low, high, median(cpu), len(wall))


@dataclass(frozen=True)
class Ratio:
    """The median over the rounds with its quartiles, and the median of the ratios of CPU time."""

    median: float
    low: float
    high: float
    cpu: float
    rounds: int

    @property
    def inverse(self) -> "Ratio":
        """From times to rates."""
        return Ratio(1 / self.median, 1 / self.high, 1 / self.low, 1 / self.cpu, self.rounds)

    def times(self, factor: float) -> "Ratio":
        """Where the blocks do unequal amounts of work."""
        return Ratio(self.median * factor, self.low * factor, self.high * factor, self.cpu * factor, self.rounds)

    def as_dict(self) -> dict[str, float]:
        return {"median": self.median, "q1": self.low, "q3": self.high, "cpu": self.cpu, "rounds": self.rounds}

    def __str__(self) -> str:
        return f"{self.median:.3f} (quartiles {self.low:.3f} to {self.high:.3f}; CPU time {self.cpu:.3f})"


def take_turns(builders: Mapping[str, Callable[[], Block]], rounds: int, builds: int = 6) -> Rounds:
    """Run every block once a round, `rounds` times in all.

    The blocks are built afresh now and then, since two copies of one model may differ by some percent of speed, by
    where their tensors came to lie. The first round of a build does not count.
    """
    wall: dict[str, list[float]] = {name: [] for name in builders}
    cpu: dict[str, list[float]] = {name: [] for name in builders}
    for build in range(builds):
        blocks = {name: builders[name]() for name in _turned(builders, build)}
        for block in blocks.values():
            block()
        for number in range(-(-rounds // builds)):
            gc.collect()
            for name in _turned(builders, number):
                began, cpu_began = time.perf_counter(), time.process_time()
                blocks[name]()
                wall[name].append(time.perf_counter() - began)
                cpu[name].append(time.process_time() - cpu_began)
    return Rounds(wall, cpu)


def _turned(names: Iterable[str], number: int) -> list[str]:
    return list(names)[:: -1 if number % 2 else 1]


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    made.add_argument("--rounds", type=int, default=rounds, help=f"rounds of blocks [{rounds}]")
    made.add_argument("--threads", type=int, default=1, help="threads of PyTorch [1]")
    return made


def report(options: argparse.Namespace, rows: Sequence[tuple[str, str, str]], values: Mapping[str, Any]) -> None:
    """Print rows of (what, result, target), or the values."""
    if options.json:
        print(json.dumps({"cores": os.cpu_count(), **vars(options), **values}, indent=2))
        return
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for what, result, target in rows:
        print(f"{what:<{widths[0]}}  {result:<{widths[1]}}  {target}".rstrip())
