"""Speed-up at equal final quality: how much longer the reference must train to reach the final quality of another arm.

Every run counts with the final score of its complete schedule. The mean final score of the reference, as a function of
the length of its schedule, is a curve. The speed-up S(L) of an arm at length L is the length at which that curve
reaches the arm's mean final score, divided by L. It requires no threshold, and every run trains to the end of its
schedule.

- The curve is made non-decreasing (`isotonic`) and interpolated linearly over the logarithm of the length. If an arm
  ends better than the longest reference or worse than the shortest one, S is a bound instead of a number.
- The intervals of S invert a paired t-test (`not_rejected`). Arms are paired by seed, because runs with the same seed
  share the order of the data. Seeds that share a teacher are grouped (`Replicates`). Each interval holds for one
  length, not for all lengths simultaneously. The tests simulate the coverage. Bootstrap percentile and BCa intervals
  are not used: with a nominal level of 95%, they cover about 70% with three seeds and 90% with twelve.
- The line reference_length = head_start + rate * length separates a head start, which matters less in longer training,
  from a faster rate, which persists. Its intervals use jackknife standard errors and quantiles of t.
- Every number is given without the cost of the teacher's training, with it (the arm's length is L + cost) and shared
  by N students (L + cost / N).
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from w2skd.report.ends import Ends, Pairing, pair
from w2skd.report.equal_quality_contract import AtLength, EqualQuality, Estimate, Interval, Line, Plan
from w2skd.report.equal_quality_text import notes
from w2skd.report.mean_curve import first_reach, not_rejected
from w2skd.report.replicates import FEWEST_DF, Replicates
from w2skd.report.student_t import two_sided_quantile


def equal_quality(reference: Ends, arm: Ends, higher_is_better: bool, plan: Plan | None = None) -> EqualQuality:
    """Compare the complete schedules of an arm with those of the reference.

    Args:
        reference: final scores of the reference. Its `teachers` and `teacher_costs` are not used.
        arm: final scores of another arm.
        higher_is_better: direction of the metric.
        plan: what to report; the default is epochs, 95% intervals and no sharers.

    Raises:
        ValueError: the plan's primary length is not a length of the arm.
    """
    plan = plan or Plan()
    if plan.primary_length is not None and plan.primary_length not in arm.lengths:
        raise ValueError(f"primary length {plan.primary_length} is not a length of {arm.arm}: {arm.lengths}")
    pairings = {length: pair(reference, arm, (length,), higher_is_better) for length in arm.lengths}
    lengths = tuple(_at(pairing, higher_is_better, plan) for pairing in pairings.values() if pairing)
    numbered = tuple(at for at in lengths if at.speedup.value is not None)
    if plan.primary_length is None:
        primary = numbered[-1] if numbered else None
    else:
        primary = next((at for at in lengths if at.length == plan.primary_length), None)
    in_range = tuple(at.length for at in numbered)
    together = pair(reference, arm, in_range, higher_is_better) if len(in_range) > 1 else None
    comparison = EqualQuality(
        reference=reference.arm,
        arm=arm.arm,
        unit=plan.unit,
        level=plan.level,
        lengths=lengths,
        primary=primary,
        line=None if together is None else _line(together, len(lengths) - len(numbered), plan),
    )
    return replace(comparison, notes=tuple(notes(reference, arm, pairings, comparison, plan)))


def _quantile(replicates: Replicates, level: float) -> float | None:
    """Return the quantile of t; None if there are too few seeds or teachers for an interval."""
    return two_sided_quantile(level, replicates.df) if replicates.df >= FEWEST_DF else None


def _at(pairing: Pairing, higher_is_better: bool, plan: Plan) -> AtLength:
    (length,), (ends,), xs, replicates = pairing.lengths, pairing.ends, pairing.xs, pairing.replicates
    end, curve, cost = replicates.mean(ends), pairing.curve, pairing.cost
    x, t = first_reach(xs, curve, end), _quantile(replicates, plan.level)
    value, interval = None if x is None else math.exp(x), None
    if t is not None:
        limits = not_rejected(xs, ends, pairing.curves, replicates, t)
        low, high = (None if limit is None else math.exp(limit) for limit in limits)
        if value is not None:  # pooling can move the value out of the interval, which uses the unpooled curves
            low, high = low and min(low, value), high and max(high, value)
        interval = Interval(low, high)
    found = Estimate(
        value=value,
        more_than=math.exp(xs[-1]) if end > curve[-1] else None,
        less_than=math.exp(xs[0]) if end < curve[0] else None,
        interval=interval,
    )
    return AtLength(
        length=length,
        end=end if higher_is_better else -end,
        reference_length=found.scaled(1.0),
        speedup=found.scaled(1 / length),
        with_teacher=None if cost is None else found.scaled(1 / (length + cost)),
        shared={}
        if cost is None
        else {str(count): found.scaled(1 / (length + cost / count)) for count in plan.sharers},
        seeds=pairing.seeds,
        teachers=len(replicates.groups) if replicates.is_shared else None,
    )


def _line(pairing: Pairing, left_out: int, plan: Plan) -> Line | None:
    """Fit the line; None if, at some length, the mean score of these seeds is outside the reference's curve."""
    fitted, replicates, cost = _coefficients(pairing), pairing.replicates, pairing.cost
    if fitted is None:
        return None
    t = _quantile(replicates, plan.level) if len(pairing.lengths) > 2 else None
    moves = None if t is None else _moves(pairing, fitted)

    def head_start(cost: float) -> Estimate:
        return estimate(1.0, -cost)

    def estimate(*weights: float) -> Estimate:
        value = _dot(weights, fitted)
        if t is None or moves is None:
            return Estimate(value).scaled(1.0)
        moved = [_dot(weights, move) for move in moves]
        half = t * math.sqrt(replicates.covariance(moved, moved))
        return Estimate(value, interval=Interval(value - half, value + half)).scaled(1.0)

    return Line(
        head_start=head_start(0.0),
        rate=estimate(0.0, 1.0),
        head_start_with_teacher=None if cost is None else head_start(cost),
        head_start_shared={} if cost is None else {str(count): head_start(cost / count) for count in plan.sharers},
        lengths=pairing.lengths,
        left_out=left_out,
        seeds=pairing.seeds,
    )


