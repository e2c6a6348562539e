"""Quantiles of Student's t distribution."""

import math

import pytest

from w2skd.report.student_t import probability_within, two_sided_quantile


@pytest.mark.parametrize(
    ("level", "df", "quantile"),
    [
        (0.95, 1, 12.706205),
        (0.95, 2, 4.302653),
        (0.95, 3, 3.182446),
        (0.95, 5, 2.570582),
        (0.95, 11, 2.200985),
        (0.95, 30, 2.042272),
        (0.99, 4, 4.604095),
        (0.90, 10, 1.812461),
    ],
)
def test_quantiles_equal_the_table(level: float, df: int, quantile: float) -> None:
    assert two_sided_quantile(level, df) == pytest.approx(quantile, abs=1e-6)


@pytest.mark.parametrize("df", [1, 2, 3, 6, 7, 24])
def test_the_probability_is_the_integral_of_the_density(df: int) -> None:
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    step = 1e-3
    middles = ((index + 0.5) * step for index in range(1500))
    integral = 2 * step * sum(scale * (1 + t**2 / df) ** (-(df + 1) / 2) for t in middles)
    assert probability_within(1.5, df) == pytest.approx(integral, abs=1e-7)


def test_many_degrees_of_freedom_approach_the_normal_distribution() -> None:
    assert two_sided_quantile(0.95, 10_000) == pytest.approx(1.959964, abs=3e-4)
