import os
import warnings

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from paper import box, pixels

from w2skd.tasks.classification.confusion_picture import draw_confusion

NAMES = [f"n{number:08d}" for number in range(1440764, 1440774)]


def full(picture):
    """Return a mask of the darkest colour, without the colour bar above the matrix."""
    marked = (picture == np.asarray(colormaps["Blues"](1.0, bytes=True)[:3])).all(axis=2)
    marked[:120] = False
    return marked


@pytest.mark.parametrize("classes", [2, 3, 10, 30, 31, 100, 1000, 1001])
def test_a_perfect_classifier_is_a_dark_diagonal(tmp_path, classes):
    counts = torch.full((classes,), 50).diag()
    draw_confusion(counts, [f"c{number}" for number in range(classes)], tmp_path / "c.png", title="perfect")
    marked = full(pixels(tmp_path / "c.png"))
    top, bottom, left, right = box(marked)
    assert bottom - top == right - left
    side = bottom - top + 1
    matrix = marked[top : top + side, left : left + side]
    # Numbers and lines cover a part of each cell, and two classes may share a dot.
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
        counts[0] = counts[0].flip(0)  # all of the first class are predicted as the last
        draw_confusion(counts, names, tmp_path / "wrong.png", title="")
        marked = full(pixels(tmp_path / "wrong.png"))
        cell = (right - left + 1) // classes
        assert marked[top : top + cell // 2, right - cell // 2 : right].any()
        assert not marked[top : top + cell // 2, left : left + cell // 2].any()


@pytest.mark.parametrize("classes", [10, 40])
def test_the_colour_is_the_share_of_the_true_class(tmp_path, classes):
    """A rare class that is always correct is as dark as a frequent one."""
    names = [f"c{number}" for number in range(classes)]
    counts = torch.full((classes,), 50).diag()
    draw_confusion(counts, names, tmp_path / "even.png", title="")
    counts[3, 3] = 10
    draw_confusion(counts, names, tmp_path / "rare.png", title="")
    even, rare = (full(pixels(tmp_path / f"{name}.png")) for name in ("even", "rare"))
    assert box(even) == box(rare)
    assert even.sum() == pytest.approx(rare.sum(), rel=0.02)  # except for the numbers


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
    height, width = pixels(tmp_path / "c.png").shape[:2]
    assert max(height, width) < 1600


def test_large_counts_fit_their_cells(tmp_path):
    """The numbers do not touch the white lines between the cells."""
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
