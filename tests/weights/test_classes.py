import pytest

from w2skd.errors import CheckpointError
from w2skd.weights.classes import ClassMatch, match_classes
from w2skd.weights.imagenet import imagenet_ids

SHORT_NAMES = ["tench, Tinca tinca", "crane", "English springer", "crane", "jack-o'-lantern"]
IDS = ["n01440764", "n02012849", "n02102040", "n03126707", "n03590841"]


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (["n02102040", "n01440764"], ((2, 0), "the data's 2 classes are among its 5, matched by ImageNet id")),
        (["English springer"], ((2,), "the data's 1 classes are among its 5, matched by name")),
        (
            ["english_springer", "Tench", "jack_o_lantern"],
            ((2, 0, 4), "the data's 3 classes are among its 5, matched by similar name"),
        ),
        (["Tinca-tinca"], ((0,), "the data's 1 classes are among its 5, matched by similar name")),
        (
            ["tench", "English_Springer", "n02012849"],
            ((0, 2, 1), "the data's 3 classes are among its 5, matched by similar name and ImageNet id"),
        ),
        (IDS, (None, "the same 5 classes")),
        (IDS[::-1], ((4, 3, 2, 1, 0), "the same 5 classes in a different order")),
    ],
)
def test_classes_are_matched_by_id_by_name_or_by_a_similar_name(
    ours: list[str], expected: tuple[tuple[int, ...] | None, str]
) -> None:
    assert match_classes(SHORT_NAMES, IDS, ours, 5) == ClassMatch(*expected)


def test_an_exact_name_takes_precedence_over_a_similar_one() -> None:
    assert match_classes(["Ship", "ship", "sail"], None, ["ship"], 3).columns == (1,)


def test_imagenet_matches_itself_and_a_part_of_itself() -> None:
    ids = imagenet_ids()
    assert match_classes(None, ids, ids, 1000) == ClassMatch(None, "the same 1,000 classes")
    ten = ["n03888257", "n01440764"]
    match = match_classes(None, ids, ten, 1000)
    assert match.columns is not None
    assert [ids[column] for column in match.columns] == ten
    assert match.note == "the data's 2 classes are among its 1,000, matched by ImageNet id"


def test_with_unknown_names_the_order_is_assumed_and_reported() -> None:
    match = match_classes(None, None, ["a", "b"], 2)
    assert match == ClassMatch(None, "class names unknown: assumed to be the data's 2 in the same order", assumed=True)


@pytest.mark.parametrize(
    ("theirs", "ids", "ours", "count", "problem"),
    [
        (None, None, ["a"], 1000, "has 1,000 unnamed classes, the data has 1: cannot match"),
        (["a", "b"], None, ["a"], 3, "names 2 classes, but its head has 3"),
        (
            SHORT_NAMES,
            IDS,
            ["crane"],
            5,
            r"'crane' of the data could be the teacher's number 1 'crane' \(n02012849\) or number 3 'crane' "
            r"\(n03126707\): rename it to the teacher's id",
        ),
        (["a, b", "b, c"], None, ["B"], 2, "'B' of the data could be the teacher's number 0 'a, b' or number 1 'b, c'"),
        (
            SHORT_NAMES,
            IDS,
            ["tench", "Tinca tinca"],
            5,
            "'tench' and 'Tinca tinca' of the data both match the teacher's",
        ),
        (
            ["cat", "dog"],
            None,
            ["cat", "dogs", "w", "x", "y", "z"],
            2,
            r"lacks 5 of the data's 6 classes: 'dogs', 'w', 'x', \.\.\.; rename them",
        ),
        (
            ["cat", "dog"],
            None,
            ["cat", "dogs"],
            2,
            r"1 of the data's 2 classes: 'dogs' \(did you mean 'dog'\?\); rename",
        ),
    ],
)
def test_classes_that_cannot_be_matched_are_rejected(
    theirs: list[str] | None, ids: list[str] | None, ours: list[str], count: int, problem: str
) -> None:
    with pytest.raises(CheckpointError, match=problem) as caught:
        match_classes(theirs, ids, ours, count)
    assert "\n" not in str(caught.value)


def test_imagenet_has_a_thousand_ids_in_the_order_of_the_outputs() -> None:
    ids = imagenet_ids()
    assert len(set(ids)) == 1000
    assert list(ids) == sorted(ids)
    assert all(len(one) == 9 and one[0] == "n" and one[1:].isdigit() for one in ids)
    # Known positions: the first, Imagenette's parachute, the last.
    assert (ids[0], ids[701], ids[999]) == ("n01440764", "n03888257", "n15075141")
