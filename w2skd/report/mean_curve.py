"""Mean final scores over the length of training: interpolation, and the length at which a score is reached.

Between the lengths that were run, a curve is a straight line over the logarithm of the length. Learning curves are
concave there (diminishing returns), so the line lies below the curve, and lengths read from it are too long. The error
is at most 1% to 2% between lengths 1.5x apart, and 3% to 6% between lengths 2x apart, for curves that approach their
limit like length^-0.5 to length^-1.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from w2skd.report.replicates import Replicates


def isotonic(values: Sequence[float]) -> list[float]:
    """Return the non-decreasing sequence with the least squared distance to the values.

    Noise can make the mean score of a longer schedule lower than that of a shorter one. Such neighbours are pooled
    (pool adjacent violators, Ayer et al. 1955).
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        total, count = value, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / count:
            before = pools.pop()
            total, count = total + before[0], count + before[1]
        pools.append((total, count))
    return [total / count for total, count in pools for _ in range(count)]


def first_reach(xs: Sequence[float], curve: Sequence[float], value: float) -> float | None:
    """Return the logarithm of the length at which a curve first reaches a value; None outside the curve's range.

    Args:
        xs: logarithms of the lengths, ascending, at least one.
        curve: the score at each length, non-decreasing.
        value: the score to reach.
    """
    if not curve[0] <= value <= curve[-1]:
        return None
    right = next(index for index, score in enumerate(curve) if score >= value)
    if right == 0:
        return xs[0]
    share = (value - curve[right - 1]) / (curve[right] - curve[right - 1])
    return xs[right - 1] + share * (xs[right] - xs[right - 1])


class OpenInterval(NamedTuple):
    """An interval of logarithms of lengths; a limit that the data do not bound is None."""

    low: float | None
    high: float | None


def not_rejected(
    xs: Sequence[float], ends: Sequence[float], curves: Sequence[Sequence[float]], replicates: Replicates, t: float
) -> OpenInterval:
    """Return the interval of reference lengths at which a paired t-test does not reject equal final scores.

    At x, the test compares the arm's final scores with the reference's curves, seed by seed. The interval contains
    every x that the test does not reject. Between two neighbouring lengths, the mean difference is linear in x and its
    variance quadratic, so the limits are roots of a quadratic (Fieller 1954). The interval accounts for the errors of
    the arm's scores, of the reference's scores and of the slope of its curve.

    A limit is None if the test cannot exclude that it lies beyond the lengths that were run.

    Args:
        xs: logarithms of the reference's lengths, ascending, at least one.
        ends: final score of each seed of the arm at one length.
        curves: final scores of the reference [seeds, lengths].
        replicates: the seeds, grouped by teacher.
        t: two-sided quantile of Student's t for the degrees of freedom of `replicates`.
    """
    differences = [[end - curve[index] for end, curve in zip(ends, curves, strict=True)] for index in range(len(xs))]
    variances = [replicates.covariance(each, each) for each in differences]
    means = [replicates.mean(each) for each in differences]
    excess = [mean**2 - t**2 * variance for mean, variance in zip(means, variances, strict=True)]
    found = [x for x, value in zip(xs, excess, strict=True) if value <= 0]
    for left in range(len(xs) - 1):
        right = left + 1
        cross = replicates.covariance(differences[left], differences[right])
        product = means[left] * means[right] - t**2 * cross
        # at share u of the way: (1 - u)^2 excess[left] + 2 u (1 - u) product + u^2 excess[right]
        roots = _roots(excess[left] - 2 * product + excess[right], 2 * (product - excess[left]), excess[left])
        found += [xs[left] + u * (xs[right] - xs[left]) for u in roots if 0 <= u <= 1]
    starts_better, ends_worse = excess[0] > 0 and means[0] > 0, excess[-1] > 0 and means[-1] < 0
    return OpenInterval(
        low=min(found, default=xs[-1]) if starts_better else None,
        high=max(found, default=xs[0]) if ends_worse else None,
    )


def _roots(square: float, linear: float, constant: float) -> list[float]:
    """Return the real roots of square u^2 + linear u + constant."""
    discriminant = linear**2 - 4 * square * constant
    if discriminant < 0:
        return []
    half = -(linear + math.copysign(math.sqrt(discriminant), linear)) / 2
    return ([half / square] if square else []) + ([constant / half] if half else [])
