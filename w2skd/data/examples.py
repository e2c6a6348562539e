"""Images that are read on demand: one at a time at their own size, or many at once as squares."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from w2skd.data.decode import square
from w2skd.errors import DataError

_CHUNK = 64
_MAX_THREADS = 8


class Examples(Protocol):
    """Images whose pixels are read on demand. Picklable, because data workers read them."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> Image.Image:
        """Decode one image, upright, in mode RGB and at its own size.

        Raises:
            DataError: the file cannot be read or decoded.
        """
        ...

    def mode(self, index: int) -> str:
        """Return Pillow's mode of one stored image: RGB, L, RGBA and others.

        Raises:
            DataError: as for `open`.
        """
        ...

    def read(self, indices: Tensor, size_px: int) -> Tensor:
        """Read several images as squares: uint8 [n, 3, size_px, size_px].

        Raises:
            DataError: as for `open`, or the pixels do not fit into memory.
        """
        ...

    def name(self, index: int) -> str:
        """Return the name of an example for errors and predictions: the path of its file, or its index."""
        ...

    def content(self, index: int) -> bytes:
        """Return what identifies the image: the bytes of its file, its pixels, or what generates it.

        Raises:
            DataError: the file cannot be read.
        """
        ...


@dataclass(frozen=True, eq=False)
class PixelExamples:
    """Images in memory.

    Attributes:
        pixels: uint8 [N, H, W, 3].
    """

    pixels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def open(self, index: int) -> Image.Image:
        """Return the image at this index."""
        return Image.fromarray(self.pixels[index].numpy())

    def mode(self, index: int) -> str:
        """Return RGB."""
        return "RGB"

    def read(self, indices: Tensor, size_px: int) -> Tensor:
        """Return the pixels, resized if they are of another size."""
        if tuple(self.pixels.shape[1:3]) == (size_px, size_px):
            return self.pixels[indices].permute(0, 3, 1, 2).contiguous()
        squares = [np.asarray(square(self.open(index), size_px)) for index in indices.tolist()]
        return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous()

    def name(self, index: int) -> str:
        """Return the index."""
        return str(index)

    def content(self, index: int) -> bytes:
        """Return the pixels."""
        return self.pixels[index].numpy().tobytes()


@dataclass(frozen=True, eq=False)
class ChosenExamples:
    """A selection of other examples.

    Attributes:
        examples: the examples to select from.
        indices: int64 [N], into `examples`.
    """

    examples: Examples
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def open(self, index: int) -> Image.Image:
        """Return the selected image at this index."""
        return self.examples.open(int(self.indices[index]))

    def mode(self, index: int) -> str:
        """Return the mode of the selected image."""
        return self.examples.mode(int(self.indices[index]))

    def read(self, indices: Tensor, size_px: int) -> Tensor:
        """Read the selected images at these indices."""
        return self.examples.read(self.indices[indices], size_px)

    def name(self, index: int) -> str:
        """Return the name of the selected example."""
        return self.examples.name(int(self.indices[index]))

    def content(self, index: int) -> bytes:
        """Return what identifies the selected example."""
        return self.examples.content(int(self.indices[index]))


def read_squares(open_image: Callable[[int], Image.Image], count: int, size_px: int) -> Tensor:
    """Read images as squares in a few threads.

    The shorter side is resized to `size_px` (bicubic, antialiased) and the centre is cropped, unless the image is
    already a square of `size_px`.

    Args:
        open_image: index from 0 to `count` - 1 to the image in mode RGB.
        count: N.
        size_px: side of the squares.

    Returns:
        uint8 [N, 3, size_px, size_px].

    Raises:
        DataError: an image cannot be read (the one with the lowest index), or the pixels do not fit into this machine's
            memory.
    """
    needed, available = count * 3 * size_px**2, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise DataError(
            f"{count:,} images of {size_px} x {size_px} px need {needed / 2**30:.0f} GiB, but this machine has "
            f"{available / 2**30:.0f} GiB; set data.feed: streaming, data.train_examples or a smaller data.image_size"
        )
    pixels = np.empty((count, 3, size_px, size_px), dtype=np.uint8)

    def read_chunk(start: int) -> None:
        for index in range(start, min(start + _CHUNK, count)):
            pixels[index] = np.asarray(square(open_image(index), size_px)).transpose(2, 0, 1)

    Image.init()  # registers the formats once, before the threads start
    with ThreadPoolExecutor(min(_MAX_THREADS, len(os.sched_getaffinity(0)))) as pool:
        for _ in pool.map(read_chunk, range(0, count, _CHUNK)):
            pass
    return torch.from_numpy(pixels)
