"""Decoding: what a file says about its values and its orientation holds."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin, features

from w2skd.data.decode import colour_mode, open_image
from w2skd.errors import DataError

GENERATED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

SHORT, LONG = 3, 4
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, STRIP, ORIENTATION, SAMPLES = 256, 257, 258, 259, 262, 273, 274, 277
ROWS, STRIP_BYTES, EXTRA_SAMPLES, MAX_SAMPLE_VALUE, SAMPLE_FORMAT = 278, 279, 338, 281, 339
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
RAW, DEFLATE = 1, 8

TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards, blue is constant."""
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None, :]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels[..., 2] = 100
    return Image.fromarray(pixels)


def directory(order: str, entries: list[tuple[int, int, int, bytes]], offset: int) -> bytes:
    """A TIFF directory that starts at `offset`, followed by the values that do not fit into it.

    Args:
        order: < or >.
        entries: tag, type, count, and encoded value.
        offset: from the header of the file, in bytes.
    """
    body, values = b"", b""
    for tag, kind, count, value in sorted(entries):
        place = value.ljust(4, b"\0")
        if len(value) > 4:
            place = struct.pack(f"{order}I", offset + 2 + 12 * len(entries) + 4 + len(values))
            values += value + b"\0" * (len(value) % 2)
        body += struct.pack(f"{order}HHI", tag, kind, count) + place
    return struct.pack(f"{order}H", len(entries)) + body + bytes(4) + values


def header(order: str, offset: int) -> bytes:
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", offset)


def packed(values: np.ndarray, bits: int, order: str) -> bytes:
    """Rows of `bits` bits per value, each row padded to whole bytes."""
    if bits % 8 == 0:
        return values.astype(np.dtype(f"u{bits // 8}").newbyteorder(order)).tobytes()
    rows = ["".join(f"{value:0{bits}b}" for value in row) for row in values.tolist()]
    return b"".join(int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big") for row in rows)


def tiff(
    values: np.ndarray, bits: int, order: str = "<", changed: dict[int, tuple[int, ...] | None] | None = None
) -> bytes:
    """A TIFF of one strip.

    Args:
        values: [H, W] or [H, W, samples], as unsigned integers of these bits.
        bits: per sample.
        order: < or >.
        changed: values of tags; None removes one.
    """
    changed = changed or {}
    samples = values.shape[2] if values.ndim == 3 else 1
    data = packed(values.reshape(len(values), -1), bits, order)
    if changed.get(COMPRESSION) == (DEFLATE,):
        data = zlib.compress(data)
    data += b"\0" * (len(data) % 2)
    tags: dict[int, tuple[int, ...] | None] = {
        WIDTH: (values.shape[1],),
        HEIGHT: (len(values),),
        BITS: (bits,) * samples,
        COMPRESSION: (RAW,),
        PHOTOMETRIC: (1 if samples < 3 else 2,),
        STRIP: (8,),
        SAMPLES: (samples,),
        ROWS: (len(values),),
        STRIP_BYTES: (len(data),),
        SAMPLE_FORMAT: (UNSIGNED,) * samples,
    }
    entries = []
    for tag, numbers in (tags | changed).items():
        if numbers is not None:
            kind = LONG if tag in (WIDTH, HEIGHT, STRIP, ROWS, STRIP_BYTES) else SHORT
            code = "I" if kind == LONG else "H"
            entries.append((tag, kind, len(numbers), struct.pack(f"{order}{len(numbers)}{code}", *numbers)))
    offset = 8 + len(data)
    return header(order, offset) + data + directory(order, entries, offset)


def grey(path: Path, content: bytes) -> np.ndarray:
    """Write and open a greyscale image; return its uint8 [H, W]."""
    path.write_bytes(content)
    pixels = np.asarray(open_image(path))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def exif_of(orientation: object) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


@GENERATED
@given(data=st.data())
def test_a_tiff_has_the_range_and_polarity_that_it_states_or_is_refused(data: st.DataObject, tmp_path: Path):
    bits = data.draw(st.sampled_from([1, 2, 4, 6, 8, 10, 12, 14, 16, 32]))
    white_is_zero = data.draw(st.booleans())
    order = data.draw(st.sampled_from("<>"))
    compression = data.draw(st.sampled_from([RAW, DEFLATE]))
    top = 2**bits - 1
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 9)))
    values = np.random.default_rng(bits).integers(0, top, shape, endpoint=True)
    values.flat[0] = top
    content = tiff(values, bits, order, {PHOTOMETRIC: (0 if white_is_zero else 1,), COMPRESSION: (compression,)})
    expected = np.round((top - values if white_is_zero else values) / top * 255)
    big, refused = order == ">", {(12, False, True), (12, True, False), (12, True, True), (16, True, True)}
    if bits in (1, 2, 4, 8, 12, 16) and (bits, white_is_zero, big) not in refused:
        assert grey(tmp_path / "x.tif", content).tolist() == expected.tolist()
    else:
        polarity = "0 is white" if white_is_zero else "0 is black"
        with pytest.raises(
            DataError, match=rf"x\.tif: .* \({bits} bits, unsigned, {polarity}\): save it as RGB or greyscale of 8"
        ):
            grey(tmp_path / "x.tif", content)


