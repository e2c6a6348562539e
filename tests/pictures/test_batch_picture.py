import os
import warnings

import numpy as np
import pytest
from paper import box, noise, pixels, places

from w2skd.pictures.batch import draw_batch


@pytest.mark.parametrize(
    ("height", "width", "zoom"), [(8, 8, 20), (32, 32, 5), (96, 96, 2), (224, 224, 1), (20, 60, 3)]
)
def test_every_image_is_drawn_exactly_in_reading_order(tmp_path, height, width, zoom):
    images = noise(3, height, width)
    draw_batch(images, ["a", "b", "c"], tmp_path / "batch.png", title="first batch")
    picture = pixels(tmp_path / "batch.png")
    found = []
    for image in images.permute(0, 2, 3, 1).numpy():
        found += places(picture, np.kron(image, np.ones((zoom, zoom, 1), dtype=np.uint8)))
    (top, left), second, third = found
    assert second == (top, left + zoom * width + 8)
    assert third == (top + zoom * height + 28, left)


def test_a_caption_is_below_its_image_and_shortened_to_its_width(tmp_path):
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


def test_any_caption_can_be_drawn_without_a_warning(tmp_path):
    odd = ["$x_{$", "鸟", "two\nlines \x07", os.fsdecode(b"caf\xe9")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_batch(noise(4, 8, 8), odd, tmp_path / "b.png", title="鸟")


def test_at_most_64_images_are_drawn(tmp_path):
    for number in (64, 65):
        draw_batch(noise(number, 8, 8), [""] * number, tmp_path / f"{number}.png", title="")
    some, more = pixels(tmp_path / "64.png"), pixels(tmp_path / "65.png")
    assert some.shape == more.shape
    first, last, begin, end = box((some != more).any(axis=2))  # "64 of 64", "64 of 65"
    assert (last < 74, begin > 24, end < 100) == (True, True, True), (first, last, begin, end)
