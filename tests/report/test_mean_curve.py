"""Curves over the length of training: pooling, interpolation and the inverted t-test."""

import math
import statistics

import numpy as np
import pytest

from w2skd.report.mean_curve import first_reach, isotonic, not_rejected
from w2skd.report.replicates import Replicates

XS = [math.log(length) for length in (8, 16, 32)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 3, 2, 4], [1, 2.5, 2.5, 4]),
        ([3, 2, 1], [2, 2, 2]),
        ([1, 4, 3, 2, 5], [1, 3, 3, 3, 5]),
        ([2, 2, 1, 6, 0], [5 / 3, 5 / 3, 5 / 3, 3, 3]),
        ([7], [7]),
    ],
)
def test_isotonic_pools_neighbours_that_fall(values: list[float], expected: list[float]) -> None:
    assert isotonic(values) == pytest.approx(expected)


def test_isotonic_equals_the_formula_of_minima_and_maxima() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        values = rng.normal(size=6).round(1)
        expected = [
            max(min(values[i : k + 1].mean() for k in range(j, 6)) for i in range(j + 1)) for j in range(len(values))
        ]
        assert isotonic(values.tolist()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "length"), [(0.5, 8), (0.6, 8 * math.sqrt(2)), (0.7, 16), (0.75, 16 * math.sqrt(2)), (0.8, 32)]
)
def test_a_score_is_reached_on_a_line_over_the_logarithm(value: float, length: float) -> None:
    x = first_reach(XS, [0.5, 0.7, 0.8], value)
    assert x is not None
    assert math.exp(x) == pytest.approx(length)


def test_a_plateau_is_reached_where_it_begins() -> None:
    assert first_reach(XS, [0.5, 0.7, 0.7], 0.7) == pytest.approx(XS[1])


@pytest.mark.parametrize("value", [0.49, 0.81])
def test_scores_outside_of_the_curve_are_not_reached(value: float) -> None:
    assert first_reach(XS, [0.5, 0.7, 0.8], value) is None


ENDS = [0.61, 0.64, 0.62, 0.66]
CURVES = [[0.50, 0.68, 0.80], [0.52, 0.71, 0.83], [0.49, 0.70, 0.79], [0.53, 0.69, 0.82]]


def t_statistic(x: float, ends: list[float], curves: list[list[float]]) -> float:
    differences = [end - float(np.interp(x, XS, curve)) for end, curve in zip(ends, curves, strict=True)]
    return statistics.mean(differences) / (statistics.stdev(differences) / len(differences) ** 0.5)


def test_the_limits_are_where_the_paired_test_begins_to_reject() -> None:
    t = 3.182446
    low, high = not_rejected(XS, ENDS, CURVES, Replicates.of(None, 4), t)
    assert low is not None
    assert high is not None
    assert t_statistic(low, ENDS, CURVES) == pytest.approx(t)
    assert t_statistic(high, ENDS, CURVES) == pytest.approx(-t)
    assert all(abs(t_statistic(x, ENDS, CURVES)) <= t + 1e-9 for x in np.linspace(low, high, 50))
    assert all(abs(t_statistic(x, ENDS, CURVES)) > t for x in np.linspace(XS[0], low - 1e-6, 20))
    assert all(abs(t_statistic(x, ENDS, CURVES)) > t for x in np.linspace(high + 1e-6, XS[-1], 20))


@pytest.mark.parametrize(
    ("shift", "low_is_open", "high_is_open"), [(-0.11, True, False), (0.17, False, True), (0.0, False, False)]
)
def test_an_end_beyond_the_lengths_is_open(shift: float, low_is_open: bool, high_is_open: bool) -> None:
    ends = [end + shift for end in ENDS]
    low, high = not_rejected(XS, ends, CURVES, Replicates.of(None, 4), 3.182446)
    assert (low is None, high is None) == (low_is_open, high_is_open)


def test_far_beyond_the_lengths_only_the_bound_remains() -> None:
    seeds = Replicates.of(None, 4)
    assert not_rejected(XS, [end + 1 for end in ENDS], CURVES, seeds, 3.182446) == (XS[-1], None)
    assert not_rejected(XS, [end - 1 for end in ENDS], CURVES, seeds, 3.182446) == (None, XS[0])


def test_a_seed_effect_in_both_arms_cancels() -> None:
    seeds, t = Replicates.of(None, 4), 3.182446
    effects = [0.05, -0.03, 0.0, 0.02]
    ends = [end + effect for end, effect in zip(ENDS, effects, strict=True)]
    curves = [[score + effect for score in curve] for curve, effect in zip(CURVES, effects, strict=True)]
    assert not_rejected(XS, ends, curves, seeds, t) == pytest.approx(not_rejected(XS, ENDS, CURVES, seeds, t))


def test_runs_without_noise_leave_one_point() -> None:
    low, high = not_rejected(XS, [0.6] * 3, [[0.5, 0.7, 0.8]] * 3, Replicates.of(None, 3), 4.302653)
    assert low == pytest.approx(math.log(8 * math.sqrt(2)), abs=1e-6)
    assert high == pytest.approx(low, abs=1e-6)
