"""JPEG files for tests, with enough structure that a shift by a pixel shows."""

from io import BytesIO

import torch
from PIL import Image

from w2skd.data.counter import randint


def photo(width: int, height: int, number: int = 0) -> Image.Image:
    """Return smooth random colours."""
    coarse = randint(256, number, torch.arange(9 * 12 * 3)).to(torch.uint8).view(9, 12, 3).numpy()
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg_bytes(image: Image.Image, orientation: int = 1, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = BytesIO()
    image.save(file, "JPEG", quality=95, exif=exif, **options)
    return file.getvalue()
