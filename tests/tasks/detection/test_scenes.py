"""Generated scenes: reproducibility, boxes and ground truth in COCO format."""

import io
import pickle
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch

from w2skd.data.shapes import CLASSES
from w2skd.tasks.detection import scenes
from w2skd.tasks.detection.listing import CocoListing
from w2skd.tasks.detection.scenes import MOST_OBJECTS, SceneExamples, list_scenes

SIZE = 96


@pytest.fixture(scope="module")
def listing() -> CocoListing:
    return list_scenes("scenes", 5, 300, SIZE)


def test_a_scene_depends_on_seed_and_index_only(listing: CocoListing) -> None:
    few = list_scenes("few", 5, 20, SIZE)
    for index in (0, 7, 19):
        assert few.examples.open(index).tobytes() == listing.examples.open(index).tobytes()
        assert torch.equal(few.boxes(index).boxes, listing.boxes(index).boxes)
        assert torch.equal(few.boxes(index).labels, listing.boxes(index).labels)
    alone = SceneExamples(5, torch.tensor([19]), SIZE)
    assert alone.name(0) == "19"
    assert pickle.loads(pickle.dumps(alone)).open(0).tobytes() == listing.examples.open(19).tobytes()
    assert list_scenes("other", 6, 1, SIZE).examples.open(0).tobytes() != listing.examples.open(0).tobytes()


def test_torchs_generator_is_neither_used_nor_changed() -> None:
    before = torch.get_rng_state()
    list_scenes("scenes", 0, 3, 32).examples.open(1)
    assert torch.equal(before, torch.get_rng_state())


def test_every_number_of_objects_and_every_class_occurs(listing: CocoListing) -> None:
    counts = torch.bincount(listing.table.starts.diff())
    assert len(counts) == MOST_OBJECTS + 1
    assert counts[0] == 0
    assert (counts[1:] >= 30).all()
    labels = torch.bincount(listing.table.labels)
    assert len(labels) == len(CLASSES) == len(listing.categories)
    assert (labels >= 50).all()


def test_boxes_are_within_the_scene_and_of_detectable_size(listing: CocoListing) -> None:
    boxes = listing.table.boxes
    assert (boxes >= 0).all()
    assert (boxes <= SIZE).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides >= 0.07 * SIZE).all()
    assert (sides <= 0.55 * SIZE).all()


def test_some_overlap_and_none_is_hidden(listing: CocoListing) -> None:
    largest = []
    for index in range(len(listing)):
        boxes = listing.boxes(index).boxes
        for one in range(len(boxes)):
            for other in range(one):
                low = torch.maximum(boxes[one, :2], boxes[other, :2])
                high = torch.minimum(boxes[one, 2:], boxes[other, 2:])
                small = min((box[2:] - box[:2]).prod() for box in (boxes[one], boxes[other]))
                largest.append(float((high - low).clamp(min=0).prod() / small))
    assert sum(share > 0.1 for share in largest) > 20
    assert max(largest) < 0.8


def test_boxes_enclose_the_pixels_of_their_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paint one object without background or noise, and see where its pixels are."""
    listing = list_scenes("scenes", 5, 60, SIZE)
    single = [index for index in range(60) if len(listing.boxes(index)) == 1]
    assert len(single) >= 5
    monkeypatch.setattr(scenes, "texture", lambda dice, x, y: torch.zeros(1, 3, *x.shape[1:]))
    monkeypatch.setattr(scenes, "noise", lambda seed, index, size: torch.zeros(1, 3, size, size))
    monkeypatch.setattr(scenes, "paint_stroke", lambda canvas, dice, x, y: None)
    for index in single:
        pixels = np.asarray(listing.examples.open(index)).astype(float)
        change = np.abs(pixels - pixels[0, 0]).sum(-1)
        rows, columns = np.nonzero(change > change.max() / 2)
        painted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert listing.boxes(index).boxes[0].tolist() == pytest.approx(painted, abs=1)


@pytest.mark.parametrize("size", [32, 65, 200])
def test_any_size(size: int) -> None:
    listing = list_scenes("scenes", 0, 8, size)
    assert listing.examples.open(3).size == (size, size)
    assert listing.sizes.tolist() == [[size, size]] * 8
    assert (listing.table.boxes[:, 2:] > listing.table.boxes[:, :2]).all()


def test_pixels_are_spread_as_their_normalization_says(listing: CocoListing) -> None:
    pixels = np.stack([np.asarray(listing.examples.open(index)) for index in range(40)]) / 255
    assert pixels.mean() == pytest.approx(scenes.NORMALIZATION.mean[0], abs=0.05)
    assert pixels.std() == pytest.approx(scenes.NORMALIZATION.std[0], abs=0.05)


def test_the_truth_is_cocos(listing: CocoListing) -> None:
    some = listing.select(torch.tensor([9, 4, 250]))
    truth = some.ground_truth()
    assert [image["id"] for image in truth["images"]] == [9, 4, 250]
    assert [category["name"] for category in truth["categories"]] == list(listing.categories)
    by_image = {image_id: [] for image_id in (9, 4, 250)}
    for one in truth["annotations"]:
        x, y, width, height = one["bbox"]
        assert (one["area"], one["iscrowd"]) == (width * height, 0)
        by_image[one["image_id"]].append(([x, y, x + width, y + height], one["category_id"]))
    for place, image_id in enumerate((9, 4, 250)):
        own = some.boxes(place)
        ids = [some.category_ids[label] for label in own.labels.tolist()]
        assert by_image[image_id] == list(zip(own.boxes.tolist(), ids, strict=True))
    assert len({one["id"] for one in truth["annotations"]}) == len(truth["annotations"])
    assert min(one["id"] for one in truth["annotations"]) > 0


def test_a_scorer_takes_the_truth_and_finds_it_perfect(listing: CocoListing) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = listing.select(torch.arange(20)).ground_truth()
    with redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = truth
        known.createIndex()
        rows = [
            {key: one[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
            for one in truth["annotations"]
        ]
        scorer = COCOeval(known, known.loadRes(rows), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    assert scorer.stats[0] == pytest.approx(1.0)
