"""The speed-up at equal final quality, on scores with known answers."""

import dataclasses
import json
import math
from collections.abc import Sequence

import pytest

from w2skd.report.ends import Ends
from w2skd.report.equal_quality import equal_quality
from w2skd.report.equal_quality_contract import EqualQuality, Estimate, Interval, Plan

LENGTHS = (8.0, 12.0, 16.0, 24.0, 32.0)
NOISE = (
    (0.002, -0.001, 0.001, 0.0, -0.002),
    (-0.001, 0.002, 0.0, -0.002, 0.001),
    (-0.001, -0.001, -0.001, 0.002, 0.001),
)


def score(length: float) -> float:
    """Return a score that grows by 0.1 whenever the length doubles, so that interpolation is exact."""
    return 0.1 * math.log2(length)


def plain(seeds: int = 3, noise: float = 1.0, lengths: Sequence[float] = LENGTHS) -> Ends:
    values = tuple(
        tuple(score(length) + noise * NOISE[seed % 3][index] for index, length in enumerate(lengths))
        for seed in range(seeds)
    )
    return Ends("plain", tuple(lengths), tuple(range(seeds)), values)


def helped(
    equivalents: dict[float, float], seeds: int = 3, teachers: str | None = None, cost: float | None = None
) -> Ends:
    """Return final scores equal to the reference's at the given lengths."""
    values = tuple(tuple(score(there) for there in equivalents.values()) for _ in range(seeds))
    costs = None if cost is None else (cost,) * seeds
    return Ends("grow", tuple(equivalents), tuple(range(seeds)), values, teachers and tuple(teachers), costs)


def primary_speedup(found: EqualQuality) -> Estimate:
    assert found.primary is not None
    return found.primary.speedup


def test_the_speedup_is_the_ratio_of_lengths_of_equal_quality() -> None:
    found = equal_quality(plain(noise=0), helped({8.0: 18.0, 12.0: 20.0}, cost=4.0), True, Plan(sharers=(1, 4)))
    first, second = found.lengths
    assert first.reference_length.value == pytest.approx(18)
    assert first.speedup.value == pytest.approx(18 / 8)
    assert first.with_teacher is not None
    assert first.with_teacher.value == pytest.approx(18 / 12)
    assert first.shared["1"] == first.with_teacher
    assert first.shared["4"].value == pytest.approx(18 / 9)
    assert first.end == pytest.approx(score(18))
    assert found.primary == second


def test_lower_scores_can_be_better() -> None:
    reference, arm = plain(), helped({8.0: 18.0, 12.0: 30.0, 16.0: 31.0}, cost=4.0)
    higher = equal_quality(reference, arm, True)
    lower = equal_quality(*(dataclasses.replace(e, values=negated(e)) for e in (reference, arm)), False)
    assert lower.primary is not None
    assert higher.primary is not None
    assert lower.primary.end == -higher.primary.end
    assert lower.primary.speedup == higher.primary.speedup
    assert lower.line == higher.line


def negated(ends: Ends) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(-value for value in row) for row in ends.values)


def test_the_unit_of_length_does_not_matter() -> None:
    def in_steps(ends: Ends) -> Ends:
        return dataclasses.replace(ends, lengths=tuple(391 * length for length in ends.lengths))

    reference, arm = plain(), helped({8.0: 18.0, 12.0: 20.0})
    epochs, steps = equal_quality(reference, arm, True), equal_quality(in_steps(reference), in_steps(arm), True)
    assert primary_speedup(steps).value == pytest.approx(primary_speedup(epochs).value)
    assert [at.length for at in steps.lengths] == [391 * 8, 391 * 12]


