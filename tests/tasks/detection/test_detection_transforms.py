"""Transforms for detection: boxes follow their objects, sizes are as requested, draws come from counters."""

import numpy as np
import pytest
import torch
from PIL import Image

from w2skd.tasks.detection.batch import Boxes
from w2skd.tasks.detection.transforms import DetectionTransform, Transformed

WIDTH, HEIGHT = 60, 40
OBJECTS = ((6, 4, 18, 12), (24, 10, 40, 34), (44, 20, 56, 36))
"""xyxy, each filled with a colour of its own."""


def picture() -> tuple[Image.Image, Boxes]:
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    for channel, (left, top, right, bottom) in enumerate(OBJECTS):
        pixels[top:bottom, left:right, channel] = 255
    return Image.fromarray(pixels), Boxes(torch.tensor(OBJECTS, dtype=torch.float32), torch.arange(3))


def apply(transform: DetectionTransform, *counters: int) -> Transformed:
    image, boxes = picture()
    return transform(image, boxes, *counters)


def found(pixels: np.ndarray, channel: int) -> list[int]:
    """The box around what is mostly of a colour, xyxy."""
    rows, columns = np.nonzero(pixels[..., channel] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((60, 40), (40, 60), (60, 40)),
        ((60, 40), (20, 100), (30, 20)),
        ((60, 40), (80, 100), (100, 67)),
        ((40, 60), (80, 100), (67, 100)),
        ((640, 427), (800, 1333), (1199, 800)),
        ((640, 100), (800, 1333), (1333, 208)),
        ((500, 1), (8, 100), (100, 1)),
        ((7, 7), (32, 64), (32, 32)),
    ],
)
def test_sizes_are_those_asked_for(size: tuple[int, int], limits: tuple[int, int], expected: tuple[int, int]) -> None:
    nothing = Boxes(torch.empty(0, 4), torch.empty(0, dtype=torch.int64))
    done = DetectionTransform(*limits)(Image.new("RGB", size), nothing)
    assert done.pixels.shape == (expected[1], expected[0], 3)
    assert done.scale == (expected[1] / size[1], expected[0] / size[0])
    assert done.target.boxes.shape == (0, 4)


@pytest.mark.parametrize("transform", [DetectionTransform(s, 200) for s in (20, 40, 70, 120)])
def test_resized_boxes_are_where_the_objects_are(transform: DetectionTransform) -> None:
    done = apply(transform)
    for label, box in zip(done.target.labels.tolist(), done.target.boxes.tolist(), strict=True):
        np.testing.assert_allclose(box, found(done.pixels, label), atol=0.51)
        back = [edge / done.scale[1 - place % 2] for place, edge in enumerate(box)]
        np.testing.assert_allclose(back, OBJECTS[label], rtol=1e-6)


def test_nothing_to_do_changes_nothing() -> None:
    image, boxes = picture()
    done = DetectionTransform(40, 60)(image, boxes)
    assert np.array_equal(done.pixels, np.asarray(image))
    assert torch.equal(done.target.boxes, boxes.boxes)
    assert done.scale == (1.0, 1.0)


def test_mirroring_twice_gives_the_original_and_happens_to_every_second_image() -> None:
    transform = DetectionTransform(40, 60, flip=True)
    image, boxes = picture()
    mirrored = 0
    for example in range(200):
        done = transform(image, boxes, 3, 0, example)
        if np.array_equal(done.pixels, np.asarray(image)):
            assert torch.equal(done.target.boxes, boxes.boxes)
            continue
        mirrored += 1
        assert np.array_equal(done.pixels, np.asarray(image)[:, ::-1])
        assert [found(done.pixels, label) for label in range(3)] == done.target.boxes.tolist()
        assert (done.target.boxes[:, 2:] > done.target.boxes[:, :2]).all()
    assert 75 <= mirrored <= 125


def test_jitter_spreads_over_its_range_and_keeps_boxes_true() -> None:
    transform = DetectionTransform(40, 60, flip=True, jitter=(0.5, 2.0))
    heights = []
    for example in range(100):
        done = apply(transform, 0, 1, example)
        heights.append(done.pixels.shape[0])
        for label, box in zip(done.target.labels.tolist(), done.target.boxes.tolist(), strict=True):
            np.testing.assert_allclose(box, found(done.pixels, label), atol=0.51)
    assert 20 <= min(heights) < 25
    assert 75 < max(heights) <= 80
    assert 45 < np.mean(heights) < 55


def test_a_crop_keeps_boxes_whose_centre_it_keeps_and_clips_them() -> None:
    transform = DetectionTransform(40, 400, crop=(0.3, 1.0))
    kept = []
    for example in range(200):
        done = apply(transform, 0, 0, example)
        height, width = done.pixels.shape[:2]
        boxes = done.target.boxes
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height] * 2)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        kept.append(len(boxes))
        for label, box in zip(done.target.labels.tolist(), boxes.tolist(), strict=True):
            np.testing.assert_allclose(box, found(done.pixels, label), atol=max(done.scale) * 0.51)
        for label in set(range(3)) - set(done.target.labels.tolist()):
            left, top, right, bottom = OBJECTS[label]
            visible = (done.pixels[..., label] > 127).sum() / (done.scale[0] * done.scale[1])
            assert visible <= 0.55 * (right - left) * (bottom - top)  # else its centre would be there
    assert set(kept) == {0, 1, 2, 3}


def test_draws_depend_on_seed_epoch_and_example_and_on_nothing_else() -> None:
    transform = DetectionTransform(40, 60, flip=True, jitter=(0.5, 2.0), crop=(0.5, 1.0))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = apply(transform, 1, 2, 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = apply(transform, 1, 2, 3)
    assert np.array_equal(first.pixels, again.pixels)
    assert torch.equal(first.target.boxes, again.target.boxes)
    others = [apply(transform, *counters) for counters in ((0, 2, 3), (1, 1, 3), (1, 2, 4))]
    assert len({done.pixels.tobytes() for done in [first, *others]}) == 4


def test_plain_draws_nothing() -> None:
    transform = DetectionTransform(30, 60, flip=True, jitter=(0.5, 2.0), crop=(0.5, 1.0))
    assert transform.plain == DetectionTransform(30, 60)


def test_a_box_that_becomes_too_thin_for_float32_goes() -> None:
    image, _ = picture()
    boxes = Boxes(torch.tensor([[1e-9, 3, 2e-9, 9], [5, 5, 10, 10]]), torch.tensor([0, 1]))
    transform = DetectionTransform(40, 60, flip=True)
    kept = {tuple(transform(image, boxes, 0, 0, example).target.labels.tolist()) for example in range(20)}
    assert kept == {(0, 1), (1,)}


def test_the_boxes_given_are_left_alone() -> None:
    image, boxes = picture()
    for example in range(10):
        DetectionTransform(30, 60, True, (0.5, 2.0), (0.5, 1.0))(image, boxes, 0, 0, example)
    assert torch.equal(boxes.boxes, torch.tensor(OBJECTS, dtype=torch.float32))


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    nothing = Boxes(torch.empty(0, 4), torch.empty(0, dtype=torch.int64))
    done = DetectionTransform(16, 16)(Image.fromarray(stripes), nothing)
    assert np.abs(done.pixels.astype(int) - 127).max() < 24
