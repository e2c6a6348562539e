import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from w2skd.errors import GrowthError
from w2skd.method.channels import (
    NEW,
    check_whole_multiple,
    concatenated,
    fan_in_shares,
    in_blocks,
    interleaved,
    keeps_group_statistics,
    tiled,
)

SIZES = st.tuples(st.integers(1, 24), st.integers(0, 40)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_known_maps():
    assert interleaved(2, 4).tolist() == [0, 0, 1, 1]
    assert interleaved(2, 5).tolist() == [0, 0, 0, 1, 1]
    assert tiled(2, 5).tolist() == [0, 1, 0, 1, 0]
    assert in_blocks(tiled(2, 4), 3).tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    assert concatenated([interleaved(2, 4), tiled(2, 3)]).tolist() == [0, 0, 1, 1, 2, 3, 2]


@pytest.mark.parametrize("repeat", [interleaved, tiled])
@given(sizes=SIZES)
def test_maps_cover_every_channel_about_equally_often(repeat, sizes):
    small, large = sizes
    counts = torch.bincount(repeat(small, large), minlength=small)
    assert len(counts) == small
    assert counts.sum() == large
    assert counts.max() - counts.min() <= (large % small > 0)


@pytest.mark.parametrize("repeat", [interleaved, tiled])
def test_a_layer_cannot_shrink(repeat):
    with pytest.raises(GrowthError, match="8 channels cannot hold the teacher's 16: use at least 16"):
        repeat(16, 8)


@given(first=SIZES, second=SIZES)
def test_parts_of_a_concatenation_keep_to_themselves(first, second):
    parts = [interleaved(*first), tiled(*second)]
    values = [torch.randn(small) for small, _ in (first, second)]
    expected = torch.cat([value[part] for value, part in zip(values, parts, strict=True)])
    assert torch.equal(torch.cat(values)[concatenated(parts)], expected)


@given(sizes=SIZES, pixels=st.integers(1, 5))
def test_blocks_are_flattened_maps(sizes, pixels):
    channels = interleaved(*sizes)
    maps = torch.randn(sizes[0], pixels)
    assert torch.equal(maps.flatten()[in_blocks(channels, pixels)], maps[channels].flatten())


@given(sizes=SIZES, outs=st.integers(1, 6), seed=st.integers(0, 99))
@settings(deadline=None)
def test_shares_of_each_channel_sum_to_one_for_every_output(sizes, outs, seed):
    ins = interleaved(*sizes)
    shares = fan_in_shares(outs, ins, generator(seed))
    sums = torch.zeros(outs, sizes[0], dtype=torch.float64).index_add_(1, ins, shares)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-14)
    assert (shares > 0).all()
    alone = torch.bincount(ins)[ins] == 1
    assert (shares[:, alone] == 1).all()


def test_shares_differ_between_outputs_and_repeat_by_seed():
    shares = fan_in_shares(8, interleaved(4, 8), generator())
    assert len(shares[:, 0].unique()) == 8
    assert torch.equal(shares, fan_in_shares(8, interleaved(4, 8), generator()))
    assert not torch.equal(shares, fan_in_shares(8, interleaved(4, 8), generator(1)))


def test_new_inputs_have_no_share():
    shares = fan_in_shares(5, torch.tensor([NEW, 0, NEW, 1, 1]), generator())
    assert (shares[:, [0, 2]] == 0).all()
    assert (shares[:, 1] == 1).all()
    torch.testing.assert_close(shares[:, 3] + shares[:, 4], torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("channels", "small_groups", "large_groups", "expected"),
    [
        (interleaved(8, 16), 1, 1, True),
        (tiled(8, 16), 1, 1, True),
        (interleaved(8, 16), 2, 2, True),
        (tiled(8, 16), 2, 2, False),  # each group would hold channels of both
        (interleaved(8, 12), 1, 1, False),  # some channels would count twice
        (interleaved(8, 16), 2, 4, False),  # each group would hold half of the channels of one
        (concatenated([tiled(4, 8)] * 2), 2, 4, True),
        (interleaved(8, 16), 3, 2, False),
    ],
)
def test_group_statistics(channels, small_groups, large_groups, expected):
    assert keeps_group_statistics(channels, small_groups, large_groups) is expected
    if len(channels) % large_groups == 0 and 8 % small_groups == 0:
        values = torch.randn(8, generator=generator(), dtype=torch.float64)
        groups = [values.view(small_groups, -1), values[channels].view(large_groups, -1)]
        small, large = (torch.stack([each.mean(1), each.var(1, correction=0)], 1) for each in groups)
        small = small.repeat_interleave(large_groups // small_groups, 0) if expected else small
        assert (small.shape == large.shape and torch.allclose(small, large)) is expected


@pytest.mark.parametrize(
    ("large", "nearest"), [(1024, "use 768 or 1536"), (160, "use 768 or 1536"), (1600, "use 1536 or 2304")]
)
def test_sizes_that_break_the_statistics_are_refused_with_those_that_go(large, nearest):
    with pytest.raises(GrowthError, match=f"norm: its width is {large}, not a multiple of .* 768: {nearest}"):
        check_whole_multiple("norm: its width", 768, large)
    check_whole_multiple("norm: its width", 768, 1536)
