import math
import os
import warnings

import numpy as np
import pytest
import torch
from paper import box, noise, pixels, places

from w2skd.tasks.detection.box_pictures import BOXED_IMAGES, BoxedImage, draw_boxes

ORANGE, BLUE, DARK = (255, 158, 27), (0, 71, 171), (38, 24, 0)
GREEN = (90, 160, 120)
PLAIN = torch.tensor(GREEN, dtype=torch.uint8).view(3, 1, 1).expand(3, 150, 200)  # enlarged three times


def found(*rows):
    """Each row is x1, y1, x2, y2, score, label."""
    table = torch.tensor(rows).view(-1, 6)
    return table[:, :4], table[:, 4], table[:, 5].long()


def there(*rows):
    boxes, _, labels = found(*((*row[:4], 1.0, row[4]) for row in rows))
    return boxes, labels


def drawn(path, predicted, true, images=None, **options):
    images = [PLAIN] * len(predicted) if images is None else images
    given = {"classes": ["cat", "dog"], "title": "t"} | options
    boxed = [BoxedImage(*each, "") for each in zip(images, predicted, true, strict=True)]
    draw_boxes(boxed, path, **given)
    return pixels(path)


def first_tile(picture):
    """The tile of the plain image, 600 x 450 px."""
    top, bottom, left, right = box(marked(picture, GREEN))
    assert (bottom - top + 1, right - left + 1) == (450, 600)
    return picture[top : bottom + 1, left : right + 1]


def marked(tile, colour):
    return (tile == colour).all(axis=2)


def test_images_of_any_size_are_enlarged_by_integer_factors(tmp_path):
    images = [noise(1, *size)[0] for size in ((96, 96), (48, 64), (640, 480))]
    picture = drawn(tmp_path / "b.png", [found()] * 3, [there()] * 3, images)
    origins = []
    for image, zoom in zip(images, (6, 9, 1), strict=True):
        tile = image.permute(1, 2, 0).numpy().repeat(zoom, axis=0).repeat(zoom, axis=1)
        origins += places(picture, tile)
    (top, left), (_, right), (below, _) = origins
    assert origins == [(top, left), (top, right), (below, left)]
    assert (right - left, below - top) == (576 + 8, 576 + 28)


def test_a_large_image_is_reduced_to_means_of_whole_blocks(tmp_path):
    image = torch.zeros(3, 800, 1333, dtype=torch.uint8)
    image[0, ::2] = 200
    picture = drawn(tmp_path / "b.png", [found((100, 100, 300, 200, 0.9, 0))], [there()], [image])
    top, bottom, left, right = box(marked(picture, (100, 0, 0)))
    assert (bottom - top + 1, right - left + 1) == (400, 667)
    top_of_box, bottom_of_box, begin, end = box(marked(picture[top:, left:], ORANGE))
    assert (bottom_of_box, begin, end) == (99, 50, 149)
    assert top_of_box == 50 - 14, "its name stands above it"


def test_predicted_boxes_are_solid_outlines(tmp_path):
    tile = first_tile(drawn(tmp_path / "b.png", [found((20, 30, 100, 120, 0.9, 0))], [there()]))
    assert not marked(tile, BLUE).any()
    expected = np.zeros((450, 600), dtype=bool)
    expected[90:360, 60:300] = True
    expected[92:358, 62:298] = False
    below_name = slice(92, None)
    assert np.array_equal(marked(tile, ORANGE)[below_name], expected[below_name])
    assert marked(tile, DARK)[92:358, 62].all()
    assert marked(tile, GREEN)[93:357, 63:297].all(), "what it holds is not covered"


def test_true_boxes_are_dashed_and_show_where_they_agree_with_predicted_ones(tmp_path):
    for predicted in (found(), found((20, 30, 100, 120, 0.9, 0))):
        tile = first_tile(drawn(tmp_path / "b.png", [predicted], [there((20, 30, 100, 120, 1))]))
        left = tile[110:340, 60]
        dashes, gaps = marked(tile, BLUE)[110:340, 60], marked(tile, ORANGE if len(predicted[0]) else GREEN)
        assert (dashes | gaps[110:340, 60]).all(), left
        assert dashes.mean() == pytest.approx(0.5, abs=0.03)
        assert marked(tile, GREEN)[93:346, 63:297].all()