@pytest.mark.parametrize("compression", [RAW, DEFLATE])
def test_twelve_bits_run_to_4095(tmp_path: Path, compression: int):
    values = np.array([[0, 1365, 4095], [2047, 16, 15]])
    content = tiff(values, 12, changed={COMPRESSION: (compression,)})
    assert grey(tmp_path / "x.tif", content).tolist() == [[0, 85, 255], [127, 1, 1]]


def test_sixteen_bits_whose_zero_is_white_are_inverted(tmp_path: Path):
    values = np.array([[0, 21845, 65535]])
    assert grey(tmp_path / "x.tif", tiff(values, 16, changed={PHOTOMETRIC: (0,)})).tolist() == [[255, 170, 0]]


@pytest.mark.parametrize(
    ("bits", "order", "changed", "facts"),
    [
        (8, "<", {SAMPLE_FORMAT: (SIGNED,)}, "8 bits, signed, 0 is black"),
        (8, ">", {SAMPLE_FORMAT: (SIGNED,)}, "8 bits, signed, 0 is black"),
        (16, "<", {SAMPLE_FORMAT: (SIGNED,)}, "16 bits, signed, 0 is black"),
        (32, ">", {SAMPLE_FORMAT: (SIGNED,)}, "32 bits, signed, 0 is black"),
        (32, "<", {}, "32 bits, unsigned, 0 is black"),
        (32, "<", {SAMPLE_FORMAT: (FLOAT,), PHOTOMETRIC: (0,)}, "32 bits, floating-point, 0 is white"),
        (16, "<", {SAMPLE_FORMAT: (FLOAT,)}, "16 bits, floating-point, 0 is black"),
        (16, ">", {SAMPLE_FORMAT: (4,)}, "16 bits, of undefined type, 0 is black"),
        (16, ">", {PHOTOMETRIC: (0,)}, "16 bits, unsigned, 0 is white"),
        (8, "<", {PHOTOMETRIC: None}, "8 bits, unsigned, no PhotometricInterpretation"),
        (16, "<", {PHOTOMETRIC: None}, "16 bits, unsigned, no PhotometricInterpretation"),
        (14, "<", {PHOTOMETRIC: (32803,)}, "14 bits, unsigned, photometric=32803"),
    ],
)
def test_samples_without_a_known_range_are_named(
    tmp_path: Path, bits: int, order: str, changed: dict[int, tuple[int, ...] | None], facts: str
):
    with pytest.raises(DataError) as raised:
        grey(tmp_path / "x.tif", tiff(np.array([[3, 2, 1]]), bits, order, changed))
    remedy = "save it as RGB or greyscale of 8 or 16 unsigned bits"
    if changed.get(PHOTOMETRIC, (1,)) in (None, (0,)):
        remedy += " with 0 as black"
    assert str(raised.value) == f"{tmp_path}/x.tif: unsupported samples of a TIFF ({facts}): {remedy}"


