"""Results of the comparison at equal final quality.

`dataclasses.asdict` converts them into values for JSON: unknown and unbounded numbers are None.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """What to report. It should be fixed before the runs start.

    Attributes:
        primary_length: length of the arm whose speed-up is the main result. None selects the longest one for which the
            reference was trained long enough.
        sharers: numbers of students that share the cost of one teacher.
        level: confidence level of the intervals, in (0, 1).
        unit: unit of the lengths: ``epoch`` or ``step``.
    """

    primary_length: float | None = None
    sharers: tuple[int, ...] = ()
    level: float = 0.95
    unit: str = "epoch"


@dataclass(frozen=True)
class Interval:
    """A confidence interval. A limit that the runs do not bound is None."""

    low: float | None
    high: float | None


@dataclass(frozen=True)
class Estimate:
    """A number or a bound, with an interval.

    Attributes:
        value: the number; None if it is outside the range that the reference's lengths cover.
        more_than: lower bound, set instead of the value if the arm ends better than the longest reference.
        less_than: upper bound, set instead of the value if the arm ends worse than the shortest reference.
        interval: None if there are too few seeds or teachers.
    """

    value: float | None
    more_than: float | None = None
    less_than: float | None = None
    interval: Interval | None = None

    def scaled(self, factor: float) -> "Estimate":
        """Return the estimate times a positive factor, rounded to 6 decimal places."""
        limits = self.interval and Interval(_times(self.interval.low, factor), _times(self.interval.high, factor))
        return Estimate(
            _times(self.value, factor), _times(self.more_than, factor), _times(self.less_than, factor), limits
        )


@dataclass(frozen=True)
class AtLength:
    """The comparison at one length of the arm.

    Attributes:
        length: length of the arm's schedule.
        end: the arm's mean final score.
        reference_length: length at which the reference reaches that score.
        speedup: reference_length / length.
        with_teacher: reference_length / (length + cost of the teacher); None if the cost is unknown.
        shared: number of students that share the teacher -> reference_length / (length + cost / number).
        seeds: seeds that are compared.
        teachers: number of teachers of these seeds; None if no seeds share a teacher.
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
        head_start: intercept, in units of length. Its contribution to the speed-up shrinks in longer training.
        rate: slope, the speed-up that remains in long training.
        head_start_with_teacher: head_start - rate * cost, for the line over length + cost; None if the cost is unknown.
        head_start_shared: number of students that share the teacher -> head_start - rate * cost / number.
        lengths: lengths of the arm with a number instead of a bound.
        left_out: number of the arm's lengths with only a bound. Leaving them out biases the line.
        seeds: seeds that have all runs of these lengths.
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
        unit: unit of the lengths: ``epoch`` or ``step``.
        level: confidence level of the intervals.
        lengths: one entry per length of the arm that can be compared.
        primary: the main result; None if the primary length cannot be compared, or if no length has a number.
        line: the line through all lengths; None if fewer than two lengths have a number, or if it cannot be fitted.
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
