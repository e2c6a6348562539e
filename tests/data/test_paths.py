import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2skd.data.paths import PathList

NAMES = st.text(st.characters(blacklist_characters="\0/", blacklist_categories=["Cs"]), min_size=1, max_size=8)


@given(st.lists(st.lists(NAMES, min_size=1, max_size=3).map(lambda parts: Path("/", *parts)), max_size=9))
def test_paths_come_back_also_in_another_process(paths: list[Path]) -> None:
    kept = PathList(paths)
    assert len(kept) == len(paths)
    assert list(pickle.loads(pickle.dumps(kept))) == list(kept) == paths
    assert list(kept[1:3]) == paths[1:3]
    assert [kept[place] for place in range(-len(paths), 0)] == paths


def test_a_name_that_is_no_unicode_comes_back() -> None:
    path = Path("/data/\udcff.png")
    assert PathList([path])[0] == path
    with pytest.raises(IndexError):
        PathList([path])[1]


def test_a_million_paths_take_little_memory() -> None:
    paths = PathList(Path(f"/data/train/n{number % 1000:08d}/{number:08d}.JPEG") for number in range(20_000))
    assert len(pickle.dumps(paths)) < 20_000 * 50
