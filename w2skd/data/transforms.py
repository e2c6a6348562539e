"""Image augmentation with the random draws and the pixels of torchvision's v2 transforms.

Crops with padding and flips change an array of pixels: torchvision's transforms take twice as long as the decoding of a
small image. All augmentations draw from torch's global generator, which the caller seeds.

Shapes: S side of the output in px.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from w2skd.data.window import Window, centre_window, random_window

TRAIN_KINDS = ("random_resized_crop", "crop", "flip", "trivial_augment", "cutout", "random_erasing")

Pipeline = Callable[[Image.Image, NDArray[np.uint8]], None]
"""Writes an image's pixels into uint8 [S, S, 3]."""

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


@dataclass(frozen=True)
class TrainTransform:
    """Augmentations for training, applied in the order of `TRAIN_KINDS`.

    Attributes:
        kinds: any of `TRAIN_KINDS`. ``random_resized_crop`` (Szegedy et al. 2015) crops a random area with an
            aspect ratio between 3/4 and 4/3; without it the shorter side is resized to S and the centre is cropped.
            ``crop`` shifts by up to `crop_px` with reflection padding, ``flip`` mirrors horizontally with
            probability 0.5, ``trivial_augment`` is TrivialAugmentWide (Müller & Hutter 2021), ``cutout``
            (DeVries & Taylor 2017) erases a square of side S/2 with a random centre, ``random_erasing`` (Zhong et al.
            2020) a rectangle of 2 to 33% of the area.
        crop_scale: minimum and maximum share of the area for ``random_resized_crop``.
        interpolation: ``bilinear`` or ``bicubic`` (both antialiased) or ``nearest``, for resizing and
            ``trivial_augment``.
        erasing_probability: probability of ``random_erasing``.
        crop_px: largest shift of ``crop``, less than S; None is S/8, at least 1 px.
    """

    kinds: tuple[str, ...]
    crop_scale: tuple[float, float] = (0.08, 1.0)
    interpolation: str = "bilinear"
    erasing_probability: float = 0.25
    crop_px: int | None = None

    def __post_init__(self) -> None:
        assert set(self.kinds) <= set(TRAIN_KINDS), f"kinds {self.kinds}"
        assert len(set(self.kinds)) == len(self.kinds), f"kinds {self.kinds}"
        assert 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1, f"crop_scale {self.crop_scale}"
        assert 0 <= self.erasing_probability <= 1, f"erasing_probability {self.erasing_probability}"

    @property
    def plain(self) -> "TrainTransform":
        """The same transform without augmentation."""
        return replace(self, kinds=())

    def pipeline(self, size_px: int, blank: Colour) -> Pipeline:
        """Return the augmentations for squares of `size_px`.

        Args:
            size_px: S.
            blank: fill colour of ``cutout`` and ``random_erasing``.
        """
        return _train_pipeline(self, size_px, blank)

    def window(self, size: tuple[int, int], size_px: int) -> Window | None:
        """Return the window of an image of this width and height, from the draws with which `pipeline` begins."""
        if "random_resized_crop" in self.kinds:
            return random_window(size, size_px, self.crop_scale)
        return centre_window(size, size_px, size_px)

    def after_window(self, size_px: int, blank: Colour) -> Pipeline:
        """Return the part of `pipeline` after the window: it transforms squares of `size_px`."""
        return _train_pipeline(self, size_px, blank, from_square=True)


@dataclass(frozen=True)
class EvalTransform:
    """Resize and centre crop, as in the presets of torchvision's pretrained weights.

    Attributes:
        resize_px: length of the shorter side after resizing; below S, the crop pads with black.
        interpolation: ``bilinear`` or ``bicubic`` (both antialiased) or ``nearest``.
    """

    resize_px: int
    interpolation: str = "bilinear"

    @property
    def plain(self) -> "EvalTransform":
        """This transform, which has no augmentation."""
        return self

    def pipeline(self, size_px: int, blank: Colour = (0, 0, 0)) -> Pipeline:
        """Return the deterministic transform to squares of `size_px`; `blank` is ignored."""
        return _Pipeline(_Centre(self.resize_px, size_px, self.interpolation), [])

    def window(self, size: tuple[int, int], size_px: int) -> Window | None:
        """Return the window of an image of this width and height; None if the crop pads."""
        return centre_window(size, size_px, self.resize_px)

    def after_window(self, size_px: int, blank: Colour = (0, 0, 0)) -> Pipeline:
        """Return a pipeline that leaves a square as it is."""
        return _Pipeline(None, [])


