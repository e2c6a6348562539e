"""Metrics and output files of an evaluation. Each task declares its own."""

from typing import NamedTuple


class Metric(NamedTuple):
    """A metric of an evaluation.

    Attributes:
        name: key in ``metrics.jsonl``, such as ``top1``.
        higher_is_better: direction of improvement.
        is_share: whether it lies in [0, 1] and is shown as a percentage.
    """

    name: str
    higher_is_better: bool
    is_share: bool = False

    def is_better(self, value: float, other: float) -> bool:
        """Return whether `value` is strictly better than `other`; False if either is NaN."""
        return value > other if self.higher_is_better else value < other

    def reaches(self, value: float, level: float) -> bool:
        """Return whether `value` is at least as good as `level`; False if either is NaN."""
        return value >= level if self.higher_is_better else value <= level


class Output(NamedTuple):
    """A file or folder that ``w2skd evaluate`` writes on request.

    Attributes:
        help: one line for ``w2skd evaluate --help``.
        suffixes: accepted file endings in lower case, such as ``(".csv", ".jsonl")``; empty for a folder.
    """

    help: str
    suffixes: tuple[str, ...] = ()
