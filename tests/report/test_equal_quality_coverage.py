"""How often 95% intervals contain the true speed-up, over simulated experiments.

The binomial standard error of a coverage of 95% is 0.77 points over `EXPERIMENTS` and 1.1 points over `LINES`. So the
lower limits, 93% and 92%, are 2.6 and 2.8 standard errors below 95%, and 98% is at least 2.8 above.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from w2skd.report.ends import Ends
from w2skd.report.equal_quality import equal_quality
from w2skd.report.equal_quality_contract import Estimate, Plan

EXPERIMENTS, LINES, SAME = 800, 400, 2000
REFERENCE_LENGTHS = (10.0, 12.0, 15.0, 18.0, 22.0, 27.0, 33.0)
HEAD_START, RATE, PRIMARY = 7.0, 1.0, 12.0
ARM_LENGTHS = (7.0, 10.0, PRIMARY, 14.0)


@dataclass(frozen=True)
class World:
    """Learning curves v(L) = limit - scale * L^-power, with normal errors of seeds, teachers and runs."""

    limit: float = 0.77
    scale: float = 2.2
    power: float = 1.06
    run_error: float = 0.0035
    seed_error: float = 0.003
    teacher_error: float = 0.004

    def curve(self, lengths: ArrayLike) -> NDArray[np.float64]:
        values: NDArray[np.float64] = self.limit - self.scale * np.asarray(lengths, dtype=np.float64) ** -self.power
        return values

    def experiment(
        self, rng: np.random.Generator, teachers: Sequence[int], arm_lengths: Sequence[float], equivalent: ArrayLike
    ) -> tuple[Ends, Ends]:
        """Draw the final scores of both arms. The arm's mean equals the reference's mean at the equivalent lengths."""
        count = len(teachers)
        seed = rng.normal(0, self.seed_error, (count, 1))
        teacher = rng.normal(0, self.teacher_error, (max(teachers) + 1, 1))[list(teachers)]
        reference = self.curve(REFERENCE_LENGTHS) + seed
        arm = self.curve(equivalent) + seed + teacher
        return (
            ends("plain", REFERENCE_LENGTHS, reference + rng.normal(0, self.run_error, reference.shape)),
            ends("helped", arm_lengths, arm + rng.normal(0, self.run_error, arm.shape), tuple(teachers)),
        )


STEEP = World()
NOISY = World(0.76, 0.5, 0.5, run_error=0.00875, teacher_error=0.01)
"""The error of a run is as large as the gain from training 1.2 times as long."""


def ends(
    arm: str, lengths: Sequence[float], values: NDArray[np.float64], teachers: tuple[int, ...] | None = None
) -> Ends:
    return Ends(arm, tuple(lengths), tuple(range(len(values))), tuple(map(tuple, values.tolist())), teachers)


def each_with_its_own(seeds: int) -> tuple[int, ...]:
    return tuple(range(seeds))


def shared(teachers: int, seeds_each: int) -> tuple[int, ...]:
    return tuple(index // seeds_each for index in range(teachers * seeds_each))


def holds(estimate: Estimate, truth: float) -> bool:
    interval = estimate.interval
    assert interval is not None
    return (interval.low is None or interval.low <= truth) and (interval.high is None or truth <= interval.high)


def coverage(found: Iterable[bool]) -> float:
    hits = list(found)
    return sum(hits) / len(hits)


def speedup_coverage(world: World, teachers: Sequence[int], grouped: bool = True) -> float:
    def covers(rng: np.random.Generator) -> bool:
        reference, arm = world.experiment(rng, teachers, (PRIMARY,), (HEAD_START + RATE * PRIMARY,))
        if not grouped:
            arm = replace(arm, teachers=None)
        found = equal_quality(reference, arm, True, Plan(PRIMARY)).primary
        assert found is not None
        return holds(found.speedup, (HEAD_START + RATE * PRIMARY) / PRIMARY)

    rng = np.random.default_rng(20)
    return coverage(covers(rng) for _ in range(EXPERIMENTS))


@pytest.mark.parametrize(
    "teachers",
    [each_with_its_own(3), each_with_its_own(6), each_with_its_own(12), shared(3, 4), shared(6, 2)],
    ids=["3 seeds", "6 seeds", "12 seeds", "3 teachers x 4 seeds", "6 teachers x 2 seeds"],
)
def test_intervals_of_the_speedup_cover_the_truth(teachers: Sequence[int]) -> None:
    assert 0.93 <= speedup_coverage(STEEP, teachers) <= 0.98


@pytest.mark.parametrize(
    ("teachers", "most"),
    [(each_with_its_own(3), 0.995), (each_with_its_own(12), 0.98), (shared(3, 4), 0.98)],
    ids=["3 seeds", "12 seeds", "3 teachers x 4 seeds"],
)
def test_they_cover_it_when_runs_are_noisy(teachers: Sequence[int], most: float) -> None:
    # with three seeds, most of these intervals are open at one end, which makes them conservative
    assert 0.93 <= speedup_coverage(NOISY, teachers) <= most


def test_intervals_that_ignore_shared_teachers_do_not_cover_it() -> None:
    assert speedup_coverage(STEEP, shared(3, 4), grouped=False) < 0.85


def test_one_teacher_of_all_seeds_is_part_of_the_question() -> None:
    # the interval holds for that teacher, so in this world the teacher moves nothing
    assert 0.93 <= speedup_coverage(replace(STEEP, teacher_error=0.0), shared(1, 6)) <= 0.98


def test_a_speedup_beyond_the_longest_reference_lies_in_the_open_interval() -> None:
    def covers(rng: np.random.Generator) -> bool:
        reference, arm = STEEP.experiment(rng, each_with_its_own(6), (PRIMARY,), (36.0,))
        found = equal_quality(reference, arm, True, Plan(PRIMARY)).primary
        assert found is not None
        return holds(found.speedup, 36 / PRIMARY)

    rng = np.random.default_rng(21)
    assert coverage(covers(rng) for _ in range(EXPERIMENTS)) >= 0.96  # one-sided


@pytest.mark.parametrize("teachers", [each_with_its_own(6), shared(3, 2)], ids=["6 seeds", "3 teachers x 2 seeds"])
def test_two_arms_that_do_the_same_differ_in_one_of_twenty_experiments(teachers: Sequence[int]) -> None:
    world, column = replace(STEEP, teacher_error=0.0), 3
    length = REFERENCE_LENGTHS[column]
    rng = np.random.default_rng(22)
    excluded = 0
    for _ in range(SAME):
        reference, arm = world.experiment(rng, teachers, (length,), (length,))
        found = equal_quality(reference, arm, True, Plan(length)).primary
        assert found is not None
        if not holds(found.speedup, 1.0):
            excluded += 1
            assert t_test_rejects(np.array(arm.values)[:, 0] - np.array(reference.values)[:, column], teachers)
    assert abs(excluded / SAME - 0.05) < 3.3 * (0.05 * 0.95 / SAME) ** 0.5


def t_test_rejects(differences: NDArray[np.float64], teachers: Sequence[int]) -> bool:
    """Test the teachers' means at 5%, with quantiles from a table."""
    means = np.array([differences[np.array(teachers) == teacher].mean() for teacher in sorted(set(teachers))])
    quantile = {3: 4.302653, 6: 2.570582}[len(means)]
    return bool(abs(means.mean()) > quantile * means.std(ddof=1) / len(means) ** 0.5)


@pytest.mark.parametrize(
    ("world", "teachers"),
    [
        (STEEP, each_with_its_own(3)),
        (STEEP, each_with_its_own(6)),
        (STEEP, shared(3, 2)),
        (NOISY, each_with_its_own(6)),
    ],
    ids=["3 seeds", "6 seeds", "3 teachers x 2 seeds", "6 noisy seeds"],
)
def test_intervals_of_the_line_cover_the_truth(world: World, teachers: Sequence[int]) -> None:
    def covers(rng: np.random.Generator) -> tuple[bool, bool] | None:
        equivalent = HEAD_START + RATE * np.array(ARM_LENGTHS)
        line = equal_quality(*world.experiment(rng, teachers, ARM_LENGTHS, equivalent), True).line
        assert line is not None
        if line.rate.interval is None:  # without one of the seeds, a length is out of range
            return None
        return holds(line.head_start, HEAD_START), holds(line.rate, RATE)

    rng = np.random.default_rng(23)
    found = [both for _ in range(LINES) if (both := covers(rng))]
    assert len(found) >= 0.98 * LINES
    for covered in zip(*found, strict=True):
        assert 0.92 <= coverage(covered) <= 0.98
