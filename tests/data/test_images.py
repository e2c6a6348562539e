"""Subsets, hold-outs and fingerprints of labelled images."""

import pytest
import torch

from w2skd.data.images import ImageSet, balanced_subset, split_validation
from w2skd.errors import DataError


def image_set(count: int = 12, classes: tuple[str, ...] = ("a", "b", "c")) -> ImageSet:
    pixels = (torch.arange(count * 3 * 8 * 8) * 37 % 256).to(torch.uint8).view(count, 3, 8, 8)
    return ImageSet(pixels, torch.arange(count) % len(classes), classes)


def test_select_takes_examples_in_the_order_given():
    images = image_set()
    some = images.select(torch.tensor([5, 0]))
    assert len(some) == 2
    assert torch.equal(some.images, images.images[[5, 0]])
    assert some.labels.tolist() == [2, 0]
    assert some.classes == images.classes


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2)),
    ],
)
def test_an_image_set_asserts_its_shapes_and_types(images: torch.Tensor, labels: torch.Tensor):
    with pytest.raises(AssertionError):
        ImageSet(images, labels, ("a",))


def test_fingerprint_sees_pixels_labels_names_and_shape_but_not_strides():
    images = image_set()
    mark = images.fingerprint()
    assert len(mark) == 64
    assert image_set().fingerprint() == mark
    strided = images.images.to(memory_format=torch.channels_last)
    assert ImageSet(strided, images.labels, images.classes).fingerprint() == mark

    pixels, labels = images.images.clone(), images.labels.clone()
    pixels[11, 2, 7, 7] ^= 1
    labels[3] = 1
    others = [
        ImageSet(pixels, images.labels, images.classes),
        ImageSet(images.images, labels, images.classes),
        ImageSet(images.images, images.labels, ("a", "b", "d")),
        ImageSet(images.images.view(12, 3, 4, 16), images.labels, images.classes),
        images.select(torch.arange(11)),
    ]
    assert len({mark, *(other.fingerprint() for other in others)}) == 6


def test_fingerprint_of_more_than_one_block():
    pixels = torch.zeros(2500, 3, 8, 8, dtype=torch.uint8)
    labels = torch.zeros(2500, dtype=torch.int64)
    mark = ImageSet(pixels, labels, ("a",)).fingerprint()
    pixels[-1, 0, 0, 0] = 1
    assert ImageSet(pixels, labels, ("a",)).fingerprint() != mark


def test_balanced_subset_is_balanced_seeded_and_nested():
    labels = torch.arange(1000) * 7 % 10
    chosen = balanced_subset(labels, 200, seed=3)
    assert chosen.unique().numel() == 200
    assert labels[chosen].bincount().tolist() == [20] * 10
    assert torch.equal(chosen, balanced_subset(labels, 200, seed=3))
    assert torch.equal(chosen[:57], balanced_subset(labels, 57, seed=3))
    assert labels[chosen[:57]].bincount().sub(5).unique().tolist() == [0, 1]
    assert set(chosen.tolist()) != set(balanced_subset(labels, 200, seed=4).tolist())


def test_classes_that_run_out_leave_their_places_to_others():
    labels = torch.tensor([0] * 3 + [1] * 50 + [2] * 50)
    assert labels[balanced_subset(labels, 43, seed=0)].bincount().tolist() == [3, 20, 20]
    assert balanced_subset(labels, 103, seed=0).sort().values.tolist() == list(range(103))


def test_more_than_there_is_is_refused():
    with pytest.raises(DataError, match=r"11 examples.*only 10"):
        balanced_subset(torch.zeros(10, dtype=torch.int64), 11, seed=0)


def test_split_holds_out_the_same_share_of_every_class():
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 10)
    train, held = split_validation(labels, ("a", "b", "c"), 0.1, seed=1)
    assert labels[held].bincount().tolist() == [10, 5, 1]
    assert torch.cat([train, held]).sort().values.tolist() == list(range(160))
    assert torch.equal(train, train.sort().values)
    assert torch.equal(held, split_validation(labels, ("a", "b", "c"), 0.1, seed=1)[1])
    assert not torch.equal(held, split_validation(labels, ("a", "b", "c"), 0.1, seed=2)[1])


@pytest.mark.parametrize(("share", "held"), [(0.001, 1), (0.999, 4)])
def test_a_split_leaves_an_example_on_either_side(share: float, held: int):
    labels = torch.zeros(5, dtype=torch.int64)
    assert len(split_validation(labels, ("a",), share, seed=0)[1]) == held


def test_a_class_of_one_cannot_be_split():
    with pytest.raises(DataError, match="'rare'"):
        split_validation(torch.tensor([0, 0, 1]), ("common", "rare"), 0.5, seed=0)
