"""Means and their errors over seeds that may share teachers."""

import statistics

import numpy as np
import pytest

from w2skd.report.replicates import Replicates

VALUES = [0.3, 0.7, 0.2, 0.9, 0.4, 0.8]


def test_without_shared_teachers_the_error_is_that_of_a_mean() -> None:
    seeds = Replicates.of(None, 6)
    assert (seeds.df, seeds.seeds, seeds.is_shared) == (5, 6, False)
    assert seeds.mean(VALUES) == pytest.approx(statistics.mean(VALUES))
    assert seeds.covariance(VALUES, VALUES) == pytest.approx(statistics.variance(VALUES) / 6)


def test_a_teacher_for_each_seed_is_the_same_as_none() -> None:
    assert Replicates.of(list("abcdef"), 6) == Replicates.of(None, 6)


def test_three_teachers_are_the_units() -> None:
    seeds = Replicates.of(["a", "a", "a", "b", "c", "c"], 6)
    means = [0.4, 0.9, 0.6]
    assert seeds.df == 2
    assert seeds.mean(VALUES) == pytest.approx(statistics.mean(means))
    assert seeds.covariance(VALUES, VALUES) == pytest.approx(statistics.variance(means) / 3)


def test_two_teachers_leave_the_error_of_seeds_within_them() -> None:
    seeds = Replicates.of(["a", "b", "a", "b", "a", "b"], 6)
    within = [statistics.variance(VALUES[0::2]), statistics.variance(VALUES[1::2])]
    assert seeds.df == 4
    assert seeds.covariance(VALUES, VALUES) == pytest.approx(statistics.mean(within) / 6)
    moved = [value + 10 * (index % 2) for index, value in enumerate(VALUES)]
    assert seeds.covariance(moved, moved) == pytest.approx(seeds.covariance(VALUES, VALUES))


@pytest.mark.parametrize("teachers", [None, "aabbcc", "abbccc", "aaaaaa", "aaabbb"])
def test_the_covariance_is_bilinear(teachers: str | None) -> None:
    seeds = Replicates.of(teachers, 6)
    others = [0.5, 0.1, 0.4, 0.2, 0.9, 0.3]
    total = [a + 2 * b for a, b in zip(VALUES, others, strict=True)]
    expected = (
        seeds.covariance(VALUES, VALUES) + 4 * seeds.covariance(VALUES, others) + 4 * seeds.covariance(others, others)
    )
    assert seeds.covariance(total, total) == pytest.approx(expected)


@pytest.mark.parametrize("teachers", [None, "aabbcc", "abbccc", "aaaaaa", "aaabbb", "aabbbb"])
def test_the_jackknife_of_a_mean_has_the_error_of_the_mean(teachers: str | None) -> None:
    seeds = Replicates.of(teachers, 6)
    moves = [0.0] * 6
    for positions, weight in seeds.deletions():
        rest = [value for index, value in enumerate(VALUES) if index not in positions]
        for position in positions:
            moves[position] = weight * (seeds.mean(VALUES) - seeds.without(positions).mean(rest))
    assert seeds.covariance(moves, moves) == pytest.approx(seeds.covariance(VALUES, VALUES))


def test_without_keeps_the_others_together() -> None:
    assert Replicates.of("abbcc", 5).without([0, 2]) == Replicates(((0,), (1, 2)))


def test_the_estimated_variance_is_that_of_the_mean_on_average() -> None:
    rng = np.random.default_rng(0)
    seeds = Replicates.of("aabbcc", 6)
    means, variances = [], []
    for _ in range(3000):
        values = (rng.normal(0, 1, 3).repeat(2) + rng.normal(0, 1, 6)).tolist()
        means.append(seeds.mean(values))
        variances.append(seeds.covariance(values, values))
    assert statistics.mean(variances) == pytest.approx((1 + 1 / 2) / 3, rel=0.06)
    assert statistics.variance(means) == pytest.approx((1 + 1 / 2) / 3, rel=0.08)
