"""Counter randomness against the same hash in plain Python integers, and against crude statistics."""

import math

import pytest
import torch

from w2skd.data.counter import bits, normal, permutation, randint, seed_from, uniform

MASK = 2**64 - 1
NEAR = {"rtol": 0, "atol": 5e-5}


def splitmix64(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def reference(seed: int, *counters: int) -> int:
    state = splitmix64(seed & MASK)
    for counter in counters:
        state = splitmix64(state ^ (counter & MASK))
    return state


def unsigned(value: torch.Tensor) -> list[int]:
    return [item & MASK for item in value.flatten().tolist()]


def test_published_values_of_splitmix64():
    # Vigna's splitmix64.c: the first outputs for the states 0 and 1234567.
    assert unsigned(bits(0)) == [0xE220A8397B1DCDAF]
    assert unsigned(bits(1234567)) == [6457827717110365317]


def test_bits_equal_the_integer_reference_for_integers_and_tensors():
    edges = [0, 1, 2, 41, 2**31, 2**62 + 3, -1, -(2**63)]
    expected = [reference(seed, 3, edge, other) for seed in (0, 7) for edge in edges for other in (0, 5)]
    first, second = torch.tensor(edges)[:, None], torch.tensor([0, 5])
    assert [bit for seed in (0, 7) for bit in unsigned(bits(seed, 3, first, second))] == expected
    one_by_one = [bits(seed, 3, torch.tensor(edge), other) for seed in (0, 7) for edge in edges for other in (0, 5)]
    assert [bit for value in one_by_one for bit in unsigned(value)] == expected
    all_integers = [bits(seed, 3, edge, other) for seed in (0, 7) for edge in edges for other in (0, 5)]
    assert [bit for value in all_integers for bit in unsigned(value)] == expected


def test_seeds_may_be_any_integer():
    assert unsigned(bits(-1, torch.tensor([4]))) == [reference(-1, 4)]
    assert unsigned(bits(2**64 - 1, 4)) == [reference(-1, 4)]


def test_pinned_values():
    # These must never change: recorded runs depend on them.
    torch.testing.assert_close(
        uniform(5, 1, torch.arange(3)),
        torch.tensor([reference(5, 1, i) >> 40 for i in range(3)]) / 2**24,
        rtol=0,
        atol=0,
    )
    assert permutation(10, 0, 0).tolist() == [2, 8, 7, 0, 9, 1, 6, 3, 5, 4]
    assert seed_from(1, 2, 3) == 7510213797696614745
    assert randint(1000, 0, torch.arange(5)).tolist() == [652, 34, 842, 781, 117]


def test_counters_broadcast_and_small_integer_types_count_alike():
    values = uniform(1, torch.arange(3)[:, None], torch.arange(4))
    assert values.shape == (3, 4)
    assert values.dtype is torch.float32
    assert torch.equal(values[2], uniform(1, 2, torch.arange(4)))
    assert torch.equal(values[:, 3], uniform(1, torch.arange(3, dtype=torch.int32), 3))
    assert uniform(1, 2, 3).shape == ()


def test_a_counter_must_be_whole():
    with pytest.raises(AssertionError, match="float32"):
        bits(0, torch.rand(3))


def test_uniform_is_uniform_and_below_one():
    values = uniform(3, torch.arange(200_000))
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.double().mean().item() - 0.5) < 0.003
    counts = torch.histc(values, 50, 0, 1)
    chi2 = ((counts - 4000) ** 2 / 4000).sum().item()
    assert 20 < chi2 < 100  # 49 degrees of freedom: 49 +- 10


def test_neighbouring_counters_and_seeds_are_uncorrelated():
    index = torch.arange(100_000)
    base = uniform(0, 0, index)
    for other in (uniform(0, 0, index + 1), uniform(0, 1, index), uniform(1, 0, index), uniform(0, 0, index, 0)):
        correlation = torch.corrcoef(torch.stack([base, other]))[0, 1].item()
        assert abs(correlation) < 0.015


def test_the_order_of_counters_matters():
    assert bits(0, 1, 2) != bits(0, 2, 1)
    assert bits(0, 1) != bits(1, 0)


def test_normal_is_box_and_mullers_formula():
    def expected(*counters):
        value = reference(*counters)
        high, low = value >> 32, value & (2**32 - 1)
        return math.sqrt(-2 * math.log((high + 0.5) / 2**32)) * math.cos(2 * math.pi * low / 2**32)

    values = normal(5, 1, torch.arange(100))
    assert values.dtype is torch.float32
    torch.testing.assert_close(values, torch.tensor([expected(5, 1, i) for i in range(100)]), rtol=1e-6, atol=1e-7)
    # As recorded runs have it.
    torch.testing.assert_close(normal(0, torch.arange(4)), torch.tensor([-0.2920, 0.5431, 0.5844, 0.4865]), **NEAR)
    assert normal(5, 1, 3).shape == ()
    assert normal(5, 1, 3) == values[3]
    assert torch.equal(normal(5, torch.arange(3)[:, None], torch.arange(100))[1], values)


def test_normal_has_the_moments_and_tails_of_the_normal_distribution():
    values = normal(7, torch.arange(1_000_000)).double()
    for power, moment, deviation in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((values**power).mean().item() - moment) < 4 * math.sqrt(deviation / len(values))
    for bound in (1.0, 2.0, 3.0, 4.0):
        share = math.erfc(bound / math.sqrt(2))
        for side in (values > bound, values < -bound):
            assert abs(side.sum().item() - 5e5 * share) < 4 * math.sqrt(5e5 * share) + 1
    neighbours = torch.corrcoef(torch.stack([values[:-1], values[1:]]))[0, 1].item()
    assert abs(neighbours) < 0.004


def test_normal_is_finite_at_the_ends_of_the_uniform_numbers(monkeypatch):
    ends = torch.tensor([0, -1, 2**32 - 1, -(2**32), 2**63 - 1, -(2**63)])  # all zeros, all ones, half and half
    monkeypatch.setattr("w2skd.data.counter.bits", lambda *_, **__: ends)
    values = normal(0, 1)
    assert values.isfinite().all()
    assert values[0].item() == pytest.approx(math.sqrt(-2 * math.log(2.0**-33)))
    assert values[0] > 6.7
    assert ends[1] == -1, "the hash was changed in place"


def test_randint_covers_its_range_evenly():
    values = randint(9, 4, torch.arange(90_000))
    assert values.dtype is torch.int64
    counts = values.bincount(minlength=9)
    assert len(counts) == 9
    assert (counts - 10_000).abs().max() < 500
    assert randint(1, 4, torch.arange(10)).tolist() == [0] * 10
    assert randint(2**31 - 1, 4, torch.arange(1000)).max() < 2**31 - 1


def test_permutation_holds_every_index_once_and_changes_with_seed_and_epoch():
    order = permutation(1000, 2, 3)
    assert order.dtype is torch.int64
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(order, permutation(1000, 2, 3))
    assert not torch.equal(order, permutation(1000, 2, 4))
    assert not torch.equal(order, permutation(1000, 3, 3))
    assert not torch.equal(order, torch.arange(1000))
    assert permutation(0, 0, 0).shape == (0,)


def test_seed_from_fits_torch_and_tells_counters_apart():
    seeds = {seed_from(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(seed_from(1, 2))
    assert seed_from(1) != seed_from(1, 0)


def test_torch_generator_is_not_touched():
    before = torch.get_rng_state()
    uniform(0, torch.arange(10))
    randint(5, 0, 1)
    permutation(10, 0, 0)
    seed_from(1)
    assert torch.equal(before, torch.get_rng_state())