class _Pipeline:
    """A transform of the PIL image to a square, then transforms of the square's pixels within the batch."""

    def __init__(
        self,
        to_square: Callable[[Image.Image], Image.Image] | None,
        on_pixels: list[Callable[[NDArray[np.uint8]], None]],
    ):
        self._to_square = to_square
        self._on_pixels = on_pixels

    def __call__(self, image: Image.Image, out: NDArray[np.uint8]) -> None:
        pixels = np.asarray(image if self._to_square is None else self._to_square(image))
        assert pixels.shape == out.shape, f"an image of {pixels.shape} for {out.shape}"
        out[:] = pixels
        for change in self._on_pixels:
            change(out)


@lru_cache(maxsize=32)
def _train_pipeline(transform: TrainTransform, size_px: int, blank: Colour, from_square: bool = False) -> Pipeline:
    """Build the pipeline; cached, because building one takes as long as transforming a small image."""
    interpolation = v2.InterpolationMode(transform.interpolation)
    to_square: Callable[[Image.Image], Image.Image] | None = None
    if not from_square and "random_resized_crop" in transform.kinds:
        to_square = v2.RandomResizedCrop(size_px, transform.crop_scale, interpolation=interpolation, antialias=True)
    elif not from_square:
        to_square = _Centre(size_px, size_px, transform.interpolation)
    on_pixels: list[Callable[[NDArray[np.uint8]], None]] = []
    if "crop" in transform.kinds:
        on_pixels.append(_Shift(transform.crop_px or max(1, size_px // 8)))
    if "flip" in transform.kinds:
        on_pixels.append(_flip)
    if "trivial_augment" in transform.kinds:
        on_pixels.append(_TrivialAugment(interpolation))
    if "cutout" in transform.kinds:
        on_pixels.append(_Cutout(blank))
    if "random_erasing" in transform.kinds:
        on_pixels.append(_RandomErasing(transform.erasing_probability, blank))
    return _Pipeline(to_square, on_pixels)


class _Centre:
    """Resizes the shorter side and crops the centre. Images that fit already skip torchvision's overhead."""

    def __init__(self, resize_px: int, size_px: int, interpolation: str):
        resize = v2.Resize(resize_px, v2.InterpolationMode(interpolation), antialias=True)
        self._steps = (resize, v2.CenterCrop(size_px))
        self._fitting = (size_px, size_px) if resize_px == size_px else None

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.size == self._fitting:
            return image
        for step in self._steps:
            image = step(image)
        return image


class _Shift:
    """`v2.RandomCrop` with reflection padding, with the same draws and pixels and without a padded copy."""

    def __init__(self, largest_px: int):
        self._largest_px = largest_px

    def __call__(self, pixels: NDArray[np.uint8]) -> None:
        side = len(pixels)
        assert 0 < self._largest_px < side, f"a shift of {self._largest_px} px for {side} px"
        rows, columns = (self._places(side) for _ in range(2))
        pixels[:] = pixels.take(rows, axis=0).take(columns, axis=1)

    def _places(self, side: int) -> NDArray[np.int64]:
        """Draw a shift and return the row or column that each of the crop's shows."""
        places = np.arange(side) + int(torch.randint(2 * self._largest_px + 1, (1,))) - self._largest_px
        reflected: NDArray[np.int64] = side - 1 - np.abs(side - 1 - np.abs(places))
        return reflected


def _flip(pixels: NDArray[np.uint8]) -> None:
    """Apply `v2.RandomHorizontalFlip`."""
    if torch.rand(1) < 0.5:
        pixels[:] = pixels[:, ::-1].copy()


class _TrivialAugment:
    """`v2.TrivialAugmentWide`, which works on a PIL image as in torchvision's reference training."""

    def __init__(self, interpolation: v2.InterpolationMode):
        self._augment = v2.TrivialAugmentWide(interpolation=interpolation)

    def __call__(self, pixels: NDArray[np.uint8]) -> None:
        pixels[:] = np.asarray(self._augment(Image.fromarray(pixels)))


class _Cutout:
    def __init__(self, blank: Colour):
        self._blank = np.array(blank, dtype=np.uint8)

    def __call__(self, pixels: NDArray[np.uint8]) -> None:
        size = len(pixels)
        side = size // 2
        top, left = (torch.randint(size, (2,)) - side // 2).tolist()
        pixels[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = self._blank


class _RandomErasing:
    def __init__(self, probability: float, blank: Colour):
        self._erase = v2.RandomErasing(probability, value=blank, inplace=True)

    def __call__(self, pixels: NDArray[np.uint8]) -> None:
        view: Tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        self._erase(view)
