"""Listings of images with boxes: subsets, fingerprints, and matching categories."""

from dataclasses import replace

import pytest
import torch

from w2skd.errors import DataError
from w2skd.tasks.detection.listing import BoxTable, CocoListing, check_same_categories
from w2skd.tasks.detection.scenes import list_scenes


@pytest.fixture(scope="module")
def listing() -> CocoListing:
    return list_scenes("scenes", 0, 12, 32)


def test_boxes_are_sorted_by_image_in_their_order() -> None:
    boxes = torch.arange(20.0).view(5, 4)
    table = BoxTable.grouped(boxes, torch.tensor([0, 1, 2, 3, 4]), torch.tensor([2, 0, 2, 0, 2]), 4)
    assert [table.of(image).labels.tolist() for image in range(4)] == [[1, 3], [], [0, 2, 4], []]
    assert torch.equal(table.of(2).boxes, boxes[[0, 2, 4]])
    some = table.select(torch.tensor([2, 3, 2, 0]))
    assert [some.of(image).labels.tolist() for image in range(4)] == [[0, 2, 4], [], [0, 2, 4], [1, 3]]
    assert torch.equal(some.of(3).boxes, boxes[[1, 3]])
    assert len(table.select(torch.empty(0, dtype=torch.int64))) == 0


def test_a_selection_keeps_everything_together(listing: CocoListing) -> None:
    some = listing.select(torch.tensor([7, 2]))
    assert len(some) == 2
    assert some.image_ids.tolist() == listing.image_ids[[7, 2]].tolist()
    for place, index in enumerate((7, 2)):
        assert some.examples.name(place) == listing.examples.name(index)
        assert torch.equal(some.boxes(place).boxes, listing.boxes(index).boxes)
        assert torch.equal(some.boxes(place).labels, listing.boxes(index).labels)
        assert some.examples.open(place).tobytes() == listing.examples.open(index).tobytes()
    truth = some.ground_truth()
    assert [image["id"] for image in truth["images"]] == some.image_ids.tolist()
    assert {one["image_id"] for one in truth["annotations"]} == set(some.image_ids.tolist())


def test_subsets_are_drawn_by_seed_grow_and_keep_the_order(listing: CocoListing) -> None:
    few, more = (set(listing.subset(count, 3).image_ids.tolist()) for count in (4, 9))
    assert len(few) == 4
    assert few < more
    assert listing.subset(9, 3).image_ids.tolist() == sorted(more)
    assert listing.subset(4, 4).image_ids.tolist() != sorted(few)
    assert listing.subset(None, 0) is listing.subset(12, 0) is listing
    with pytest.raises(DataError, match=r"^scenes: 13 examples requested, but only 12 exist$"):
        listing.subset(13, 0)


def test_the_fingerprint_covers_everything_that_matters(listing: CocoListing) -> None:
    table = listing.table
    others = [
        listing.select(torch.arange(11)),
        listing.select(torch.arange(12).flip(0)),
        replace(listing, categories=("bow", *listing.categories[1:])),
        replace(listing, category_ids=(0, *listing.category_ids[1:])),
        replace(listing, sizes=listing.sizes + 1),
        replace(listing, table=replace(table, boxes=table.boxes + 1)),
        replace(listing, table=replace(table, labels=table.labels.flip(0))),
    ]
    prints = {other.fingerprint() for other in [listing, *others]}
    assert len(prints) == 1 + len(others)
    assert listing.fingerprint() == list_scenes("the same by another name", 0, 12, 32).fingerprint()


def test_listings_with_other_categories_do_not_go_together(listing: CocoListing) -> None:
    check_same_categories(listing, replace(listing, category_ids=tuple(range(5, 15))))
    fewer = replace(listing, name="val.json", categories=(*listing.categories[:8], "moon"), category_ids=(*range(9),))
    with pytest.raises(DataError, match=r"differ; only in scenes: star, triangle; only in val\.json: moon$"):
        check_same_categories(listing, fewer)
    turned = replace(listing, name="val.json", categories=listing.categories[::-1])
    with pytest.raises(DataError, match=r"number 1 is 'arrow' in scenes and 'triangle' in val\.json$"):
        check_same_categories(listing, turned)
