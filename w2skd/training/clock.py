"""A clock that splits a run's time into segments, cumulative over interruptions.

Segments exclude each other: entering one pauses the enclosing one, so their sum is the run's time. A speed-up in
seconds can therefore exclude evaluation and checkpoints, which are costs of the experiment and not of the method.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from w2skd.records.rows import SEGMENTS, Segment


class Clock:
    """Accumulates seconds per segment.

    Args:
        seconds: initial seconds per segment, from a checkpoint.
        now: monotonic time source, in seconds.

    Attributes:
        current: the running segment, or None outside of all segments.
    """

    def __init__(self, seconds: Mapping[str, float] | None = None, now: Callable[[], float] = time.perf_counter):
        self._seconds: dict[Segment, float] = {name: float((seconds or {}).get(name, 0.0)) for name in SEGMENTS}
        self._now = now
        self.current: Segment | None = None
        self._since = 0.0

    @contextmanager
    def segment(self, name: Segment) -> Iterator[None]:
        """Count the time inside the block towards `name` only."""
        outer = self.current
        self._switch_to(name)
        try:
            yield
        finally:
            self._switch_to(outer)

    def move(self, source: Segment, target: Segment, seconds: float) -> None:
        """Move seconds between segments, for times measured otherwise, such as by CUDA events around a forward pass."""
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def read(self) -> dict[str, float]:
        """Return the seconds of every segment, rounded to microseconds."""
        self._switch_to(self.current)
        return {name: round(value, 6) for name, value in self._seconds.items()}

    def _switch_to(self, name: Segment | None) -> None:
        now = self._now()
        if self.current is not None:
            self._seconds[self.current] += now - self._since
        self.current, self._since = name, now
