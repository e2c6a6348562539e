"""Ratios that a noisy machine cannot bend: A and B take turns in short blocks, and the median of their ratios counts.

Whatever else runs on the machine slows a block and its neighbour alike. The order within a round is turned every other
time, so that a drift cancels. Wall time is what counts; the process's own CPU time stands beside it as a check.
"""

import argparse
import gc
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
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

    def as_dict(self) -> dict[str, float]:
        return {"median": self.median, "q1": self.low, "q3": self.high, "cpu": self.cpu, "rounds": self.rounds}

    def __str__(self) -> str:
        return f"{self.median:.3f} (quartiles {self.low:.3f} to {self.high:.3f}; CPU time {self.cpu:.3f})"


def take_turns(blocks: Mapping[str, Block], rounds: int) -> Rounds:
    """Run every block once a round, after one round that does not count."""
    for block in blocks.values():
        block()
    wall: dict[str, list[float]] = {name: [] for name in blocks}
    cpu: dict[str, list[float]] = {name: [] for name in blocks}
    for number in range(rounds):
        gc.collect()
        for name in list(blocks) if number % 2 else list(blocks)[::-1]:
            began, cpu_began = time.perf_counter(), time.process_time()
            blocks[name]()
            wall[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - cpu_began)
    return Rounds(wall, cpu)


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
