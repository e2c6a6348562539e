import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from w2skd.errors import OutputError, UsageError
from w2skd.pictures import check_picture_path, draw_batch, draw_confusion

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


@pytest.mark.parametrize("name", ["c.jpg", "c", "c.png.gz"])
def test_another_ending_is_refused_in_one_line(tmp_path: Path, name: str):
    path = tmp_path / name
    for call in (
        lambda: check_picture_path(path),
        lambda: draw_confusion(torch.eye(2, dtype=torch.int64), ["a", "b"], path, title=""),
        lambda: draw_batch(noise(1, 8, 8), [""], path, title=""),
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
