from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from w2skd.data import identity
from w2skd.data.examples import ChosenExamples, PixelExamples
from w2skd.data.folder import FileExamples
from w2skd.data.identity import IdentifiedSet, differing_data, identify, identify_set
from w2skd.errors import DataError

CLASSES = ("cat", "dog")


def pixels(count: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (count, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def one_set(images: Tensor, labels: list[int] | None = None, classes: tuple[str, ...] = CLASSES) -> IdentifiedSet:
    known = [0] * len(images) if labels is None else labels
    return identify_set(PixelExamples(images), classes, labels=torch.tensor(known))


def test_equal_sets_are_equal_and_the_difference_is_named() -> None:
    images = pixels(6)
    before = identify(one_set(images), one_set(pixels(4, 1))).facts
    assert differing_data(before, identify(one_set(images.clone()), one_set(pixels(4, 1))).facts) is None
    changed = images.clone()
    changed[3, 0, 0, 0] += 1
    for other, words in (
        (one_set(changed), "training set: the content of the images"),
        (one_set(images, [0, 1, 0, 0, 0, 0]), "training set: the labels"),
        (one_set(images, classes=("cat", "fox")), "training set: the classes"),
        (one_set(images[:5]), "training set: the number of images, their names, the labels, the content of the images"),
    ):
        assert differing_data(before, identify(other, one_set(pixels(4, 1))).facts) == words
    both = identify(one_set(changed), one_set(pixels(4, 2))).facts
    assert differing_data(before, both) == (
        "training set: the content of the images; evaluation set: the content of the images"
    )


def test_boxes_and_names_are_part_of_the_identity(tmp_path: Path) -> None:
    paths = []
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4), (9, 9, ord(name[0]))).save(tmp_path / name)
        paths.append(tmp_path / name)
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    one = identify_set(FileExamples(tmp_path, tuple(paths)), CLASSES, boxes=[boxes])
    assert "labels" not in one.facts
    before = identify(one, one).facts
    moved = identify_set(FileExamples(tmp_path, tuple(paths)), CLASSES, boxes=[boxes + 1])
    assert differing_data(before, identify(moved, one).facts) == "training set: the boxes"
    paths[0].rename(tmp_path / "c.png")
    renamed = identify_set(FileExamples(tmp_path, (tmp_path / "c.png", paths[1])), CLASSES, boxes=[boxes])
    assert differing_data(before, identify(renamed, one).facts) == "training set: their names"
    with pytest.raises(DataError, match=r"a\.png: No such file"):
        identify_set(FileExamples(tmp_path, tuple(paths)), CLASSES)


def test_repeated_images_are_counted_within_and_across_sets() -> None:
    images = pixels(6)
    images[4], images[5] = images[1], images[1]
    others = pixels(5, 1)
    others[0], others[3] = images[2], images[1]
    notes = identify(one_set(images, [0, 1, 0, 0, 1, 0]), one_set(others)).notes
    assert notes == (
        "2 of 6 training images repeat another one (same content, such as 4 and 1); 1 of them under another class",
        "2 of 5 evaluation images are training images too (same content, such as 0 and 2): their scores measure "
        "memorisation; remove them from one set",
    )
    assert identify(one_set(pixels(3)), one_set(pixels(3, 1))).notes == ()


def test_a_large_set_is_sampled_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_ALL_BYTES", 48 * 50)
    monkeypatch.setattr(identity, "_SAMPLED", 20)
    images = pixels(90)
    images[1] = images[0]
    large, small = one_set(images), one_set(pixels(50, 1))
    assert (large.facts["content_of"], small.facts["content_of"]) == (20, 50)
    assert (large.indices[0], large.indices[-1]) == (0, 89)
    assert identify(large, small).notes == (
        "the 90 training images are identified by all names and the content of 20, spread evenly; repeated images were "
        "not searched for",
    )
    swapped = images.flip(0)
    assert differing_data(identify(large, small).facts, identify(one_set(swapped), small).facts) is not None


def test_a_subset_is_identified_by_its_own_images() -> None:
    whole = PixelExamples(pixels(6))
    first, second = (
        identify_set(ChosenExamples(whole, torch.tensor(chosen)), CLASSES, labels=torch.zeros(2, dtype=torch.int64))
        for chosen in ([0, 1], [0, 2])
    )
    assert first.facts["content"] != second.facts["content"]
    assert replace(first, digests=second.digests).is_whole
