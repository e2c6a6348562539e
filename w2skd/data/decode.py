"""Decoding of image files: upright, in RGB, and cropped to a square."""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from w2skd.errors import DataError

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
"""Formats that are decoded, regardless of the file's extension. Pillow's other readers may start external programs."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> transposition of the stored image that puts it upright."""

_AS_STORED = UPRIGHT | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
"""EXIF orientation -> the inverse transposition."""

_EXIF_INTEGERS = {1: "B", 3: "H", 4: "I"}
"""Type of an EXIF entry -> format character of `struct`."""

_PHOTOMETRIC = {0: "0 is white", 1: "0 is black", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELAB"}
_SAMPLE_FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point"}


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

    Black and white are those of the file: the maximum of a PGM or PPM, and BitsPerSample and PhotometricInterpretation
    of a TIFF. A TIFF's MinSampleValue and MaxSampleValue are statistics and have no effect. Greyscale of more than 8
    bits is rounded to 8; of 16-bit colours, the high byte is kept. Of EXIF, only the orientation is read.

    Args:
        path: the file.
        size: (width, height) in px that the image's annotations state. If the image has this size only without its
            EXIF orientation, the orientation is not applied, because the annotations refer to the stored pixels.

    Raises:
        DataError: the file cannot be read or decoded, its samples are signed, floating-point or of an unsupported
            depth, its header claims an unsafe number of pixels, or the image does not have the stated size in either
            orientation.
    """
    with _opened(path) as image:
        levels = _levels(image, path)
        rgb = _to_rgb(_upright(image, size), levels)
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
        raise DataError(_unidentified(path)) from None
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise almost any exception on damaged input
        if (reason := getattr(error, "strerror", None)) is not None:  # a system error, not a damaged image
            raise DataError(f"{path}: {reason}") from error
        raise DataError(f"{path}: damaged ({error}); replace or remove it") from error


def _unidentified(path: Path) -> str:
    """Return the error of a file that Pillow cannot identify, with the reason if the file is of a known format."""
    reason = None
    with suppress(Exception), path.open("rb") as file:  # the file may be damaged in any way
        head = file.read(16)
        if head[:2] in (b"II", b"MM"):
            is_big = head[2:4] in (b"+\0", b"\0+")
            tags = TiffImagePlugin.ImageFileDirectory_v2(head if is_big else head[:8])
            file.seek(tags.next)
            tags.load(file)
            if set(tags.get(TiffImagePlugin.BITSPERSAMPLE, (8,))) != {8} or TiffImagePlugin.SAMPLEFORMAT in tags:
                return _unsupported_samples(path, tags)
        for factory, accepts in (Image.OPEN[name] for name in _FORMATS):
            if accepts is not None and accepts(head) is True:
                file.seek(0)
                try:
                    factory(file, "")
                except Exception as error:  # Pillow's decoders raise almost any exception on damaged input
                    reason = str(error)
    return f"{path}: not an image or an unsupported format{f' ({reason})' if reason else ''}: remove or convert it"


def _unsupported_samples(path: Path, tags: Mapping[int, Any]) -> str:
    """Return the error of a TIFF whose samples cannot be decoded to a known range."""
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    formats = tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
    photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)
    depths = "/".join(str(depth) for depth in dict.fromkeys(bits))
    facts = (
        f"{depths} bits" if len(bits) == 1 else f"{len(bits)} x {depths} bits",
        *(_SAMPLE_FORMATS.get(kind, "of undefined type") for kind in dict.fromkeys(formats)),
        "no PhotometricInterpretation" if photometric is None else _PHOTOMETRIC.get(photometric, f"{photometric=}"),
    )
    remedy = "save it as RGB or greyscale of 8 or 16 unsigned bits"
    polarity = " with 0 as black" if photometric in (None, 0) else ""
    return f"{path}: unsupported samples of a TIFF ({', '.join(facts)}): {remedy}{polarity}"


def _levels(image: Image.Image, path: Path) -> tuple[int, int]:
    """Return the values of black and white of an image that is not loaded yet.

    Raises:
        DataError: they are undefined.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags: Mapping[int, Any] = image.tag_v2
        photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)
        is_signed_or_float = set(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))) != {1}
        is_wide = image.mode.startswith("I;16")
        if is_signed_or_float or image.mode in ("I", "F") or (photometric is None and (is_wide or image.mode == "L")):
            raise DataError(_unsupported_samples(path, tags))
        if is_wide:
            top = 2 ** int(tags[TiffImagePlugin.BITSPERSAMPLE][0]) - 1
            return (top, 0) if photometric == 0 else (0, top)  # Pillow inverts up to 8 bits only
    if image.mode == "F":
        raise DataError(f"{path}: 32-bit floating-point pixels have no defined range; save it with 8 or 16 bits")
    return (0, 65535) if image.mode.startswith("I") else (0, 255)  # Pillow scales a PGM from its maximum


def _upright(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    is_tiff = image.format == "TIFF"
    if not is_tiff:
        image.load()  # a PNG may have its EXIF after its pixels
    orientation = orientation_of(image)
    image.load()
    if orientation not in UPRIGHT:
        return image
    turned = image if is_tiff else image.transpose(UPRIGHT[orientation])  # Pillow turns a TIFF while loading it
    if size in (None, turned.size):
        return turned
    stored = image.transpose(_AS_STORED[orientation]) if is_tiff else image
    return stored if stored.size == size else turned


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image; 1 (upright) if it has none.

    Valid orientations are 1 to 8. The pixels of a JPEG need not be loaded.
    """
    return _exif_orientation(image.info.get("exif", b"")) or _pillow_orientation(image, image.format == "TIFF")


def _exif_orientation(exif: bytes) -> int | None:
    """Return the orientation of an EXIF block; None if it has none or is damaged before it."""
    exif = exif.removeprefix(b"Exif\0\0")
    with suppress(KeyError, struct.error):
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, place)
            if tag == ExifTags.Base.Orientation:
                (orientation,) = struct.unpack_from(order + _EXIF_INTEGERS[kind], exif, place + 8)
                return int(orientation)
    return None


def _pillow_orientation(image: Image.Image, is_tiff: bool) -> int:
    """Return the orientation that Pillow finds in a TIFF's tags, XMP and other places; 1, which is upright, if none."""
    try:
        exif = image.getexif()
        if is_tiff:  # Pillow would follow pointers to other metadata while loading
            for tag in set(exif) - {ExifTags.Base.Orientation}:
                del exif[tag]
        orientation = exif.get(ExifTags.Base.Orientation)
    except Exception:  # as with pixels, Pillow raises almost any exception
        return 1
    return orientation if isinstance(orientation, int) else 1


def _to_rgb(image: Image.Image, levels: tuple[int, int]) -> Image.Image:
    """Convert an image to RGB. `levels` are the values of black and white if its pixels are wider than 8 bits."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        black, white = levels
        shares = (np.asarray(image, dtype=np.float64) - black) / (white - black)
        image = Image.fromarray(np.round(shares * 255).astype(np.uint8))  # Pillow would clip values above 255
    elif image.mode == "La":
        image = image.convert("LA")  # Pillow has no direct conversion
    elif "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns if this step is missing
    return image.convert("RGB")


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
