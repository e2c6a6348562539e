"""Images as a feed meets them: one by one in their own size, or many at once as squares."""

from typing import Protocol

from PIL import Image
from torch import Tensor


class Examples(Protocol):
    """Images whose pixels are read when they are needed. Picklable, since it travels to data workers."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> Image.Image:
        """One image, upright, in mode RGB and in its own size, decoded.

        Raises:
            DataError: the file cannot be read or decoded; it is named.
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