def test_a_damaged_tiff_is_not_blamed_on_its_samples(tmp_path: Path):
    content = tiff(np.array([[3, 2, 1]]), 8, changed={WIDTH: None, SAMPLE_FORMAT: None})
    for broken in (content, content[:-30], header("<", 8) + bytes(6)):
        (tmp_path / "x.tif").write_bytes(broken)
        with pytest.raises(DataError, match=r"x\.tif: (not an image|damaged)"):
            open_image(tmp_path / "x.tif")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_colours_of_a_tiff_have_8_or_16_bits(tmp_path: Path, bits: int, order: str):
    top = 2**bits - 1
    (tmp_path / "x.tif").write_bytes(tiff(np.array([[[0, top, top // 2], [top // 3, 0, top]]]), bits, order))
    if bits in (8, 16):
        assert np.asarray(open_image(tmp_path / "x.tif")).tolist() == [[[0, 255, 127], [85, 0, 255]]]
    else:
        with pytest.raises(
            DataError, match=rf"x\.tif: .* \(3 x {bits} bits, unsigned, RGB\): save it as RGB or greyscale of 8 or 16"
        ):
            open_image(tmp_path / "x.tif")


def test_the_statistics_of_a_tiff_do_not_change_its_range(tmp_path: Path):
    """TIFF 6.0 forbids that MaxSampleValue affects the appearance."""
    content = tiff(np.array([[0, 4095]]), 16, changed={MAX_SAMPLE_VALUE: (4095,)})
    assert grey(tmp_path / "x.tif", content).tolist() == [[0, 16]]


@pytest.mark.skipif(
    all(mode != "La" for mode, _ in TiffImagePlugin.OPEN_INFO.values()), reason="this version of Pillow cannot read it"
)
def test_premultiplied_grey_is_read(tmp_path: Path):
    content = tiff(np.array([[[60, 255], [200, 255]]]), 8, changed={PHOTOMETRIC: (1,), EXTRA_SAMPLES: (1,)})
    assert grey(tmp_path / "x.tif", content).tolist() == [[60, 200]]


@GENERATED
@given(
    top=st.one_of(st.integers(1, 65535), st.sampled_from([1, 255, 256, 1023, 4095, 65534, 65535])),
    magic=st.sampled_from(["P2", "P3", "P5", "P6"]),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=6),
)
def test_white_is_the_maximum_of_a_pgm_or_ppm(top: int, magic: str, shares: list[float], tmp_path: Path):
    values = np.round(np.array([0, 1, *shares]) * top).astype(np.int64)
    samples = values if magic in ("P2", "P5") else np.repeat(values, 3)
    if magic in ("P2", "P3"):
        body = " ".join(map(str, samples)).encode()
    else:
        body = samples.astype(">u2" if top > 255 else "u1").tobytes()
    found = grey(tmp_path / "x.pgm", f"{magic}\n{len(values)} 1\n# a remark\n{top}\n".encode() + body)
    assert np.abs(found[0] - values / top * 255).max() <= 0.51
    assert found[0, 1] == 255


def test_floating_point_pixels_are_refused(tmp_path: Path):
    (tmp_path / "x.ppm").write_bytes(b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5))
    with pytest.raises(DataError, match=r"x\.ppm: 32-bit floating-point pixels .*save it with 8 or 16 bits$"):
        open_image(tmp_path / "x.ppm")


def test_sixteen_bits_of_a_png_are_read(tmp_path: Path):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = {0: (65535, 128 * 257, 257), 2: (65535, 65535, 65535), 4: (257 * 9, 65535), 6: (257 * 7,) * 3 + (65535,)}
    for colour, values in row.items():
        width = len(values) // {0: 1, 2: 3, 4: 2, 6: 4}[colour]
        pixels = zlib.compress(b"\0" + struct.pack(f">{len(values)}H", *values))
        content = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, 16, colour, 0, 0, 0)) + chunk(b"IDAT", pixels)
        found = grey(tmp_path / "x.png", b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b""))
        assert found.tolist() == {0: [[255, 128, 1]], 2: [[255]], 4: [[9]], 6: [[7]]}[colour]


def test_the_depth_of_an_unsupported_jpeg_is_named(tmp_path: Path):
    stream = io.BytesIO()
    gradient(8, 8).save(stream, format="JPEG")
    start = stream.getvalue().index(b"\xff\xc0")
    content = bytearray(stream.getvalue())
    content[start + 4] = 12
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.jpg: not an image or an unsupported format \(.*12-bit.*\): .*convert it$"):
        open_image(tmp_path / "x.jpg")


@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize(
    ("stored", "orientation", "said", "upright"),
    [
        ((8, 12), 6, (12, 8), True),
        ((12, 8), 6, (12, 8), False),
        ((8, 8), 6, (8, 8), True),
        ((8, 12), 1, (8, 12), False),
        ((8, 12), 6, None, True),
    ],
)
def test_exif_orientation_is_applied_unless_the_stated_size_contradicts_it(
    stored: tuple[int, int], orientation: int, said: tuple[int, int] | None, upright: bool, ending: str, tmp_path: Path
):
    path = tmp_path / f"a{ending}"
    gradient(*stored).save(path, exif=exif_of(orientation))
    expected = gradient(*stored).transpose(Image.Transpose.ROTATE_270) if upright else gradient(*stored)
    assert open_image(path, said).tobytes() == expected.tobytes()


def test_an_image_that_has_neither_size_is_refused(tmp_path: Path):
    path = tmp_path / "a.png"
    gradient(8, 12).save(path, exif=exif_of(6))
    with pytest.raises(DataError, match=r"a\.png: is 12 x 8 px .* state 12 x 9 px$"):
        open_image(path, (12, 9))


def random_entry(order: str) -> st.SearchStrategy[tuple[int, int, int, bytes]]:
    """Any entry of EXIF beside the orientation: known and unknown types, counts and pointers that lead nowhere."""
    tags = st.one_of(
        st.sampled_from([WIDTH, HEIGHT, 0x8769, 0x8825, 0xA005, 0x010F, 0x0111, 0x927C, 282, 296]),
        st.integers(0, 65535),
    )
    return st.tuples(tags, st.integers(0, 20), st.integers(0, 2**32 - 1) | st.integers(0, 5), st.binary(max_size=12))


@GENERATED
@given(data=st.data(), orientation=st.integers(1, 8), ending=st.sampled_from([".jpg", ".png", ".webp"]))
def test_entries_beside_the_orientation_do_not_matter(
    data: st.DataObject, orientation: int, ending: str, tmp_path: Path
):
    if ending == ".webp" and not features.check("webp"):
        return
    order = data.draw(st.sampled_from("<>"))
    others = data.draw(st.lists(random_entry(order), max_size=5, unique_by=lambda entry: entry[0]))
    entries = [entry for entry in others if entry[0] != ORIENTATION]
    entries.append((ORIENTATION, SHORT, 1, struct.pack(f"{order}H", orientation)))
    exif = b"Exif\0\0" + header(order, 8) + directory(order, entries, 8)
    path = tmp_path / f"x{ending}"
    gradient(24, 16).save(path, exif=exif, **({"lossless": True} if ending == ".webp" else {}))
    with Image.open(path) as image:
        stored = image.convert("RGB")
    turn = TURNS[orientation]
    assert open_image(path).tobytes() == (stored if turn is None else stored.transpose(turn)).tobytes()


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0no header",
        b"Exif\0\0II*\0" + struct.pack("<IH", 8, 999),
        b"Exif\0\0II*\0" + struct.pack("<I", 2**31),
        b"Exif\0\0" + header("<", 8) + directory("<", [(ORIENTATION, 2, 2, b"6\0")], 8),
        b"Exif\0\0" + header("<", 8) + directory("<", [(ORIENTATION, SHORT, 1, b"\x09\0")], 8),
        b"Exif\0\0" + header("<", 8) + directory("<", [(ORIENTATION, SHORT, 1, b"\0\0")], 8),
    ],
)
def test_an_image_with_broken_exif_is_upright(tmp_path: Path, exif: bytes, ending: str):
    path = tmp_path / f"x{ending}"
    gradient(8, 4).save(path, exif=exif)
    assert open_image(path).size == (8, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [RAW, DEFLATE])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_is_turned_without_reading_its_other_metadata(
    tmp_path: Path, orientation: int, compression: int, order: str
):
    values = np.arange(6).reshape(2, 3)
    nowhere = {0x8769: (60000,), 0x8825: (60000, 7)}
    changed = nowhere | {ORIENTATION: (orientation,), COMPRESSION: (compression,)}
    stored = Image.fromarray(values.astype(np.uint8))
    turn = TURNS[orientation]
    expected = stored if turn is None else stored.transpose(turn)
    content = tiff(values, 8, order, changed)
    assert grey(tmp_path / "x.tif", content).tolist() == np.asarray(expected).tolist()


