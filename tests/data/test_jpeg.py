"""JPEG files decode upright at full and at reduced scale; other files are left to `open_image`."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from jpegs import jpeg_bytes, photo
from PIL import Image

from w2skd.data.decode import open_image
from w2skd.data.jpeg import open_jpeg
from w2skd.data.window import Window, centre_window

BILINEAR = Image.Resampling.BILINEAR


def square_of(image: Image.Image, window: Window, size_px: int) -> np.ndarray:
    """Cut and resize at full scale."""
    resized = image.crop(window.box).resize(window.resized, BILINEAR)
    left, top = window.offset
    return np.asarray(resized.crop((left, top, left + size_px, top + size_px)), dtype=int)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_full_scale_is_what_open_image_decodes(tmp_path: Path, orientation: int, mode: str) -> None:
    content = jpeg_bytes(photo(85, 61).convert(mode), orientation)
    (tmp_path / "a.jpg").write_bytes(content)
    expected = open_image(tmp_path / "a.jpg")
    jpeg = open_jpeg(content)
    assert jpeg is not None
    assert jpeg.size == expected.size
    full = jpeg.full()
    assert full is not None
    assert full.mode == "RGB"
    assert np.array_equal(full, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("by", [2, 4, 8])
@pytest.mark.parametrize("kind", ["box", "centre"])
def test_reduced_scale_shows_the_same_window(orientation: int, by: int, kind: str) -> None:
    """Sides are not multiples of the scale, and the box is off the centre, to detect a wrong rotation or shift."""
    content = jpeg_bytes(photo(645, 483), orientation)
    jpeg, other = open_jpeg(content), open_jpeg(content)
    assert jpeg is not None
    assert other is not None
    full, size_px = other.full(), 300 // by
    assert full is not None
    window: Window | None = Window((131, 13, 131 + 301, 13 + 327), (size_px, size_px))
    if kind == "centre":
        size_px = 400 // by
        window = centre_window(jpeg.size, size_px, 480 // by)
    assert window is not None
    assert window.reduction == by
    square = jpeg.square(window, size_px, BILINEAR)
    assert square is not None
    assert square.size == (size_px, size_px)
    assert jpeg.image.size == (-(-645 // by), -(-483 // by)), "decoded at the reduced scale"
    difference = np.asarray(square, dtype=int) - square_of(full, window, size_px)
    assert np.abs(difference).mean() < 1.0
    shifted = np.roll(np.asarray(square, dtype=int), 1, axis=1) - square_of(full, window, size_px)
    assert np.abs(shifted[:, 1:]).mean() > 2 * np.abs(difference).mean(), "the check sees a shift"


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_window_without_reduction_keeps_every_pixel(orientation: int) -> None:
    content = jpeg_bytes(photo(170, 150), orientation)
    size, other = (150, 170) if orientation == 6 else (170, 150), open_jpeg(content)
    assert other is not None
    for window, size_px in ((Window((20, 10, 130, 140), (100, 100)), 100), (centre_window(size, 90, 96), 90)):
        assert window is not None
        jpeg = open_jpeg(content)
        assert jpeg is not None
        square, full = jpeg.square(window, size_px, BILINEAR), other.full()
        assert square is not None
        assert full is not None
        assert np.array_equal(square, square_of(full, window, size_px))


def test_other_files_are_left_to_open_image() -> None:
    png, wide = BytesIO(), BytesIO()
    photo(20, 20).save(png, "PNG")
    Image.new("I;16", (20, 20)).save(wide, "PNG")
    cmyk = jpeg_bytes(photo(20, 20).convert("CMYK"))
    for content in (png.getvalue(), wide.getvalue(), cmyk, b"", b"\xff\xd8\xff", jpeg_bytes(photo(20, 20))[:40]):
        assert open_jpeg(content) is None


def test_damaged_pixels_are_none() -> None:
    content = jpeg_bytes(photo(640, 480))
    window = Window((0, 0, 640, 480), (64, 64))
    for whole in (content, content[: len(content) // 2]):
        jpeg, other = open_jpeg(whole), open_jpeg(whole)
        assert jpeg is not None
        assert other is not None
        is_complete = whole is content
        assert jpeg.is_common is is_complete
        assert (jpeg.full() is not None) is is_complete
        assert (other.square(window, 64, BILINEAR) is not None) is is_complete


def test_a_truncated_file_with_a_thumbnail_is_not_complete() -> None:
    exif = b"Exif\0\0" + jpeg_bytes(photo(60, 40))  # holds the marker of the end of an image
    file = BytesIO()
    photo(64, 48).save(file, "JPEG", exif=exif)
    content = file.getvalue()
    whole, cut = open_jpeg(content), open_jpeg(content[:-200])
    assert whole is not None
    assert cut is not None
    assert (whole.is_common, cut.is_common) == (True, False)


def test_files_of_stored_red_green_and_blue_are_unusual() -> None:
    jpeg = open_jpeg(jpeg_bytes(photo(20, 20), keep_rgb=True))
    assert jpeg is not None
    assert not jpeg.is_common
