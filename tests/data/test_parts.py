import torch
from hypothesis import given
from hypothesis import strategies as st

from w2skd.data.parts import equal_parts, filled, part_size
from w2skd.platform.ranks import Ranks


@given(count=st.integers(1, 400), most=st.integers(1, 60), world=st.integers(1, 9))
def test_parts_cover_every_index_once_and_are_as_long_as_each_other(count: int, most: int, world: int) -> None:
    parts = equal_parts(range(count), most)
    assert [index for part in parts for index in part] == list(range(count))
    size = part_size(count, most)
    assert size <= most
    assert all(len(part) == size for part in parts[:-1])
    assert 1 <= len(parts[-1]) <= size
    shares = [Ranks(rank, world).share(parts) for rank in range(world)]
    assert sorted(part[0] for share in shares for part in share) == [part[0] for part in parts]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_nothing_has_no_parts() -> None:
    assert equal_parts(range(0), 8) == []


def test_a_short_batch_is_filled_with_its_last_row() -> None:
    rows = torch.arange(6).view(3, 2)
    assert torch.equal(filled(rows, 3), rows)
    assert filled(rows, 5).tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]
    images = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert filled(images, 5).is_contiguous(memory_format=torch.channels_last)
