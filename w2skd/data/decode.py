"""Decoding of image files: upright, in RGB, with the range of values that the file states."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from w2skd.errors import DataError

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
"""Formats that are decoded, regardless of the file's extension. Pillow's other readers may start external programs."""

_ORIENTATION = int(ExifTags.Base.Orientation)

_BITS_PER_SAMPLE, _PHOTOMETRIC = TiffImagePlugin.BITSPERSAMPLE, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION
"""Tags of TIFF files."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> how to turn the stored pixels."""


def read_content(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def open_image(path: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Decode one image, upright, in RGB and at its own size.

    Args:
        path: the file.
        size: (width, height) in px that the image's annotations state. If the image has this size only without its
            EXIF orientation, the orientation is not applied, because the annotations refer to the stored pixels.

    Raises:
        DataError: the file cannot be read or decoded, its header claims an unsafe number of pixels, or the image does
            not have the stated size in either orientation.
    """
    with _opened(path) as image:
        rgb = _to_rgb(_upright(image, size), image, path)
        rgb.load()
    if size not in (None, rgb.size):
        actual, stated = (f"{width} x {height}" for width, height in (rgb.size, size))
        raise DataError(f"{path}: is {actual} px (width x height), but its annotations state {stated} px")
    return rgb


def colour_mode(path: Path) -> str:
    """Return Pillow's mode of an image from its header; RGBA if one colour stands for transparency.

    Raises:
        DataError: as for `open_image`.
    """
    with _opened(path) as image:
        return "RGBA" if "transparency" in image.info else image.mode


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image to decode it within the block. Errors in the block become a `DataError` with the path."""
    try:
        with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
            yield image
    except Image.DecompressionBombError:
        raise DataError(
            f"{path}: its header claims more than {2 * _pixel_limit():,} pixels, which is not safe to decode"
        ) from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: {_describe_unknown(path)}") from None
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise almost any exception on damaged input
        if (reason := getattr(error, "strerror", None)) is not None:  # a system error, not a damaged image
            raise DataError(f"{path}: {reason}") from error
        raise DataError(f"{path}: damaged ({error}); replace or remove it") from error


def _upright(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    image.load()  # Pillow turns TIFF files while it loads them
    block = image.info.get("exif")
    orientation = image.getexif().get(_ORIENTATION) if block is None else _orientation(block)
    method = None if orientation is None else _TURNS.get(orientation)
    if method is None:
        return image
    turned = image.transpose(method)
    return image if image.size == size != turned.size else turned


def _orientation(block: bytes) -> int | None:
    """Return the orientation in an EXIF block. Nothing else is parsed: Pillow stops at the first broken entry."""
    block = block.removeprefix(b"Exif\0\0")
    order = ">" if block.startswith(b"MM") else "<"
    try:
        (first,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, first)
        for number in range(count):
            place = first + 2 + 12 * number
            tag, kind = struct.unpack_from(f"{order}HH", block, place)
            if tag == _ORIENTATION:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), block, place + 8)
                return int(value)
    except struct.error:  # the block ends within the list of entries
        pass
    return None


def _to_rgb(image: Image.Image, source: Image.Image, path: Path) -> Image.Image:
    """Convert an image to RGB with the range and polarity that its file states.

    Args:
        image: the pixels.
        source: the image as opened, with its file's metadata.
        path: for errors.

    Raises:
        DataError: the file does not state the range of its values.
    """
    mode = image.mode
    if mode == "RGB":
        return image
    if mode.startswith("I;16") or (mode == "I" and source.format in ("PPM", "PNG")):
        return _grey(image, source).convert("RGB")
    if mode in ("I", "F"):
        kind = "floating-point" if mode == "F" else "integer"
        bits = max(_tiff_tag(source, _BITS_PER_SAMPLE, 32), 16)
        raise DataError(
            f"{path}: pixels of mode {mode} ({bits}-bit {kind} samples) have no defined range; "
            "save it with 8 or 16 bits"
        )
    if mode in ("La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow cannot convert the former at once, and warns about the latter
    return image.convert("RGB")


def _grey(image: Image.Image, source: Image.Image) -> Image.Image:
    """Scale grey values of up to 16 bits to 8 bits: Pillow would clip them above 255."""
    # Pillow scales the values of PNG and PPM to 16 bits, but not those of TIFF.
    bits = _tiff_tag(source, _BITS_PER_SAMPLE, 16)
    values = np.asarray(image, dtype=np.float64) * (255 / (2**bits - 1))
    if _tiff_tag(source, _PHOTOMETRIC, 1) == 0:  # white is zero, which Pillow applies to 8 bits only
        values = 255 - values
    return Image.fromarray(np.round(values).clip(0, 255).astype(np.uint8))


def _tiff_tag(image: Image.Image, tag: int, default: int) -> int:
    """Return the number in a TIFF file's tag, the first if there are several; the default for other formats."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _describe_unknown(path: Path) -> str:
    """Return why Pillow opens no image in a file, if it is known."""
    try:
        with path.open("rb") as file:
            header = file.read(8)
            tags = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
            bits = tuple(tags[_BITS_PER_SAMPLE])
    except Exception:  # not a TIFF file
        return "not an image or an unsupported format: remove or convert it"
    polarity = " and inverted grey values (white is zero)" if tags.get(_PHOTOMETRIC) == 0 else ""
    depth = f"{bits[0]} bits per sample"
    return f"a TIFF file of {depth}{polarity} is not supported: save it with 8 or 16 bits, black as zero"


def square(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` px (bicubic, antialiased) and crop the centre."""
    width, height = image.size
    if width == height == size:
        return image
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    # Resizes and crops at once; pixels outside the box still contribute to the filter at its edges.
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def _pixel_limit() -> int:
    assert Image.MAX_IMAGE_PIXELS is not None
    return Image.MAX_IMAGE_PIXELS