@pytest.mark.parametrize(
    "index", [b"", b"MM\0*", b"II*\0" + struct.pack("<IHHHII", 8, 1, 0xB001, LONG, 1, 3) + bytes(4)]
)
def test_a_jpeg_with_a_broken_index_of_more_images_is_read(tmp_path: Path, index: bytes):
    stream = io.BytesIO()
    gradient(16, 8).save(stream, format="JPEG", exif=exif_of(6))
    content, segment = stream.getvalue(), b"MPF\0" + index
    path = tmp_path / "x.jpg"
    path.write_bytes(content[:2] + b"\xff\xe2" + struct.pack(">H", 2 + len(segment)) + segment + content[2:])
    assert open_image(path).size == (8, 16)


def test_a_damaged_png_with_exif_is_refused(tmp_path: Path):
    path = tmp_path / "x.png"
    gradient(64, 64).save(path, exif=exif_of(6))
    content = bytearray(path.read_bytes())
    place = content.index(b"IDAT") + 12
    content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.png: damaged"):
        open_image(path)


def test_the_mode_is_read_from_the_header(tmp_path: Path):
    palette = Image.new("RGB", (8, 8), (90, 90, 90)).quantize(4)
    images = {
        "grey.png": (Image.new("L", (8, 8)), {}, "L"),
        "alpha.png": (Image.new("RGBA", (8, 8)), {}, "RGBA"),
        "grey_alpha.png": (Image.new("LA", (8, 8)), {}, "LA"),
        "palette.png": (palette, {}, "P"),
        "clear.png": (palette, {"transparency": b"\x00\xff"}, "RGBA"),
        "wide.png": (Image.new("I;16", (8, 8)), {}, "I;16"),
    }
    for name, (image, options, _) in images.items():
        image.save(tmp_path / name, **options)
    assert {name: colour_mode(tmp_path / name) for name in images} == {
        name: mode for name, (*_, mode) in images.items()
    }
    (tmp_path / "grey.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"grey\.png: not an image"):
        colour_mode(tmp_path / "grey.png")
