"""Training images kept on the device as uint8, augmented and normalised there in a few kernels.

No random generator is used. The order of an epoch is a function of (seed, epoch), the augmentation of an example a
function of (seed, epoch, example, repeat). The batches therefore do not depend on the number of ranks or on the step
at which a run resumes.

Shapes: n examples of a micro-batch, m of several, N of the set, M positions in an epoch; H rows and W columns of px.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn import functional

from w2skd.data.alternating_flip import is_mirrored
from w2skd.data.batch import LabelledImages
from w2skd.data.counter import randint
from w2skd.data.images import ImageSet
from w2skd.data.normalize import Normalizer
from w2skd.data.order import BatchOrder, Slice
from w2skd.data.transfer import to_device
from w2skd.platform.ranks import Ranks

_PLACED_AT_ONCE = 16384
"""Number of examples whose pixel positions are computed at once; each takes 8 bytes per row and per column."""

AUGMENTATIONS = ("crop", "flip", "alternating_flip", "cutout")


class ResidentFeed:
    """Endless training batches in `BatchOrder` from a set that is kept on the device (4 bytes per pixel).

    Args:
        images: the training set.
        order: order of the examples; its seed is the seed of the augmentation, too.
        normalize: normalisation on the training device.
        augment: any of `AUGMENTATIONS`. ``crop`` shifts by up to `crop_px` with reflection padding, ``flip`` mirrors
            horizontally with probability 0.5, ``alternating_flip`` mirrors in every second epoch (see
            `w2skd.data.alternating_flip`), ``cutout`` sets a square of half the side with a random centre to the mean
            colour. They are applied in this order; the two flips exclude each other.
        size_at: global step to the shorter side in px. Larger images are resized to it after augmentation (bilinear,
            antialiased); None disables resizing.
        crop_px: largest shift of ``crop``, less than the shorter side; None is an eighth of it, at least 1 px.
    """

    def __init__(
        self,
        images: ImageSet,
        order: BatchOrder,
        normalize: Normalizer,
        augment: Sequence[str],
        size_at: Callable[[int], int] | None = None,
        crop_px: int | None = None,
    ):
        assert set(augment) <= set(AUGMENTATIONS), f"augment {augment}"
        assert not {"flip", "alternating_flip"} <= set(augment), f"augment {augment}"
        self.steps_per_epoch = order.steps_per_epoch
        self._order = order
        self._normalize = normalize
        self._device = normalize.device
        self._augment = frozenset(augment)
        self._size_at = size_at
        self._height, self._width = images.images.shape[2:]
        self._crop_px = crop_px or max(1, min(self._height, self._width) // 8)
        self._labels = images.labels.to(self._device)
        self._pixels = _pack(images.images, self._device)
        # An int32 index halves the memory traffic of the gather, but cannot address larger sets.
        self._index_dtype = torch.int32 if self._pixels.numel() < 2**31 else torch.int64

    def micro_batches(self, first_step: int, ranks: Ranks = Ranks(), accumulate: int = 1) -> Iterator[LabelledImages]:
        """Yield this rank's micro-batches without end, as `BatchOrder.slices` cuts them.

        Raises:
            UsageError: the batch cannot be cut into equal slices.
        """
        return self._micro_batches(self._order.slices(first_step, ranks, accumulate))

    def example(self) -> LabelledImages:
        """Return a batch of the first example, without augmentation."""
        places = self._place(_Draws(torch.zeros(1, dtype=torch.int64, device=self._device)))
        return LabelledImages(self._augmented(places), places.labels, places.ids, 0)

    def _micro_batches(self, slices: Iterator[Slice]) -> Iterator[LabelledImages]:
        epoch, draws = -1, _Draws(self._labels[:0])
        first, places = 0, self._place(draws)
        for part in slices:
            if part.epoch != epoch:
                epoch, draws = part.epoch, self._draw_epoch(part.epoch)
                first, places = 0, self._place(draws.part(0, 0))
            if not first <= part.start <= part.end <= first + len(places.ids):
                # Many batches at once, because index arithmetic takes more kernels than the batch itself.
                first = part.start
                places = self._place(draws.part(first, max(part.end, first + _PLACED_AT_ONCE)))
            own = places.part(part.start - first, part.end - first)
            images = self._resize(self._augmented(own), part.step)
            yield LabelledImages(images, own.labels, own.ids, part.step, part.number)

    def _draw_epoch(self, epoch: int) -> "_Draws":
        """Draw the order and augmentation of a whole epoch at once: a few kernels per epoch, not per step."""
        ids = self._order.ids(epoch, self._device)
        repeat = self._order.repeat_numbers(self._device) if self._order.repeats > 1 else 0

        def draw(high: int, kind: _Draw) -> Tensor:
            return randint(high, self._order.seed, epoch, ids, kind.value + _DRAWS_PER_REPEAT * repeat)

        pad = self._crop_px
        crop = flip = cutout = None
        if "crop" in self._augment:
            crop = torch.stack([draw(2 * pad + 1, _Draw.CROP_ROW), draw(2 * pad + 1, _Draw.CROP_COLUMN)]) - pad
        if "flip" in self._augment:
            flip = draw(2, _Draw.FLIP).bool()
        if "alternating_flip" in self._augment:
            flip = is_mirrored(self._order.seed, epoch, ids, repeat)
        if "cutout" in self._augment:
            cutout = torch.stack([draw(self._height, _Draw.CUTOUT_ROW), draw(self._width, _Draw.CUTOUT_COLUMN)])
        return _Draws(ids, crop, flip, cutout)

    def _place(self, draws: "_Draws") -> "_Places":
        """Compute the pixel positions of examples from their random numbers."""
        rows = torch.arange(self._height, device=self._device)[None]
        columns = torch.arange(self._width, device=self._device)[None]
        if draws.flip is not None:
            columns = torch.where(draws.flip[:, None], self._width - 1 - columns, columns)
        if draws.crop is not None:
            rows = _reflect(rows + draws.crop[0, :, None], self._height)
            columns = _reflect(columns + draws.crop[1, :, None], self._width)
        row_starts = (draws.ids[:, None] * self._height + rows) * self._width
        return _Places(
            draws.ids,
            self._labels[draws.ids],
            row_starts.to(self._index_dtype),
            columns.to(self._index_dtype).expand(len(draws.ids), -1),
            draws.cutout,
        )

    def _augmented(self, places: "_Places") -> Tensor:
        images = self._normalize(self._gather(places))
        if places.cutout is not None:
            images.mul_(self._outside_cutout(places.cutout))
        return images

    def _resize(self, images: Tensor, step: int) -> Tensor:
        shorter = min(self._height, self._width)
        side = shorter if self._size_at is None else self._size_at(step)
        if side >= shorter:
            return images
        size = (round(self._height * side / shorter), round(self._width * side / shorter))
        smaller = functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        return smaller.contiguous(memory_format=self._normalize.memory_format)

    def _gather(self, places: "_Places") -> Tensor:
        """Crop and flip by one gather of whole pixels: uint8 [n, 3, H, W], strided like [n, H, W, 4]."""
        index = places.row_starts[:, :, None] + places.columns[:, None, :]
        pixels = self._pixels.index_select(0, index.view(-1)).view(torch.uint8)
        return pixels.view(*index.shape, 4)[..., :3].permute(0, 3, 1, 2)

    def _outside_cutout(self, centres: Tensor) -> Tensor:
        """Return 1 outside the squares and 0 inside: float32 [n, 1, H, W] for centres int64 [2, n]."""
        side = min(self._height, self._width) // 2
        rows = torch.arange(self._height, device=self._device) - (centres[0, :, None] - side // 2)
        columns = torch.arange(self._width, device=self._device) - (centres[1, :, None] - side // 2)
        inside_rows, inside_columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
        return (~(inside_rows[:, None, :, None] & inside_columns[:, None, None, :])).to(torch.float32)


def evaluation_batches(
    images: ImageSet, normalize: Normalizer, parts: Iterable[Sequence[int]]
) -> Iterator[LabelledImages]:
    """Iterate over batches of an evaluation set without augmentation.

    Args:
        images: the set; batches move to the device one at a time.
        normalize: normalisation on the device.
        parts: consecutive indices of the examples of each batch.
    """
    for part in parts:
        start, end, device = part[0], part[-1] + 1, normalize.device
        pixels, labels = (to_device(part[start:end], device) for part in (images.images, images.labels))
        yield LabelledImages(normalize(pixels), labels, torch.arange(start, end, device=device), step=0)


class _Draw(IntEnum):
    """Purpose of a random number: the last counter of its hash. A number is never reused for another purpose."""

    CROP_ROW = 0
    CROP_COLUMN = 1
    FLIP = 2
    CUTOUT_ROW = 3
    CUTOUT_COLUMN = 4


_DRAWS_PER_REPEAT = 64
"""Counters reserved per repeat of an example: repeat r starts at r times this."""


@dataclass(frozen=True, eq=False)
class _Draws:
    """Examples and their augmentation; None if an augmentation is disabled.

    Attributes:
        ids: int64 [M].
        crop: int64 [2, M], shift of the window in rows and columns of px.
        flip: bool [M], whether to mirror.
        cutout: int64 [2, M], row and column of the square's centre.
    """

    ids: Tensor
    crop: Tensor | None = None
    flip: Tensor | None = None
    cutout: Tensor | None = None

    def part(self, start: int, end: int) -> "_Draws":
        return _Draws(
            self.ids[start:end],
            None if self.crop is None else self.crop[:, start:end],
            None if self.flip is None else self.flip[start:end],
            None if self.cutout is None else self.cutout[:, start:end],
        )


@dataclass(frozen=True, eq=False)
class _Places:
    """Examples and the positions of their pixels in the packed set.

    Attributes:
        ids: int64 [m].
        labels: int64 [m].
        row_starts: int32 or int64 [m, H], position in the set of the first pixel of each output row's source row.
        columns: int32 or int64 [m, W], source column of each output column.
        cutout: int64 [2, m], row and column of the square's centre; None without cutout.
    """

    ids: Tensor
    labels: Tensor
    row_starts: Tensor
    columns: Tensor
    cutout: Tensor | None

    def part(self, start: int, end: int) -> "_Places":
        return _Places(
            self.ids[start:end],
            self.labels[start:end],
            self.row_starts[start:end],
            self.columns[start:end],
            None if self.cutout is None else self.cutout[:, start:end],
        )


def _pack(images: Tensor, device: torch.device) -> Tensor:
    """Pack each pixel into one int32 so that a gather moves whole pixels: uint8 [N, 3, H, W] to int32 [N*H*W]."""
    packed = torch.zeros(len(images), *images.shape[2:], 4, dtype=torch.uint8, device=device)
    packed[..., :3] = images.to(device).permute(0, 2, 3, 1)
    return packed.view(torch.int32).view(-1)


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Reflect positions that are less than `size` outside the image; edge pixels are not repeated."""
    return size - 1 - (size - 1 - positions.abs()).abs()
