"""Quantiles of Student's t distribution, without scipy."""

import math
from functools import lru_cache


def probability_within(t: float, df: int) -> float:
    """Return P(-t <= T <= t) for an integer number of degrees of freedom.

    Source: the finite sums 26.7.3 and 26.7.4 of Abramowitz and Stegun, Handbook of Mathematical Functions.

    Args:
        t: at least 0.
        df: degrees of freedom, at least 1.
    """
    angle = math.atan(t / math.sqrt(df))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = df % 2 == 1
    term = cosine if is_odd else 1.0
    total = 0.0
    for power in range(1 if is_odd else 0, df - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total


@lru_cache(maxsize=64)
def two_sided_quantile(level: float, df: int) -> float:
    """Return the t with P(-t <= T <= t) = level: 4.303 for level 0.95 and 2 degrees of freedom.

    Args:
        level: in (0, 1).
        df: degrees of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while probability_within(high, df) < level:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if probability_within(middle, df) < level:
            low = middle
        else:
            high = middle
    return high