def test_a_label_gives_class_and_score(tmp_path):
    (alone,) = {
        first_tile(drawn(tmp_path / "a.png", [found((20, 30, 100, 120, score, 0))], [there()])).tobytes()
        for score in (0.901, 0.899)
    }
    for score, label in ((0.9, 1), (0.91, 0)):
        other = first_tile(drawn(tmp_path / "b.png", [found((20, 30, 100, 120, score, label))], [there()]))
        differs = (np.frombuffer(alone, np.uint8).reshape(other.shape) != other).any(axis=2)
        top, bottom, left, right = box(differs)
        assert (top >= 90 - 14, bottom < 90, left >= 60, right < 150) == (True, True, True, True)


def test_the_highest_score_gets_its_label_in_any_order(tmp_path):
    rows = [(20, 30, 100, 120, score, 0) for score in (0.5, 0.95, 0.7)]
    some = drawn(tmp_path / "a.png", [found(*rows)], [there()])
    assert np.array_equal(some, drawn(tmp_path / "b.png", [found(*rows[::-1])], [there()]))
    sure = drawn(tmp_path / "c.png", [found(rows[1])], [there()])
    name = (slice(90 - 14, 90), slice(60, 100))
    assert np.array_equal(first_tile(some)[name], first_tile(sure)[name])


def test_labels_are_moved_into_the_image_and_boxes_are_clipped(tmp_path):
    predicted = found((-50, -40, 100, 60, 0.9, 0), (150, 100, 900, 700, 0.8, 1), (500, 500, 600, 600, 0.9, 0))
    tile = first_tile(drawn(tmp_path / "b.png", [predicted], [there((-9, -9, 1, 1, 0))]))
    assert marked(tile, ORANGE)[:14, :60].mean() > 0.5, "the name of the first"
    assert marked(tile, ORANGE)[:, 299].sum() == 180
    assert marked(tile, ORANGE)[449].sum() == 150
    outside = first_tile(drawn(tmp_path / "b.png", [found((500, 20, 600, 80, 0.9, 0))], [there((-9, -9, 0, 0, 0))]))
    assert marked(outside, GREEN).all(), "no outline and no name"


def test_boxes_of_low_score_or_non_finite_are_not_drawn(tmp_path):
    nan = math.nan
    nothing = drawn(tmp_path / "a.png", [found()], [there()])
    predicted = found((20, 30, 100, 120, 0.29, 0), (nan, 0, 9, 9, 0.9, 0), (0, 0, 9, 9, nan, 0))
    assert np.array_equal(nothing, drawn(tmp_path / "b.png", [predicted], [there()]))
    low = drawn(tmp_path / "c.png", [predicted], [there()], least_score=0.2)
    assert marked(low, ORANGE).sum() > marked(nothing, ORANGE).sum()


def test_a_box_without_area_is_a_dot(tmp_path):
    tile = first_tile(drawn(tmp_path / "b.png", [found((50, 50, 50, 50, 0.9, 0))], [there()]))
    assert marked(tile, ORANGE)[150, 150]


def test_the_number_of_images_is_limited(tmp_path):
    small = [PLAIN[:, :20, :30]]
    some, more = (
        drawn(tmp_path / "b.png", [found()] * count, [there()] * count, small * count)
        for count in (BOXED_IMAGES, BOXED_IMAGES + 1)
    )
    assert some.shape == more.shape
    assert drawn(tmp_path / "b.png", [], []).shape[0] < 200


def test_any_class_can_be_written_at_a_box_without_a_warning(tmp_path):
    odd = ["$x_{$", "鸟", "two\nlines \x07", os.fsdecode(b"caf\xe9"), "long name " * 99]
    predicted = found(*((20 * label, 20 * label, 150, 140, 0.9, label) for label in range(5)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = drawn(tmp_path / "b.png", [predicted], [there((0, 0, 9, 9, 4))], classes=odd)
    assert first_tile(picture).shape == (450, 600, 3)
    first = (tmp_path / "b.png").read_bytes()
    drawn(tmp_path / "b.png", [predicted], [there((0, 0, 9, 9, 4))], classes=odd)
    assert (tmp_path / "b.png").read_bytes() == first
