import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2skd.data.names import alike_in, all_alike, composed, look_alike


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ("caf\u00e9", "cafe\u0301", "their Unicode form (composed or decomposed characters)"),
        ("train\\1.png", "train/1.png", "slash and backslash"),
        ("sea lion ", "sea  lion", "spaces"),
        ("Cat", "cat", "letter case"),
        ("\uff23at", "cat ", "Unicode form, letter case or spaces"),
    ],
)
def test_names_that_look_alike_are_told_apart(one: str, other: str, difference: str) -> None:
    assert alike_in(one, ["zebra", other]) == f"'{one}' and '{other}' differ only in {difference}"
    assert all_alike(["zebra", one, other]) == [f"'{one}' and '{other}' differ only in {difference}"]


def test_different_names_are_not_alike() -> None:
    assert alike_in("cat", ["cat", "cats"]) is None
    assert all_alike(["cat", "dog"]) == []


@given(st.text(max_size=12))
def test_composing_and_comparing_are_stable(name: str) -> None:
    assert composed(composed(name)) == composed(name)
    assert look_alike(name) == look_alike(composed(name))
