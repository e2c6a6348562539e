from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from w2skd.errors import CheckpointError
from w2skd.weights.classes import AdaptedClassifier, ClassMatch, match_classes
from w2skd.weights.imagenet import imagenet_ids

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Recorder(nn.Module):
    """Five logits that are linear in the mean colour; keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(15.0).reshape(5, 3))
        self.seen = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return functional.linear(images.mean(dim=(2, 3)), self.weight)


def normalized(pixels: Tensor, by: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    mean, std = (torch.tensor(values, dtype=torch.float64).reshape(1, 3, 1, 1) for values in by)
    return (pixels - mean) / std


def test_the_model_sees_images_normalised_its_way() -> None:
    pixels = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    model = Recorder()
    adapted = AdaptedClassifier(model, ours=HALVES, theirs=IMAGENET)
    adapted(normalized(pixels, HALVES).float())
    torch.testing.assert_close(model.seen, normalized(pixels, IMAGENET).float())


def test_where_nothing_differs_the_model_gets_the_very_tensor() -> None:
    images, model = torch.randn(2, 3, 6, 6), Recorder()
    logits = AdaptedClassifier(model, ours=IMAGENET, theirs=IMAGENET, image_size_px=6)(images)
    assert model.seen is images
    assert torch.equal(logits, model(images))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_smaller_image_is_antialiased_and_then_renormalised(interpolation: str) -> None:
    pixels = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    model = Recorder()
    adapted = AdaptedClassifier(model, ours=HALVES, theirs=IMAGENET, image_size_px=5, interpolation=interpolation)
    adapted(normalized(pixels, HALVES).float())
    smaller = functional.interpolate(pixels, (5, 5), mode=interpolation, antialias=True)
    torch.testing.assert_close(model.seen, normalized(smaller, IMAGENET).float(), atol=1e-5, rtol=1e-5)


def test_stripes_too_fine_for_the_smaller_image_turn_grey() -> None:
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[..., ::2] = 1.0
    model = Recorder()
    AdaptedClassifier(model, ours=HALVES, theirs=HALVES, image_size_px=8)(stripes)
    assert model.seen.shape == (1, 3, 8, 8)
    assert (model.seen - 0.5).abs().max() < 0.05


def test_logits_are_picked_in_the_order_of_our_classes() -> None:
    images, model = torch.randn(4, 3, 6, 6), Recorder()
    adapted = AdaptedClassifier(model, ours=HALVES, theirs=HALVES, columns=[3, 0])
    assert torch.equal(adapted(images), model(images)[:, [3, 0]])


def test_it_keeps_nothing_of_its_own_and_moves_with_its_model() -> None:
    adapted = AdaptedClassifier(Recorder(), ours=HALVES, theirs=IMAGENET, columns=[1])
    assert list(adapted.state_dict()) == ["model.weight"]
    assert [name for name, _ in adapted.named_parameters()] == ["model.weight"]
    adapted.to("meta")
    assert adapted(torch.empty(2, 3, 6, 6, device="meta")).shape == (2, 1)


def test_channels_last_survives() -> None:
    model = Recorder()
    adapted = AdaptedClassifier(model, ours=HALVES, theirs=IMAGENET, image_size_px=6)
    adapted(torch.randn(2, 3, 12, 12).to(memory_format=torch.channels_last))
    assert model.seen.is_contiguous(memory_format=torch.channels_last)


def test_images_to_be_resized_are_squares() -> None:
    with pytest.raises(AssertionError, match="not squares"):
        AdaptedClassifier(Recorder(), ours=HALVES, theirs=HALVES, image_size_px=4)(torch.zeros(1, 3, 6, 8))


SHORT_NAMES = ["tench, Tinca tinca", "crane", "English springer", "crane", "jack-o'-lantern"]
IDS = ["n01440764", "n02012849", "n02102040", "n03126707", "n03590841"]


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (["n02102040", "n01440764"], ((2, 0), "its 5 classes contain the data's 2, matched by ImageNet id")),
        (["English springer"], ((2,), "its 5 classes contain the data's 1, matched by name")),
        (
            ["english_springer", "Tench", "jack_o_lantern"],
            ((2, 0, 4), "its 5 classes contain the data's 3, matched by similar name"),
        ),
        (["Tinca-tinca"], ((0,), "its 5 classes contain the data's 1, matched by similar name")),
        (
            ["tench", "English_Springer", "n02012849"],
            ((0, 2, 1), "its 5 classes contain the data's 3, matched by similar name and ImageNet id"),
        ),
        (IDS, (None, "the same 5 classes")),
        (IDS[::-1], ((4, 3, 2, 1, 0), "the same 5 classes in another order")),
    ],
)
def test_classes_are_matched_by_id_by_name_or_by_a_similar_name(
    ours: list[str], expected: tuple[tuple[int, ...] | None, str]
) -> None:
    assert match_classes(SHORT_NAMES, IDS, ours, 5) == ClassMatch(*expected)


def test_an_exact_name_goes_before_a_similar_one() -> None:
    assert match_classes(["Ship", "ship", "sail"], None, ["ship"], 3).columns == (1,)


def test_all_of_imagenet_matches_itself_and_part_of_it() -> None:
    ids = imagenet_ids()
    assert match_classes(None, ids, ids, 1000) == ClassMatch(None, "the same 1,000 classes")
    ten = ["n03888257", "n01440764"]
    match = match_classes(None, ids, ten, 1000)
    assert match.columns is not None
    assert [ids[column] for column in match.columns] == ten
    assert match.account == "its 1,000 classes contain the data's 2, matched by ImageNet id"


def test_with_unknown_names_the_order_is_assumed_and_said() -> None:
    match = match_classes(None, None, ["a", "b"], 2)
    assert match == ClassMatch(None, "unknown names: assumed to be the data's 2 in the same order", assumed=True)


@pytest.mark.parametrize(
    ("theirs", "ids", "ours", "count", "problem"),
    [
        (None, None, ["a"], 1000, "has 1,000 classes of unknown names, the data has 1"),
        (["a", "b"], None, ["a"], 3, "names 2 classes, but its head has 3"),
        (
            SHORT_NAMES,
            IDS,
            ["crane"],
            5,
            r"'crane' of the data could be the teacher's number 1 'crane' \(n02012849\) or number 3 'crane' "
            r"\(n03126707\): call it by the teacher's id",
        ),
        (["a, b", "b, c"], None, ["B"], 2, "'B' of the data could be the teacher's number 0 'a, b' or number 1 'b, c'"),
        (SHORT_NAMES, IDS, ["tench", "Tinca tinca"], 5, "'tench' and 'Tinca tinca' of the data are both the teacher's"),
        (
            ["cat", "dog"],
            None,
            ["cat", "dogs", "w", "x", "y", "z"],
            2,
            r"doesn't know 5 of the data's 6 classes: 'dogs', 'w', 'x', \.\.\.; call them",
        ),
        (["cat", "dog"], None, ["cat", "dogs"], 2, r"1 of the data's 2 classes: 'dogs' \(did you mean 'dog'\?\); call"),
    ],
)
def test_classes_that_cannot_be_matched_are_refused(
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
    # Known places: the first, Imagenette's parachute, the last.
    assert (ids[0], ids[701], ids[999]) == ("n01440764", "n03888257", "n15075141")
