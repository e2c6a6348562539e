"""The split clock: where a run's seconds went, cumulative over interruptions.

Segments exclude each other: entering one pauses the one around it, so that their sum is the run's time and a
speed-up in seconds can leave out evaluation and checkpoints, which are the experimenter's, not the method's.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from w2skd.records.rows import SEGMENTS, Segment


class Clock:
    """Seconds per segment.

    Args:
        seconds: what earlier parts of the run have taken, from a checkpoint.
        now: the time source in seconds, monotonic.
    """

    def __init__(self, seconds: Mapping[str, float] | None = None, now: Callable[[], float] = time.perf_counter):
        self._seconds: dict[Segment, float] = {name: float((seconds or {}).get(name, 0.0)) for name in SEGMENTS}
        self._now = now
        self._current: Segment | None = None
        self._since = 0.0

    @contextmanager
    def segment(self, name: Segment) -> Iterator[None]:
        """Count the time inside the block towards `name`, and towards nothing else."""
        outer = self._current
        self._switch_to(name)
        try:
            yield
        finally:
            self._switch_to(outer)

    @property
    def current(self) -> Segment | None:
        """The segment that time counts towards at the moment."""
        return self._current

    def move(self, source: Segment, target: Segment, seconds: float) -> None:
        """Reassign time that was measured elsewhere, such as a teacher's forward between two CUDA events."""
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def read(self) -> dict[str, float]:
        """Return the seconds of every segment so far, rounded to microseconds."""
        self._switch_to(self._current)
        return {name: round(value, 6) for name, value in self._seconds.items()}

    def _switch_to(self, name: Segment | None) -> None:
        now = self._now()
        if self._current is not None:
            self._seconds[self._current] += now - self._since
        self._current, self._since = name, now
