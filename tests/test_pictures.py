import math
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from w2skd.errors import OutputError, UsageError
from w2skd.pictures import BOXED_IMAGES, check_picture_path, draw_batch, draw_boxes, draw_confusion

NAMES = [f"n{number:08d}" for number in range(1440764, 1440774)]


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def places(picture, block):
    """Where a block of pixels stands in a picture, as (row, column), from top to bottom."""
    height, width = block.shape[:2]
    first = np.argwhere((picture == block[0, 0]).all(axis=2))
    return [
        (row, column)
        for row, column in first.tolist()
        if np.array_equal(picture[row : row + height, column : column + width], block)
    ]


def box(mask):
    """Top, bottom, left and right of what is marked."""
    rows, columns = np.nonzero(mask)
    return rows.min(), rows.max(), columns.min(), columns.max()


def full(picture):
    """Where the colour of a whole class stands, without the legend above the matrix."""
    marked = (picture == np.asarray(colormaps["Blues"](1.0, bytes=True)[:3])).all(axis=2)
    marked[:120] = False
    return marked


def noise(number, height, width):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (number, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("height", "width", "zoom"), [(8, 8, 20), (32, 32, 5), (96, 96, 2), (224, 224, 1), (20, 60, 3)]
)
def test_every_image_stands_there_pixel_for_pixel_in_reading_order(tmp_path, height, width, zoom):
    images = noise(3, height, width)
    draw_batch(images, ["a", "b", "c"], tmp_path / "batch.png", title="first batch")
    picture = pixels(tmp_path / "batch.png")
    found = []
    for image in images.permute(0, 2, 3, 1).numpy():
        found += places(picture, np.kron(image, np.ones((zoom, zoom, 1), dtype=np.uint8)))
    (top, left), second, third = found
    assert second == (top, left + zoom * width + 8)
    assert third == (top + zoom * height + 28, left)


def test_a_caption_stands_below_its_image_and_is_cut_to_its_width(tmp_path):
    images = noise(4, 16, 16)
    drawn = []
    for caption in ("", "n01440764 → n02102040, sure to 0.93"):
        draw_batch(images, ["a", caption, "c", "d"], tmp_path / "batch.png", title="first batch")
        drawn.append(pixels(tmp_path / "batch.png"))
    ((top, left),) = places(drawn[0], images[1].permute(1, 2, 0).numpy().repeat(10, axis=0).repeat(10, axis=1))
    first, last, begin, end = box((drawn[0] != drawn[1]).any(axis=2))
    assert top + 160 <= first < last < top + 188
    assert left <= begin
    assert left + 140 < end < left + 160


def test_no_more_than_64_images_are_drawn(tmp_path):
    for number in (64, 65):
        draw_batch(noise(number, 8, 8), [""] * number, tmp_path / f"{number}.png", title="")
    some, more = pixels(tmp_path / "64.png"), pixels(tmp_path / "65.png")
    assert some.shape == more.shape
    first, last, begin, end = box((some != more).any(axis=2))  # "64 of 64", "64 of 65"
    assert (last < 74, begin > 24, end < 100) == (True, True, True), (first, last, begin, end)


