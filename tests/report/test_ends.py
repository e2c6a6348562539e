"""Pairing of the final scores of two arms."""

import math

import pytest

from w2skd.report.ends import Ends, pair

NAN = math.nan
PLAIN = Ends("plain", (8.0, 16.0), (0, 1, 2, 3), ((0.50, 0.60), (0.51, 0.61), (0.52, 0.62), (0.53, 0.63)))
HELPED = Ends(
    "helped",
    (4.0, 8.0),
    (3, 1, 2, 7),
    ((0.43, 0.58), (0.41, NAN), (0.42, 0.57), (0.47, 0.59)),
    teachers=("b", "a", "a", "b"),
    teacher_costs=(4.0, 2.0, 2.0, 4.0),
)


def test_runs_are_paired_by_seed_not_by_place() -> None:
    found = pair(PLAIN, HELPED, (4.0,), True)
    assert found is not None
    assert found.seeds == (3, 1, 2)
    assert found.ends == ((0.43, 0.41, 0.42),)
    assert found.curves == ((0.53, 0.63), (0.51, 0.61), (0.52, 0.62))
    assert found.replicates.groups == ((0,), (1, 2))
    assert found.cost == 3.0  # the mean over teachers


def test_a_seed_without_one_of_the_runs_is_left_out() -> None:
    found = pair(PLAIN, HELPED, (4.0, 8.0), True)
    assert found is not None
    assert found.seeds == (3, 2)
    assert found.ends == ((0.43, 0.42), (0.58, 0.57))


def test_lower_is_better_changes_the_sign() -> None:
    found = pair(PLAIN, HELPED, (4.0,), False)
    assert found is not None
    assert found.ends == ((-0.43, -0.41, -0.42),)
    assert found.curves[0] == (-0.53, -0.63)


@pytest.mark.parametrize(("finished", "lengths", "seeds"), [(1, (8.0,), 4), (2, (8.0, 16.0), 2), (3, (8.0, 16.0), 3)])
def test_a_length_that_few_seeds_have_finished_excludes_no_seed(
    finished: int, lengths: tuple[float, ...], seeds: int
) -> None:
    values = tuple((0.5, 0.6 if seed < finished else NAN) for seed in range(4))
    helped = Ends("helped", (8.0,), (0, 1, 2, 3), ((0.55,),) * 4)
    found = pair(Ends("plain", (8.0, 16.0), (0, 1, 2, 3), values), helped, (8.0,), True)
    assert found is not None
    assert (found.reference_lengths, len(found.seeds)) == (lengths, seeds)


def test_without_common_seeds_there_is_no_pairing() -> None:
    other = Ends("helped", (8.0,), (8, 9), ((0.5,), (0.5,)))
    assert pair(PLAIN, other, (8.0,), True) is None


def test_without_removes_seeds_everywhere() -> None:
    found = pair(PLAIN, HELPED, (4.0,), True)
    assert found is not None
    rest = found.without([1])
    assert (rest.seeds, rest.ends, rest.curves) == ((3, 2), ((0.43, 0.42),), ((0.53, 0.63), (0.52, 0.62)))
    assert (rest.costs, rest.replicates.groups) == ((4.0, 2.0), ((0,), (1,)))


@pytest.mark.parametrize(
    ("lengths", "seeds", "values", "message"),
    [
        ((8.0, 4.0), (0,), ((0.1, 0.2),), "ascend"),
        ((0.0, 4.0), (0,), ((0.1, 0.2),), "positive"),
        ((4.0,), (0, 0), ((0.1,), (0.2,)), "repeat"),
        ((4.0,), (0, 1), ((0.1,),), r"must be \[2, 1\]"),
        ((4.0, 8.0), (0,), ((0.1,),), r"must be \[1, 2\]"),
    ],
)
def test_wrong_shapes_are_refused(
    lengths: tuple[float, ...], seeds: tuple[int, ...], values: tuple[tuple[float, ...], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Ends("plain", lengths, seeds, values)


def test_teachers_and_costs_are_one_per_seed() -> None:
    with pytest.raises(ValueError, match="teacher_costs of plain must have 2 entries, got 1"):
        Ends("plain", (8.0,), (0, 1), ((0.1,), (0.2,)), teacher_costs=(3.0,))
