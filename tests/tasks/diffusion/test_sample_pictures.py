import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from paper import noise, pixels, places
from PIL import Image

from w2skd.errors import OutputError, UsageError
from w2skd.tasks.diffusion.sample_pictures import check_samples_folder, draw_samples, write_samples


def tile(image, zoom):
    return image.permute(1, 2, 0).numpy().repeat(zoom, axis=0).repeat(zoom, axis=1)


@pytest.mark.parametrize(("side", "zoom"), [(16, 6), (32, 3), (64, 2), (96, 1), (256, 1)])
def test_every_image_stands_there_pixel_for_pixel_in_reading_order(tmp_path, side, zoom):
    images = noise(5, side, side)
    draw_samples(images, tmp_path / "s.png", title="samples", subtitle="fid 12.3")
    found = [place for image in images for place in places(pixels(tmp_path / "s.png"), tile(image, zoom))]
    step = zoom * side + 2
    top, left = found[0]
    grid = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert found == [(top + row * step, left + column * step) for row, column in grid]


@pytest.mark.parametrize(("columns", "places_of_last"), [(1, (4, 0)), (2, (2, 0)), (5, (0, 4)), (9, (0, 4))])
def test_columns_can_be_told(tmp_path, columns, places_of_last):
    images = noise(5, 32, 32)
    draw_samples(images, tmp_path / "s.png", title="samples", columns=columns)
    picture = pixels(tmp_path / "s.png")
    ((top, left),), ((below, right),) = (places(picture, tile(image, 3)) for image in (images[0], images[4]))
    assert ((below - top) // 98, (right - left) // 98) == places_of_last


@pytest.mark.parametrize(
    ("count", "height", "width", "zoom", "shown"),
    [(64, 32, 32, 3, 64), (1000, 32, 32, 3, 400), (100, 256, 256, 1, 49), (7, 64, 1500, 1, 7), (7, 1500, 64, 1, 7)],
)
def test_a_sheet_holds_as_many_as_it_has_room_for(tmp_path, count, height, width, zoom, shown):
    draw_samples(torch.zeros(count, 3, height, width, dtype=torch.uint8), tmp_path / "s.png", title="samples")
    picture = pixels(tmp_path / "s.png")
    assert max(picture.shape) <= 2000 + 122
    assert (picture == 0).all(axis=2).sum() == shown * zoom**2 * height * width


def test_an_image_larger_than_a_sheet_is_drawn_whole(tmp_path):
    image = noise(2, 2100, 40)
    draw_samples(image, tmp_path / "s.png", title="samples")
    assert len(places(pixels(tmp_path / "s.png"), tile(image[0], 1))) == 1


def test_no_images_are_drawn_too(tmp_path):
    draw_samples(noise(0, 8, 8), tmp_path / "s.png", title="samples")
    assert pixels(tmp_path / "s.png").shape[0] < 200


def test_the_same_images_draw_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        draw_samples(noise(4, 16, 16), tmp_path / name, title="again")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_every_image_is_a_file_without_loss_in_order(tmp_path: Path):
    images = noise(12, 9, 14)
    write_samples(images, tmp_path / "new" / "samples")
    names = sorted(os.listdir(tmp_path / "new" / "samples"))
    assert names == [f"{number:06d}.png" for number in range(12)]
    for name, image in zip(names, images, strict=True):
        assert np.array_equal(pixels(tmp_path / "new" / "samples" / name), tile(image, 1))


def test_images_that_are_no_images_are_refused(tmp_path: Path):
    for images in (noise(2, 8, 8).float(), noise(2, 8, 8)[:, :1], noise(2, 8, 8)[0]):
        with pytest.raises(AssertionError):
            write_samples(images, tmp_path / "samples")
        with pytest.raises(AssertionError):
            draw_samples(images, tmp_path / "s.png", title="")
    assert os.listdir(tmp_path) == []


def test_a_new_and_an_empty_folder_will_do_and_nothing_is_left_there(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new", tmp_path / "far" / "away"):
        check_samples_folder(folder)
    assert os.listdir(tmp_path) == ["empty"]
    assert os.listdir(tmp_path / "empty") == []


def test_a_relative_folder_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    check_samples_folder(Path("a") / "b")
    write_samples(noise(1, 8, 8), Path("a") / "b")
    assert os.listdir("a/b") == ["000000.png"]


def test_a_folder_that_holds_something_is_refused_beforehand(tmp_path: Path):
    (tmp_path / ".hidden").write_text("mine")
    with pytest.raises(UsageError, match=rf"^{re.escape(str(tmp_path))}: not empty; samples go into a new or an empty"):
        check_samples_folder(tmp_path)


def test_a_folder_that_cannot_be_is_told_beforehand(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "samples"):
        with pytest.raises(OutputError, match=rf"^cannot write {re.escape(str(folder))}: Not a directory$"):
            check_samples_folder(folder)


def test_a_disk_that_fills_up_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OutputError, match=rf"^cannot write {re.escape(str(tmp_path))}: No space left on device$"):
        write_samples(noise(1, 8, 8), tmp_path)
