"""What a file says about its values holds."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from w2skd.data.decode import open_image
from w2skd.errors import DataError

GREY = np.arange(0, 256, 15, dtype=np.uint32).reshape(3, 6)
"""Grey values of 8 bits, from black to white."""

BITS, PHOTOMETRIC, ORIENTATION, SAMPLE_FORMAT = 258, 262, 274, 339


def tiff(values: NDArray[np.uint32], bits: int, photometric: int = 1, order: str = "<", **more: int) -> bytes:
    """An uncompressed greyscale TIFF of one strip. Samples of 8, 16 and 32 bits take whole bytes, others are packed."""
    height, width = values.shape
    if bits in (8, 16, 32):
        packed = values.astype(f"{order}u{bits // 8}").tobytes()
    else:
        rows = ("".join(format(int(value), f"0{bits}b") for value in row) for row in values)
        padded = (row + "0" * (-len(row) % 8) for row in rows)
        packed = b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in padded)
    tags = {256: width, 257: height, BITS: bits, 259: 1, PHOTOMETRIC: photometric, 273: 8, 277: 1, 278: height}
    tags |= {279: len(packed)} | {int(tag[1:]): value for tag, value in more.items()}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    mark = b"II" if order == "<" else b"MM"
    return mark + struct.pack(f"{order}HI", 42, 8 + len(packed)) + packed + directory


def read(content: bytes, path: Path) -> NDArray[np.uint8]:
    path.write_bytes(content)
    image = np.asarray(open_image(path))
    assert (image == image[..., :1]).all(), "grey"
    return image[..., 0]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bits=st.sampled_from([1, 2, 4, 8, 10, 12, 14, 16, 24, 32]),
    photometric=st.sampled_from([0, 1]),
    order=st.sampled_from("<>"),
)
def test_a_tiff_is_read_as_a_viewer_shows_it_or_refused_by_its_depth(
    bits: int, photometric: int, order: str, tmp_path: Path
) -> None:
    most = 2**bits - 1
    stored = GREY.astype(np.uint64) * most // 255
    shown = np.round(stored * (255 / most))
    content = tiff((most - stored if photometric == 0 else stored).astype(np.uint32), bits, photometric, order)
    try:
        found = read(content, tmp_path / "x.tif")
    except DataError as error:
        known = bits == 8 or (bits == 16 and (photometric, order) != (0, ">"))
        named = f"{bits} bits per sample" in str(error) or f"{bits}-bit" in str(error)
        if known or not named or "save it with 8 or 16 bits" not in str(error):
            raise
        return
    assert np.abs(found - shown).max() <= 1


@pytest.mark.parametrize("bits", [12, 16])
def test_the_range_is_that_of_the_bits(bits: int, tmp_path: Path) -> None:
    found = read(tiff(GREY * (2**bits - 1) // 255, bits), tmp_path / "x.tif")
    assert found.tolist() == GREY.tolist()


def test_white_is_zero_in_sixteen_bits(tmp_path: Path) -> None:
    assert read(tiff(65535 - GREY * 257, 16, 0), tmp_path / "x.tif").tolist() == GREY.tolist()


def test_a_dim_sixteen_bit_image_stays_dim(tmp_path: Path) -> None:
    """Also with its largest value as MaxSampleValue, which the TIFF specification forbids to use for display."""
    assert read(tiff(GREY * 16, 16, _281=4080), tmp_path / "x.tif").max() == 16


@pytest.mark.parametrize(("name", "photometric"), [("12 bits per sample and inverted grey values", 0), ("10 bits", 1)])
def test_depths_that_cannot_be_read_are_named(name: str, photometric: int, tmp_path: Path) -> None:
    bits = int(name.split()[0])
    (tmp_path / "x.tif").write_bytes(tiff(GREY * 0, bits, photometric))
    with pytest.raises(DataError, match=rf"x\.tif: a TIFF file of {name}.* save it with 8 or 16 bits"):
        open_image(tmp_path / "x.tif")


@pytest.mark.parametrize(("mode", "words"), [("I", "32-bit integer"), ("F", "32-bit floating-point")])
def test_samples_without_a_range_are_named(mode: str, words: str, tmp_path: Path) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=rf"x\.tif: pixels of mode {mode} \({words} samples\) have no defined range"):
        open_image(tmp_path / "x.tif")


def test_signed_samples_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(tiff(GREY, 16, _339=2))
    with pytest.raises(DataError, match=r"pixels of mode I \(16-bit integer samples\) have no defined range"):
        open_image(tmp_path / "x.tif")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(most=st.integers(1, 65535), plain=st.booleans(), channels=st.sampled_from([1, 3]))
def test_the_largest_value_of_a_pnm_file_is_white(most: int, plain: bool, channels: int, tmp_path: Path) -> None:
    stored = GREY * most // 255
    values = np.repeat(stored, channels)
    magic = {(True, 1): 2, (True, 3): 3, (False, 1): 5, (False, 3): 6}[plain, channels]
    text = " ".join(map(str, values)).encode()
    content = text if plain else values.astype(">u2" if most > 255 else "u1").tobytes()
    found = read(b"P%d\n6 3\n%d\n" % (magic, most) + content, tmp_path / "x.pnm")
    assert np.abs(found - np.round(stored * 255 / most)).max() <= 1


def test_sixteen_bits_in_a_png(tmp_path: Path) -> None:
    Image.fromarray((GREY * 257).astype(np.uint16)).save(tmp_path / "x.png")
    assert np.asarray(open_image(tmp_path / "x.png"))[..., 0].tolist() == GREY.tolist()


PIXELS = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
TURNED = {
    1: PIXELS,
    2: PIXELS[:, ::-1],
    3: PIXELS[::-1, ::-1],
    4: PIXELS[::-1],
    5: PIXELS.transpose(1, 0, 2),
    6: np.rot90(PIXELS, -1),
    7: np.rot90(PIXELS, 2).transpose(1, 0, 2),
    8: np.rot90(PIXELS),
}


def exif_of(orientation: int, *entries: bytes, order: str = "<") -> bytes:
    """An EXIF block with entries of 12 bytes beside the orientation."""
    turned = struct.pack(f"{order}HHIHH", ORIENTATION, 3, 1, orientation, 0)
    known = sorted([turned, *entries], key=lambda entry: struct.unpack(f"{order}H", entry[:2]))
    mark = b"II" if order == "<" else b"MM"
    return mark + struct.pack(f"{order}HIH", 42, 8, len(known)) + b"".join(known) + bytes(4)


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNED)
def test_the_orientation_is_applied(orientation: int, format_: str, tmp_path: Path) -> None:
    options = {"lossless": True} if format_ == "WEBP" else {}
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "x", format_, exif=exif, **options)
    assert np.array_equal(np.asarray(open_image(tmp_path / "x")), TURNED[orientation])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    orientation=st.integers(0, 12),
    tag=st.sampled_from([256, 257, 271, 282, 306, 531, 33432, 34665, 34853, 37500, 40965]),
    kind=st.integers(0, 14),
    count=st.sampled_from([0, 1, 2, 4, 2**31]),
    value=st.binary(min_size=4, max_size=4),
    order=st.sampled_from("<>"),
)
def test_no_other_entry_matters(
    orientation: int, tag: int, kind: int, count: int, value: bytes, order: str, tmp_path: Path
) -> None:
    entry = struct.pack(f"{order}HHI", tag, kind, count) + value
    stream = io.BytesIO()
    block = b"Exif\0\0" + exif_of(orientation, entry, order=order)
    Image.fromarray(PIXELS).save(stream, "JPEG", quality=100, subsampling=0, exif=block)
    (tmp_path / "x.jpg").write_bytes(stream.getvalue())
    found = np.asarray(open_image(tmp_path / "x.jpg")).astype(int)
    expected = TURNED.get(orientation, PIXELS)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 4


def test_a_broken_block_of_metadata_means_upright(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffbroken")
    (tmp_path / "x.jpg").write_bytes(stream.getvalue())
    assert open_image(tmp_path / "x.jpg").size == (6, 8)