def test_beyond_the_reference_there_is_a_bound_and_no_number() -> None:
    found = equal_quality(plain(), helped({2.0: 4.0, 8.0: 18.0, 16.0: 64.0}, cost=4.0), True)
    below, _, above = found.lengths
    assert (below.speedup.value, below.speedup.less_than, below.speedup.more_than) == (None, 4.0, None)
    assert (above.speedup.value, above.speedup.less_than, above.speedup.more_than) == (None, None, 2.0)
    assert below.speedup.interval == Interval(None, 4.0)
    assert above.speedup.interval == Interval(2.0, None)
    assert above.with_teacher is not None
    assert above.with_teacher.more_than == pytest.approx(32 / 20)
    assert found.primary == found.lengths[1]


def test_one_reference_length_gives_bounds() -> None:
    reference = plain(lengths=(16.0,))
    found = equal_quality(reference, helped({8.0: 12.0, 12.0: 24.0}), True)
    assert [(at.speedup.less_than, at.speedup.more_than) for at in found.lengths] == [(2.0, None), (None, 1.333333)]
    assert found.primary is None
    assert found.line is None


def test_intervals_hold_the_number_and_shrink_with_more_seeds() -> None:
    arm = {8.0: 18.0}
    three, twelve = (primary_speedup(equal_quality(plain(n), helped(arm, n), True)) for n in (3, 12))
    for found in (three, twelve):
        assert found.interval is not None
        assert found.value is not None
        assert found.interval.low is not None
        assert found.interval.high is not None
        assert found.interval.low < found.value < found.interval.high
    assert width(twelve) < width(three) / 3


def width(estimate: Estimate) -> float:
    interval = estimate.interval
    assert interval is not None
    assert interval.low is not None
    assert interval.high is not None
    return interval.high - interval.low


def test_a_higher_level_widens_the_interval() -> None:
    found = [equal_quality(plain(6), helped({8.0: 18.0}, 6), True, Plan(level=level)) for level in (0.5, 0.9, 0.99)]
    widths = [width(primary_speedup(each)) for each in found]
    assert widths == sorted(widths)


@pytest.mark.parametrize(("seeds", "teachers"), [(1, None), (2, None), (2, "aa"), (3, "aab")])
def test_too_few_seeds_give_a_number_without_interval(seeds: int, teachers: str | None) -> None:
    found = equal_quality(plain(seeds), helped({8.0: 18.0, 12.0: 20.0, 16.0: 25.0}, seeds, teachers), True)
    assert primary_speedup(found).value is not None
    assert primary_speedup(found).interval is None
    assert found.line is not None
    assert found.line.rate.interval is None
    assert any(note.startswith("No interval at 8, 12, 16 epochs") for note in found.notes)


