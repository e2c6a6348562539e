"""Positions of examples in batches."""

from itertools import islice

import pytest
import torch

from w2skd.data.counter import permutation
from w2skd.data.order import BatchOrder, Slice
from w2skd.errors import UsageError
from w2skd.platform.ranks import Ranks


def test_a_last_batch_is_filled_up_from_the_start_of_its_order():
    order = BatchOrder(examples=10, batch_size=4, repeats=1, seed=7)
    assert order.steps_per_epoch == 3
    for epoch in (0, 5):
        expected = permutation(10, 7, epoch).tolist()
        assert order.ids(epoch).tolist() == expected + expected[:2]
    assert order.repeat_numbers().tolist() == [0] * 12


def test_repeats_put_a_row_of_examples_into_a_batch_again_and_again():
    order = BatchOrder(examples=10, batch_size=6, repeats=3, seed=7)
    assert order.steps_per_epoch == 2
    ids, repeats = order.ids(1).view(2, 3, 2), order.repeat_numbers().view(2, 3, 2)
    expected = permutation(10, 7, 1)
    for batch in range(2):
        for again in range(3):
            assert torch.equal(ids[batch, again], expected[2 * batch : 2 * batch + 2])
            assert repeats[batch, again].tolist() == [again, again]


def test_slices_number_the_parts_of_a_batch():
    order = BatchOrder(examples=8, batch_size=4, repeats=1, seed=0)
    slices = order.slices(1, ranks=Ranks(1, 2), accumulate=2)
    assert list(islice(slices, 3)) == [Slice(0, 1, 1, 5, 6), Slice(0, 1, 3, 7, 8), Slice(1, 2, 1, 1, 2)]


def test_batches_that_cannot_be_cut_are_refused_at_once():
    with pytest.raises(UsageError, match=r"batch_size: 4 .* 3 ranks x 2 .* multiple of 6"):
        BatchOrder(8, 4, 1, 0).slices(0, ranks=Ranks(0, 3), accumulate=2)
    with pytest.raises(
        UsageError, match=r"batch_size: 4 is not a multiple of data\.repeats \(3\); set a multiple of 3"
    ):
        BatchOrder(8, 4, 3, 0)
