import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2skd.data.paths import PathList, TextList, prefix_of

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


@given(st.lists(st.text(max_size=8), max_size=9), st.lists(st.text(max_size=8), max_size=9))
def test_any_strings_survive(first: list[str], second: list[str]) -> None:
    kept = TextList(first)
    assert len(kept) == len(first)
    assert list(pickle.loads(pickle.dumps(kept))) == list(kept) == first
    assert list(kept[::-2]) == first[::-2]
    assert [kept[place] for place in range(-len(first), 0)] == first
    assert list(TextList.joined([kept, TextList(second), kept])) == first + second + first


def test_strings_that_are_not_unicode_survive() -> None:
    texts = ["\udcff", "\udcc3\udca9", "\u00e9", "\ud800"]
    assert list(TextList(texts)) == texts
    for place in (4, -5):
        with pytest.raises(IndexError):
            TextList(texts)[place]


def test_joining_no_lists_gives_an_empty_one() -> None:
    assert list(TextList.joined([])) == list(PathList()) == []


@pytest.mark.parametrize("folder", ["/data/train", "/", ".", "a/../b"])
def test_paths_below_a_folder_are_those_that_pathlib_joins(folder: str) -> None:
    root, names = Path(folder), ["b/2.png", "a.png", "c/x y/\udcff.png"]
    paths = PathList.below(root, TextList(names))
    assert list(paths) == [root / name for name in names]
    assert [paths.text(place) for place in range(3)] == [str(root / name) for name in names]
    assert prefix_of(root) + "b/2.png" == str(root / "b/2.png")
    assert list(paths[1:]) == [root / name for name in names[1:]]


def test_a_million_paths_take_little_memory() -> None:
    paths = PathList(Path(f"/data/train/n{number % 1000:08d}/{number:08d}.JPEG") for number in range(20_000))
    assert len(pickle.dumps(paths)) < 20_000 * 50