@pytest.mark.parametrize("classes", [2, 3, 10, 30, 31, 100, 1000, 1001])
def test_a_perfect_classifier_is_a_dark_diagonal(tmp_path, classes):
    counts = torch.full((classes,), 50).diag()
    draw_confusion(counts, [f"c{number}" for number in range(classes)], tmp_path / "c.png", title="perfect")
    marked = full(pixels(tmp_path / "c.png"))
    top, bottom, left, right = box(marked)
    assert bottom - top == right - left
    side = bottom - top + 1
    matrix = marked[top : top + side, left : left + side]
    # Figures and lines cover a part of each cell, and two classes may share a dot.
    rows, columns = np.nonzero(matrix)
    dots = classes if classes <= 1000 else 501
    assert (np.abs(rows - columns) <= side / dots + 1).all()
    assert len(set((rows * dots // side).tolist())) == dots


def test_rows_are_true_classes_and_columns_predicted_ones(tmp_path):
    for classes in (10, 40):
        counts = torch.full((classes,), 50).diag()
        names = [f"c{number}" for number in range(classes)]
        draw_confusion(counts, names, tmp_path / "right.png", title="")
        top, _, left, right = box(full(pixels(tmp_path / "right.png")))
        counts[0] = counts[0].flip(0)  # all of the first class are taken for the last
        draw_confusion(counts, names, tmp_path / "wrong.png", title="")
        marked = full(pixels(tmp_path / "wrong.png"))
        cell = (right - left + 1) // classes
        assert marked[top : top + cell // 2, right - cell // 2 : right].any()
        assert not marked[top : top + cell // 2, left : left + cell // 2].any()


@pytest.mark.parametrize("classes", [10, 40])
def test_the_colour_is_the_share_of_the_true_class(tmp_path, classes):
    """A rare class that is always right is as dark as a frequent one."""
    names = [f"c{number}" for number in range(classes)]
    counts = torch.full((classes,), 50).diag()
    draw_confusion(counts, names, tmp_path / "even.png", title="")
    counts[3, 3] = 10
    draw_confusion(counts, names, tmp_path / "rare.png", title="")
    even, rare = (full(pixels(tmp_path / f"{name}.png")) for name in ("even", "rare"))
    assert box(even) == box(rare)
    assert even.sum() == pytest.approx(rare.sum(), rel=0.02)  # but for the figures


def test_a_class_without_examples_and_no_examples_at_all_are_drawn(tmp_path):
    for counts in (torch.tensor([[5, 1], [0, 0]]), torch.zeros(2, 2, dtype=torch.int64)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draw_confusion(counts, ["a", "b"], tmp_path / "c.png", title="")
        assert pixels(tmp_path / "c.png").shape[0] > 100


@pytest.mark.parametrize("classes", [4, 40])
def test_any_name_can_be_drawn_without_a_warning(tmp_path, classes):
    odd = ["$x_{$", "鸟", "two\nlines \x07", os.fsdecode(b"caf\xe9")]
    names = odd + [f"very long name of a class, number {number}" * 9 for number in range(classes - 4)]
    counts = torch.ones(classes, classes, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_confusion(counts, names, tmp_path / "c.png", title="$a_{$ 鸟" * 200)
        draw_batch(noise(4, 8, 8), odd, tmp_path / "b.png", title="鸟")
    height, width = pixels(tmp_path / "c.png").shape[:2]
    assert max(height, width) < 1600


def test_large_counts_fit_their_cells(tmp_path):
    """Then figures stay off the white lines between the cells."""
    counts = torch.full((30, 30), 9_999_999)
    draw_confusion(counts, [str(number) for number in range(30)], tmp_path / "c.png", title="")
    picture = pixels(tmp_path / "c.png")
    cell = np.asarray(colormaps["Blues"]((1 / 30) ** 0.5, bytes=True)[:3])
    marked = (picture == cell).all(axis=2)
    marked[:120] = False
    top, _, left, right = box(marked)
    assert right - left + 2 == 30 * 32
    lines = picture[top : top + 31, left + 31 : right : 32]
    assert (lines == 255).all()


def test_the_same_numbers_draw_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        draw_confusion(torch.eye(10, dtype=torch.int64), NAMES, tmp_path / name, title="again")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert b"matplotlib" not in (tmp_path / "a.png").read_bytes()


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
    draw_boxes(images, predicted, true, [""] * len(images), path, **given)
    return pixels(path)


def first_tile(picture):
    """The plain image of a picture that has one, 600 x 450, wherever it stands."""
    top, bottom, left, right = box(marked(picture, GREEN))
    assert (bottom - top + 1, right - left + 1) == (450, 600)
    return picture[top : bottom + 1, left : right + 1]


def marked(tile, colour):
    return (tile == colour).all(axis=2)


def test_images_of_any_sizes_stand_there_enlarged_by_whole_numbers(tmp_path):
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


def test_predicted_boxes_are_solid_and_just_around_what_they_hold(tmp_path):
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


def test_a_name_tells_the_class_and_the_score(tmp_path):
    (alone,) = {
        first_tile(drawn(tmp_path / "a.png", [found((20, 30, 100, 120, score, 0))], [there()])).tobytes()
        for score in (0.901, 0.899)
    }
    for score, label in ((0.9, 1), (0.91, 0)):
        other = first_tile(drawn(tmp_path / "b.png", [found((20, 30, 100, 120, score, label))], [there()]))
        differs = (np.frombuffer(alone, np.uint8).reshape(other.shape) != other).any(axis=2)
        top, bottom, left, right = box(differs)
        assert (top >= 90 - 14, bottom < 90, left >= 60, right < 150) == (True, True, True, True)


def test_the_surest_box_has_its_name_whatever_the_order(tmp_path):
    rows = [(20, 30, 100, 120, score, 0) for score in (0.5, 0.95, 0.7)]
    some = drawn(tmp_path / "a.png", [found(*rows)], [there()])
    assert np.array_equal(some, drawn(tmp_path / "b.png", [found(*rows[::-1])], [there()]))
    sure = drawn(tmp_path / "c.png", [found(rows[1])], [there()])
    name = (slice(90 - 14, 90), slice(60, 100))
    assert np.array_equal(first_tile(some)[name], first_tile(sure)[name])


def test_names_are_pushed_inside_and_of_boxes_the_part_inside_is_drawn(tmp_path):
    predicted = found((-50, -40, 100, 60, 0.9, 0), (150, 100, 900, 700, 0.8, 1), (500, 500, 600, 600, 0.9, 0))
    tile = first_tile(drawn(tmp_path / "b.png", [predicted], [there((-9, -9, 1, 1, 0))]))
    assert marked(tile, ORANGE)[:14, :60].mean() > 0.5, "the name of the first"
    assert marked(tile, ORANGE)[:, 299].sum() == 180
    assert marked(tile, ORANGE)[449].sum() == 150
    outside = first_tile(drawn(tmp_path / "b.png", [found((500, 20, 600, 80, 0.9, 0))], [there((-9, -9, 0, 0, 0))]))
    assert marked(outside, GREEN).all(), "no outline and no name"


def test_unsure_and_unfinished_boxes_are_not_drawn(tmp_path):
    nan = math.nan
    nothing = drawn(tmp_path / "a.png", [found()], [there()])
    predicted = found((20, 30, 100, 120, 0.29, 0), (nan, 0, 9, 9, 0.9, 0), (0, 0, 9, 9, nan, 0))
    assert np.array_equal(nothing, drawn(tmp_path / "b.png", [predicted], [there()]))
    low = drawn(tmp_path / "c.png", [predicted], [there()], least_score=0.2)
    assert marked(low, ORANGE).sum() > marked(nothing, ORANGE).sum()


def test_a_box_without_area_is_a_dot(tmp_path):
    tile = first_tile(drawn(tmp_path / "b.png", [found((50, 50, 50, 50, 0.9, 0))], [there()]))
    assert marked(tile, ORANGE)[150, 150]


def test_no_more_boxed_images_are_drawn_than_fit_a_sheet(tmp_path):
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


@pytest.mark.parametrize("name", ["c.jpg", "c", "c.png.gz"])
def test_another_ending_is_refused_in_one_line(tmp_path: Path, name: str):
    path = tmp_path / name
    for call in (
        lambda: check_picture_path(path),
        lambda: draw_confusion(torch.eye(2, dtype=torch.int64), ["a", "b"], path, title=""),
        lambda: draw_batch(noise(1, 8, 8), [""], path, title=""),
        lambda: draw_boxes([], [], [], [], path, classes=[], title=""),
    ):
        with pytest.raises(UsageError, match=r"^cannot draw .*: pictures are PNG files; name it .*\.png$"):
            call()
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_told_beforehand(tmp_path):
    with pytest.raises(OutputError, match=r"^cannot write .*nowhere/c\.png: No such file or directory$"):
        check_picture_path(tmp_path / "nowhere" / "c.png")
    check_picture_path(tmp_path / "c.PNG")
    assert os.listdir(tmp_path) == []


def test_a_failed_picture_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "c.png"
    path.write_text("old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match=rf"^cannot write {path}: No space left on device$"):
        draw_batch(noise(1, 8, 8), [""], path, title="")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["c.png"]