def test_teachers_that_differ_widen_the_interval() -> None:
    arm = helped({8.0: 18.0}, 12, "aaaabbbbcccc")
    shifted = tuple((row[0] + 0.02 * (index // 4 - 1),) for index, row in enumerate(arm.values))
    arm = dataclasses.replace(arm, values=shifted)
    grouped = equal_quality(plain(12), arm, True)
    assert grouped.primary is not None
    assert grouped.primary.teachers == 3
    alone = equal_quality(plain(12), dataclasses.replace(arm, teachers=None), True)
    assert width(primary_speedup(grouped)) > 2 * width(primary_speedup(alone))


@pytest.mark.parametrize(("teachers", "text"), [("aaaaaa", "one teacher"), ("aaabbb", "2 teachers")])
def test_one_or_two_teachers_are_said_to_limit_the_result(teachers: str, text: str) -> None:
    found = equal_quality(plain(6), helped({8.0: 18.0}, 6, teachers), True)
    assert primary_speedup(found).interval is not None
    assert any(note.startswith(f"The seeds share {text}: the intervals hold only for th") for note in found.notes)


def test_the_line_separates_head_start_and_rate() -> None:
    arm = helped({4.0: 13.0, 8.0: 17.0 + 1.0, 12.0: 23.0, 16.0: 28.0}, cost=4.0)
    line = equal_quality(plain(noise=0), arm, True, Plan(sharers=(2,))).line
    assert line is not None
    assert line.rate.value == pytest.approx(1.25)
    assert line.head_start.value == pytest.approx(8.0)
    assert line.head_start_with_teacher is not None
    assert line.head_start_with_teacher.value == pytest.approx(8.0 - 4 * 1.25)
    assert line.head_start_shared["2"].value == pytest.approx(8.0 - 2 * 1.25)
    assert (line.lengths, line.left_out, line.seeds) == ((4.0, 8.0, 12.0, 16.0), 0, (0, 1, 2))
    assert width(line.rate) < 1e-5  # no noise, so no error


def test_the_line_leaves_out_bounds_and_says_so() -> None:
    found = equal_quality(plain(), helped({4.0: 13.0, 8.0: 18.0, 12.0: 23.0, 16.0: 64.0}), True)
    assert found.line is not None
    assert (found.line.lengths, found.line.left_out) == ((4.0, 8.0, 12.0), 1)
    assert found.line.rate.interval is not None
    assert any("leaves out 1 length" in note for note in found.notes)


def test_a_line_through_two_lengths_has_no_interval() -> None:
    found = equal_quality(plain(), helped({4.0: 13.0, 8.0: 18.0}), True)
    assert found.line is not None
    assert found.line.rate.value is not None
    assert found.line.rate.interval is None
    assert "The line has no intervals: it passes through two lengths." in found.notes


def test_a_line_that_hangs_on_one_seed_has_no_interval() -> None:
    reference, arm = plain(noise=0), helped({4.0: 13.0, 8.0: 18.0, 12.0: 31.9})
    rows = tuple((*row[:2], row[2] + shift) for row, shift in zip(arm.values, (0.01, 0.01, -0.02), strict=True))
    found = equal_quality(reference, dataclasses.replace(arm, values=rows), True)
    assert found.line is not None
    assert found.line.rate.interval is None
    assert any("a length is out of range without one of them" in note for note in found.notes)


def test_the_jackknife_of_the_line_equals_the_delta_method_where_the_curve_is_straight() -> None:
    # log2 lengths move by the score's difference / 0.1, the same for every seed's share of the mean
    shifts = (0.001, -0.002, 0.0, 0.001)
    arm = helped({4.0: 13.0, 8.0: 18.0, 12.0: 23.0}, 4)
    rows = tuple(tuple(value + shift for value in row) for row, shift in zip(arm.values, shifts, strict=True))
    line = equal_quality(plain(4, noise=0), dataclasses.replace(arm, values=rows), True).line
    assert line is not None
    moves = [[length * math.log(2) * shift / 0.1 for length in (13.0, 18.0, 23.0)] for shift in shifts]
    rates = [(move[2] - move[0]) / 8 for move in moves]
    half = 3.182446 * (sum(rate**2 for rate in rates) / 3 / 4) ** 0.5
    assert width(line.rate) == pytest.approx(2 * half, rel=0.01)


def test_a_mean_curve_that_falls_is_pooled_and_reported() -> None:
    reference = Ends("plain", (8.0, 16.0, 32.0), (0,), ((0.5, 0.7, 0.6),))
    found = equal_quality(reference, Ends("grow", (8.0,), (0,), ((0.575,),)), True)
    assert found.lengths[0].reference_length.value == pytest.approx(8 * math.sqrt(2))
    assert "On average, plain ends worse after 32 epochs than after 16; these lengths are pooled." in found.notes


def test_an_interval_holds_a_number_that_pooling_has_moved() -> None:
    seeds = (0, 1, 2)
    reference = Ends("plain", (8.0, 16.0, 32.0), seeds, ((0.5, 0.7, 0.6),) * 3)
    there = equal_quality(reference, Ends("grow", (8.0,), seeds, ((0.575,),) * 3), True).lengths[0].reference_length
    assert there.value == pytest.approx(8 * math.sqrt(2))
    assert there.interval is not None
    assert there.interval.low == pytest.approx(8 * 2**0.375)  # where the unpooled curve reaches the score
    assert there.interval.high == there.value


def test_missing_runs_are_reported() -> None:
    reference, arm = plain(4), helped({8.0: 18.0}, 4)
    rows = [list(row) for row in reference.values]
    rows[1][0], rows[0][4], rows[2][4], rows[3][4] = math.nan, math.nan, math.nan, math.nan
    found = equal_quality(dataclasses.replace(reference, values=tuple(map(tuple, rows))), arm, True)
    assert found.lengths[0].seeds == (0, 2, 3)
    assert "grow at 8 epochs: seed 1 is excluded because a run is missing in one of the arms." in found.notes
    assert "plain at 32 epochs is not used: fewer than half of the seeds have finished it." in found.notes


def test_an_arm_without_common_seeds_is_reported() -> None:
    arm = dataclasses.replace(helped({8.0: 18.0}), seeds=(7, 8, 9))
    found = equal_quality(plain(), arm, True)
    assert (found.lengths, found.primary, found.line) == ((), None, None)
    assert "grow at 8 epochs is not compared: no seed has this run and those of plain." in found.notes


def test_wide_gaps_between_reference_lengths_are_reported() -> None:
    wide = equal_quality(plain(lengths=(8.0, 32.0)), helped({8.0: 18.0}), True, Plan(8.0))
    assert [note for note in wide.notes if "4x apart" in note] == [
        "grow at 8 epochs: interpolation between 8 and 32 epochs, 4x apart, slightly overestimates the speed-up."
    ]
    assert equal_quality(plain(), helped({8.0: 18.0}), True, Plan(8.0)).notes == ()


def test_costs_that_differ_or_are_unknown_are_reported() -> None:
    arm = helped({8.0: 18.0}, 3, "abc", 4.0)
    differ = equal_quality(plain(), dataclasses.replace(arm, teacher_costs=(3.0, 4.0, 8.0)), True)
    assert differ.lengths[0].with_teacher is not None
    assert differ.lengths[0].with_teacher.value == pytest.approx(18 / 13, rel=0.02)
    assert any("Training a teacher costs 3 to 8 epochs" in note for note in differ.notes)
    unknown = equal_quality(plain(), dataclasses.replace(arm, teacher_costs=(3.0, math.nan, 8.0)), True)
    assert unknown.lengths[0].with_teacher is None
    assert any("is unknown" in note for note in unknown.notes)


def test_the_primary_length_is_the_declared_one() -> None:
    arm = helped({8.0: 18.0, 12.0: 20.0, 16.0: 64.0})
    declared, bound = (equal_quality(plain(), arm, True, Plan(length)) for length in (8.0, 16.0))
    assert declared.primary == declared.lengths[0]
    assert bound.primary == bound.lengths[2]
    taken = equal_quality(plain(), arm, True)
    assert taken.primary == taken.lengths[1]
    assert any("not declared in advance" in note for note in taken.notes)
    assert not any("not declared in advance" in note for note in declared.notes)
    with pytest.raises(ValueError, match=r"primary length 9\.0 is not a length of grow"):
        equal_quality(plain(), arm, True, Plan(9.0))


def test_results_are_written_as_json() -> None:
    arm = helped({2.0: 4.0, 4.0: 13.0, 8.0: 18.0, 12.0: 23.0, 16.0: 64.0}, cost=4.0)
    found = equal_quality(plain(), arm, True, Plan(sharers=(4,)))
    read = json.loads(json.dumps(dataclasses.asdict(found), allow_nan=False))
    assert read["lengths"][4]["speedup"] == {
        "value": None,
        "more_than": 2.0,
        "less_than": None,
        "interval": {"low": 2.0, "high": None},
    }
    assert set(read["line"]["head_start_shared"]) == {"4"}
