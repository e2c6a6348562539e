"""Images as a feed meets them: one by one in their own size, or many at once as squares."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from w2skd.data.folder import square


class Examples(Protocol):
    """Images whose pixels are read when they are needed. Picklable, since it travels to data workers."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> Image.Image:
        """One image, upright, in mode RGB and in its own size, decoded.

        Raises:
            DataError: the file cannot be read or decoded; it is named.
        """
        ...

    def mode(self, index: int) -> str:
        """How the colours of one image are stored, as Pillow names it: RGB, L, RGBA and others.

        Raises:
            DataError: as for `open`.
        """
        ...

    def read(self, indices: Tensor, size_px: int) -> Tensor:
        """Several images brought to squares: uint8 [n, 3, size_px, size_px].

        Raises:
            DataError: as for `open`, or the pixels would not fit into memory.
        """
        ...

    def name(self, index: int) -> str:
        """What to call an example in an error or in a table of predictions: its file's path, else its number."""
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
        """The image of this index."""
        return Image.fromarray(self.pixels[index].numpy())

    def mode(self, index: int) -> str:
        """RGB."""
        return "RGB"

    def read(self, indices: Tensor, size_px: int) -> Tensor:
        """The pixels as they are where they have that size."""
        if tuple(self.pixels.shape[1:3]) == (size_px, size_px):
            return self.pixels[indices].permute(0, 3, 1, 2).contiguous()
        squares = [np.asarray(square(self.open(index), size_px)) for index in indices.tolist()]
        return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous()

    def name(self, index: int) -> str:
        """The index."""
        return str(index)


@dataclass(frozen=True, eq=False)
class ChosenExamples:
    """Some of other examples, in an order of their own.

    Attributes:
        examples: the others.
        indices: int64 [N] into them.
    """

    examples: Examples
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def open(self, index: int) -> Image.Image:
        """The image behind this index."""
        return self.examples.open(int(self.indices[index]))

    def mode(self, index: int) -> str:
        """That of the image behind this index."""
        return self.examples.mode(int(self.indices[index]))

    def read(self, indices: Tensor, size_px: int) -> Tensor:
        """The images behind these indices."""
        return self.examples.read(self.indices[indices], size_px)

    def name(self, index: int) -> str:
        """The name that the example has among the others."""
        return self.examples.name(int(self.indices[index]))
