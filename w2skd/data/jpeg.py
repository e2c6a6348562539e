"""JPEG files in memory: reading the header, and decoding at a half, a quarter or an eighth of the size.

At such a scale libjpeg uses only the low frequencies of each 8 x 8 block, which is faster.
"""

import math
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, JpegImagePlugin

from w2skd.data.decode import UPRIGHT, orientation_of
from w2skd.data.window import Window

_TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""

_MIRRORED_ACROSS, _MIRRORED_DOWN = (2, 3, 7, 8), (3, 4, 6, 7)
"""EXIF orientations that reverse the stored columns, and those that reverse the stored rows."""

_RGB_LETTERS = [82, 71, 66]
"""Component ids of files that store red, green and blue instead of luminance and chrominance."""

_END = b"\xff\xd9"

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in px."""


@dataclass(frozen=True)
class Jpeg:
    """An opened JPEG file in RGB or greyscale. It can be decoded once, at one scale.

    Attributes:
        content: bytes of the file.
        image: the file, opened by Pillow.
        orientation: its EXIF orientation; 1 is upright.
    """

    content: bytes
    image: JpegImagePlugin.JpegImageFile
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image in px."""
        width, height = self.image.size
        return (height, width) if self.orientation in _TURNED else (width, height)

    @property
    def is_common(self) -> bool:
        """Whether the file is complete and in the usual colour space, so that other decoders read it as libjpeg does.

        Valid before decoding only.
        """
        layers = [layer[0] for layer in self.image.layer]
        is_usual = layers != _RGB_LETTERS and self.image.info.get("adobe_transform", 1) == 1
        pixels = 0 if self.image.fp is None else self.image.fp.tell()  # an embedded thumbnail also has an end
        return is_usual and self.content.find(_END, pixels) >= 0

    def full(self) -> Image.Image | None:
        """Decode the upright image in RGB, as `open_image` does; None if it is damaged."""
        with suppress(Exception):  # Pillow's decoders raise almost any exception on damaged input
            return _upright(_rgb(self.image), self.orientation)
        return None

    def square(self, window: Window, size_px: int, resample: Image.Resampling) -> Image.Image | None:
        """Decode at the scale of `Window.reduction`, then cut and resize the window.

        At full scale, the pixels equal those of `open_image` followed by the augmentation.

        Args:
            window: the part of the upright image.
            size_px: side of the square.
            resample: resampling filter.

        Returns:
            RGB of `size_px` x `size_px`; None if the file is damaged.
        """
        if window.reduction > 1:
            return self._reduced(window, size_px, resample)
        full = self.full()
        if full is None:
            return None
        left, top = window.offset
        resized = full.crop(window.box).resize(window.resized, resample)
        return resized.crop((left, top, left + size_px, top + size_px))

    def _reduced(self, window: Window, size_px: int, resample: Image.Resampling) -> Image.Image | None:
        stored, by = self.image.size, window.reduction
        cut, square = (self._scaled(box, stored, by) for box in (window.box, window.square(size_px)))
        left, top = math.floor(cut[0]), math.floor(cut[1])
        inside = (square[0] - left, square[1] - top, square[2] - left, square[3] - top)
        with suppress(Exception):  # as in `full`
            self.image.draft("RGB", (stored[0] // by, stored[1] // by))
            # Cut before resizing, as the augmentation does. Otherwise pixels outside the box contribute at its edges.
            part = _rgb(self.image).crop((left, top, math.ceil(cut[2]), math.ceil(cut[3])))
            return _upright(part.resize((size_px, size_px), resample, box=inside), self.orientation)
        return None

    def _scaled(self, box: Box, stored: tuple[int, int], by: int) -> Box:
        """Convert a box of the upright image to the stored image at 1 / `by` of its `stored` size."""
        left, top, right, bottom = box
        if self.orientation in _TURNED:
            left, top, right, bottom = top, left, bottom, right
        width, height = stored
        if self.orientation in _MIRRORED_ACROSS:
            left, right = width - right, width - left
        if self.orientation in _MIRRORED_DOWN:
            top, bottom = height - bottom, height - top
        return left / by, top / by, right / by, bottom / by


def open_jpeg(content: bytes) -> Jpeg | None:
    """Read the header of a JPEG file in RGB or greyscale.

    Returns:
        The opened file; None if it is anything else or damaged. `open_image` reads such files or reports them.
    """
    with suppress(Exception):  # as in `Jpeg.full`
        image = Image.open(BytesIO(content), formats=("JPEG",))
        if isinstance(image, JpegImagePlugin.JpegImageFile) and image.mode in ("RGB", "L"):
            return Jpeg(content, image, orientation_of(image))
    return None


def _rgb(image: Image.Image) -> Image.Image:
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)