def _coefficients(pairing: Pairing) -> tuple[float, float] | None:
    """Return (head start, rate) of the least-squares line; None if a mean score is outside the reference's curve."""
    curve, xs, count = pairing.curve, pairing.xs, len(pairing.lengths)
    found = [first_reach(xs, curve, pairing.replicates.mean(ends)) for ends in pairing.ends]
    reached = [math.exp(x) for x in found if x is not None]
    if len(reached) < count:
        return None
    centre = sum(pairing.lengths) / count
    offsets = [length - centre for length in pairing.lengths]
    rate = _dot(offsets, reached) / _dot(offsets, offsets)
    return sum(reached) / count - rate * centre, rate


def _moves(pairing: Pairing, fitted: tuple[float, float]) -> list[tuple[float, float]] | None:
    """Return how much each seed moves the coefficients, by leaving out seeds or teachers (jackknife, Tukey 1958).

    Returns:
        Centred jackknife pseudo-values, one pair per seed. None if, without one of the seeds or teachers, a mean score
        is outside the reference's curve.
    """
    moves = [(0.0, 0.0)] * len(pairing.seeds)
    for positions, weight in pairing.replicates.deletions():
        without = _coefficients(pairing.without(positions))
        if without is None:
            return None
        move = weight * (fitted[0] - without[0]), weight * (fitted[1] - without[1])
        for position in positions:
            moves[position] = move
    return moves


def _dot(first: Sequence[float], second: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))
