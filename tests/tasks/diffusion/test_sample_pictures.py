import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from paper import noise, pixels, places
from PIL import Image

from w2skd.errors import OutputError
from w2skd.tasks.diffusion.sample_pictures import draw_samples, write_samples


def tile(image, zoom):
    return image.permute(1, 2, 0).numpy().repeat(zoom, axis=0).repeat(zoom, axis=1)


@pytest.mark.parametrize(("side", "zoom"), [(16, 6), (32, 3), (64, 2), (96, 1), (256, 1)])
def test_images_are_drawn_pixel_for_pixel_in_reading_order(tmp_path, side, zoom):
    images = noise(5, side, side)
    draw_samples(images, tmp_path / "s.png", title="samples")
    found = [place for image in images for place in places(pixels(tmp_path / "s.png"), tile(image, zoom))]
    step = zoom * side + 2
    top, left = found[0]
    grid = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert found == [(top + row * step, left + column * step) for row, column in grid]


@pytest.mark.parametrize(
    ("count", "height", "width", "zoom", "shown"),
    [(64, 32, 32, 3, 64), (1000, 32, 32, 3, 400), (100, 256, 256, 1, 49), (7, 64, 1500, 1, 7), (7, 1500, 64, 1, 7)],
)
def test_a_sheet_holds_as_many_images_as_fit(tmp_path, count, height, width, zoom, shown):
    draw_samples(torch.zeros(count, 3, height, width, dtype=torch.uint8), tmp_path / "s.png", title="samples")
    picture = pixels(tmp_path / "s.png")
    assert max(picture.shape) <= 2000 + 122
    assert (picture == 0).all(axis=2).sum() == shown * zoom**2 * height * width


def test_an_image_larger_than_a_sheet_is_drawn_whole(tmp_path):
    image = noise(2, 2100, 40)
    draw_samples(image, tmp_path / "s.png", title="samples")
    assert len(places(pixels(tmp_path / "s.png"), tile(image[0], 1))) == 1


def test_an_empty_batch_is_drawn(tmp_path):
    draw_samples(noise(0, 8, 8), tmp_path / "s.png", title="samples")
    assert pixels(tmp_path / "s.png").shape[0] < 200


def test_the_same_images_draw_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        draw_samples(noise(4, 16, 16), tmp_path / name, title="again")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_every_image_is_written_losslessly_and_in_order(tmp_path: Path):
    images = noise(12, 9, 14)
    write_samples(images, tmp_path / "new" / "samples")
    names = sorted(os.listdir(tmp_path / "new" / "samples"))
    assert names == [f"{number:06d}.png" for number in range(12)]
    for name, image in zip(names, images, strict=True):
        assert np.array_equal(pixels(tmp_path / "new" / "samples" / name), tile(image, 1))


def test_images_can_be_written_to_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_samples(noise(1, 8, 8), Path("a") / "b")
    assert os.listdir("a/b") == ["000000.png"]


def test_other_tensors_are_refused(tmp_path: Path):
    for images in (noise(2, 8, 8).float(), noise(2, 8, 8)[:, :1], noise(2, 8, 8)[0]):
        with pytest.raises(AssertionError):
            write_samples(images, tmp_path / "samples")
        with pytest.raises(AssertionError):
            draw_samples(images, tmp_path / "s.png", title="")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OutputError, match=rf"^cannot write {re.escape(str(tmp_path))}: No space left on device$"):
        write_samples(noise(1, 8, 8), tmp_path)
