"""Test images, and functions that find them in a picture."""

import numpy as np
import torch
from PIL import Image


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def places(picture, block):
    """Return the positions (row, column) of a block of pixels in a picture, from top to bottom."""
    height, width = block.shape[:2]
    first = np.argwhere((picture == block[0, 0]).all(axis=2))
    return [
        (row, column)
        for row, column in first.tolist()
        if np.array_equal(picture[row : row + height, column : column + width], block)
    ]


def box(mask):
    """Return top, bottom, left and right of the marked pixels."""
    rows, columns = np.nonzero(mask)
    return rows.min(), rows.max(), columns.min(), columns.max()


def noise(number, height, width):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (number, 3, height, width), generator=generator, dtype=torch.uint8)
