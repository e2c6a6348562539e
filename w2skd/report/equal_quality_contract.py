"""Results of the comparison at equal final quality.

`dataclasses.asdict` turns them into what JSON can hold: unknown and unbounded numbers are None.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """What to report. Write it down before the runs are made.

    Attributes:
        primary_length: the arm's length whose speed-up is the main result; None takes the longest for which the
            reference was trained long enough.
        sharers: numbers of students that share one teacher's training.
        level: of the intervals, in (0, 1).
        unit: of the lengths, in words: ``epoch`` or ``step``.
    """

    primary_length: float | None = None
    sharers: tuple[int, ...] = ()
    level: float = 0.95
    unit: str = "epoch"


@dataclass(frozen=True)
class Interval:
    """A confidence interval. An end that the runs do not bound is None."""

    low: float | None
    high: float | None


@dataclass(frozen=True)
class Estimate:
    """A number or a bound, with an interval.

    Attributes:
        value: None if the reference was not trained long enough, or not briefly enough, to tell.
        more_than: instead of the value, where the arm ends better than the longest reference.
        less_than: instead of the value, where the arm ends worse than the shortest reference.
        interval: None with too few seeds or teachers.
    """

    value: float | None
    more_than: float | None = None
    less_than: float | None = None
    interval: Interval | None = None

    def scaled(self, factor: float) -> "Estimate":
        """Return the estimate times a positive factor, rounded to 6 digits after the point."""
        limits = self.interval and Interval(_times(self.interval.low, factor), _times(self.interval.high, factor))
        return Estimate(
            _times(self.value, factor), _times(self.more_than, factor), _times(self.less_than, factor), limits
        )


@dataclass(frozen=True)
class AtLength:
    """The comparison at one length of the arm.

    Attributes:
        length: of the arm's schedule.
        end: the arm's mean final score.
        reference_length: length at which the reference ends as well.
        speedup: reference_length / length.
        with_teacher: reference_length / (length + cost of the teacher); None if the cost is unknown.
        shared: by number of students that share the teacher, reference_length / (length + cost / number).
        seeds: the seeds that are compared.
        teachers: the number of teachers behind them; None if no seeds share a teacher.
    """

    length: float
    end: float
    reference_length: Estimate
    speedup: Estimate
    with_teacher: Estimate | None
    shared: dict[str, Estimate]
    seeds: tuple[int, ...]
    teachers: int | None


@dataclass(frozen=True)
class Line:
    """The least-squares line reference_length = head_start + rate * length over the arm's lengths.

    Attributes:
        head_start: in units of length. Its share of the speed-up shrinks as training gets longer.
        rate: the speed-up that remains in long training.
        head_start_with_teacher: head_start - rate * cost, for the line over length + cost; None if it is unknown.
        head_start_shared: the same for a shared teacher, by number of students.
        lengths: the arm's lengths that have a number.
        left_out: how many of the arm's lengths have only a bound. Leaving them out biases the line.
        seeds: the seeds that have all runs of these lengths.
    """

    head_start: Estimate
    rate: Estimate
    head_start_with_teacher: Estimate | None
    head_start_shared: dict[str, Estimate]
    lengths: tuple[float, ...]
    left_out: int
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class EqualQuality:
    """Speed-up of one arm over the reference at equal final quality.

    Attributes:
        reference: name of the reference arm.
        arm: name of the other arm.
        unit: of the lengths: ``epoch`` or ``step``.
        level: of the intervals.
        lengths: one entry per length of the arm that can be compared.
        primary: the main result; None if no length of the arm has a number.
        line: None with fewer than two lengths that have a number.
        notes: caveats, one sentence each.
    """

    reference: str
    arm: str
    unit: str
    level: float
    lengths: tuple[AtLength, ...]
    primary: AtLength | None
    line: Line | None
    notes: tuple[str, ...] = ()


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else round(value * factor, 6)
