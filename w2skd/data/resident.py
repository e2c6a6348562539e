"""All images on the training device, as uint8: batches are gathered, augmented and normalised there, in a few kernels.

Nothing is drawn from a generator. The order of an epoch is a function of (seed, epoch), an example's augmentation one
of (seed, epoch, example, repeat), so that batches depend neither on the number of ranks nor on where a run was resumed.

Shapes: n examples of a micro-batch, N of the set, M of an epoch's batches; H rows and W columns of px.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn import functional

from w2skd.data.batch import LabelledImages
from w2skd.data.counter import randint
from w2skd.data.images import ImageSet, Normalization
from w2skd.data.normalize import Normalizer
from w2skd.data.order import BatchOrder, Slice
from w2skd.platform.ranks import Ranks

AUGMENTATIONS = ("crop", "flip", "cutout")


class ResidentFeed:
    """Endless training batches, in `BatchOrder`, out of a set that lives on the device (4 bytes a pixel).

    Args:
        images: at least one.
        normalization: of pixels scaled to [0, 1].
        batch_size: examples per optimizer step, over all ranks and micro-batches.
        augment: any of `AUGMENTATIONS`. ``crop`` shifts by up to an eighth of the side (1 px at least) and fills up by
            reflection, ``flip`` mirrors every second example from left to right, ``cutout`` sets a square of half the
            side, centred anywhere, to the mean colour. They act in this order, whatever the order given.
        seed: of order and augmentation.
        device: where the set is kept and batches are made.
        repeats: how often an example is in its batch, augmented anew each time.
        size_at: global step to the shorter side in px, to which images that are larger are brought (bilinear,
            antialiased) when all else is done; None leaves them as they are.
        channels_last: memory format of the batches; their values are the same.

    Raises:
        UsageError: the batch is no multiple of the repeats.
    """

    def __init__(
        self,
        images: ImageSet,
        normalization: Normalization,
        *,
        batch_size: int,
        augment: Sequence[str],
        seed: int,
        device: torch.device,
        repeats: int = 1,
        size_at: Callable[[int], int] | None = None,
        channels_last: bool = False,
    ):
        assert set(augment) <= set(AUGMENTATIONS), f"augment {augment}"
        self._order = BatchOrder(len(images), batch_size, repeats, seed)
        self.steps_per_epoch = self._order.steps_per_epoch
        self._size_at = size_at
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._augment = frozenset(augment)
        self._seed = seed
        self._device = device
        self._height, self._width = images.images.shape[2:]
        self._labels = images.labels.to(device)
        self._pixels = _pack(images.images, device)
        # Half as many bytes in the index make the gather faster; a set too large for that is still possible.
        self._index_dtype = torch.int32 if self._pixels.numel() < 2**31 else torch.int64
        self._normalize = Normalizer(normalization, device, channels_last)

    def micro_batches(
        self, first_step: int, *, rank: int = 0, ranks: int = 1, accumulate: int = 1
    ) -> Iterator[LabelledImages]:
        """Yield this rank's micro-batches without end, as `BatchOrder.slices` cuts them.

        Raises:
            UsageError: the batch cannot be cut into equal slices.
        """
        return self._micro_batches(self._order.slices(first_step, rank=rank, ranks=ranks, accumulate=accumulate))

    def example(self) -> LabelledImages:
        """Return a batch of the first example, not augmented."""
        ids = torch.zeros(1, dtype=torch.int64, device=self._device)
        return LabelledImages(self._augmented(_Draws(ids)), self._labels[ids], ids, 0)

    def _micro_batches(self, slices: Iterator[Slice]) -> Iterator[LabelledImages]:
        epoch, draws = -1, _Draws(self._labels[:0])
        for part in slices:
            if part.epoch != epoch:
                epoch, draws = part.epoch, self._draw_epoch(part.epoch)
            own = draws.part(part.start, part.end)
            images = self._resize(self._augmented(own), part.step)
            yield LabelledImages(images, self._labels[own.ids], own.ids, part.step, part.number)

    def _draw_epoch(self, epoch: int) -> "_Draws":
        """Order and augmentation of a whole epoch at once: a few kernels an epoch instead of some at every step."""
        ids = self._order.ids(epoch, self._device)
        repeat = self._order.repeat_numbers(self._device) if self._order.repeats > 1 else 0

        def draw(high: int, kind: _Draw) -> Tensor:
            return randint(high, self._seed, epoch, ids, kind.value + _DRAWS_PER_REPEAT * repeat)

        pad = max(1, min(self._height, self._width) // 8)
        crop = flip = cutout = None
        if "crop" in self._augment:
            crop = torch.stack([draw(2 * pad + 1, _Draw.CROP_ROW), draw(2 * pad + 1, _Draw.CROP_COLUMN)]) - pad
        if "flip" in self._augment:
            flip = draw(2, _Draw.FLIP).bool()
        if "cutout" in self._augment:
            cutout = torch.stack([draw(self._height, _Draw.CUTOUT_ROW), draw(self._width, _Draw.CUTOUT_COLUMN)])
        return _Draws(ids, crop, flip, cutout)

    def _augmented(self, draws: "_Draws") -> Tensor:
        images = self._normalize(self._gather(draws))
        if draws.cutout is not None:
            images.mul_(self._outside_cutout(draws.cutout))
        return images

    def _resize(self, images: Tensor, step: int) -> Tensor:
        shorter = min(self._height, self._width)
        side = shorter if self._size_at is None else self._size_at(step)
        if side >= shorter:
            return images
        size = (round(self._height * side / shorter), round(self._width * side / shorter))
        smaller = functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        return smaller.contiguous(memory_format=self._memory_format)

    def _gather(self, draws: "_Draws") -> Tensor:
        """Crop and flip as one gather of whole pixels; uint8 [n, 3, H, W], strided like [n, H, W, 4]."""
        rows = torch.arange(self._height, device=self._device)[None]
        columns = torch.arange(self._width, device=self._device)[None]
        if draws.flip is not None:
            columns = torch.where(draws.flip[:, None], self._width - 1 - columns, columns)
        if draws.crop is not None:
            rows = _reflect(rows + draws.crop[0, :, None], self._height)
            columns = _reflect(columns + draws.crop[1, :, None], self._width)
        row_starts = (draws.ids[:, None] * self._height + rows) * self._width
        index = row_starts.to(self._index_dtype)[:, :, None] + columns.to(self._index_dtype)[:, None, :]
        pixels = self._pixels.index_select(0, index.view(-1)).view(torch.uint8)
        return pixels.view(*index.shape, 4)[..., :3].permute(0, 3, 1, 2)

    def _outside_cutout(self, centres: Tensor) -> Tensor:
        """1 outside the squares, 0 inside, for centres int64 [2, n]; float32 [n, 1, H, W]."""
        side = min(self._height, self._width) // 2
        rows = torch.arange(self._height, device=self._device) - (centres[0, :, None] - side // 2)
        columns = torch.arange(self._width, device=self._device) - (centres[1, :, None] - side // 2)
        inside_rows, inside_columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
        return (~(inside_rows[:, None, :, None] & inside_columns[:, None, None, :])).to(torch.float32)


def evaluation_batches(
    images: ImageSet,
    normalization: Normalization,
    *,
    device: torch.device,
    batch_size: int,
    ranks: Ranks = Ranks(),
    channels_last: bool = False,
) -> Iterator[LabelledImages]:
    """Iterate over this rank's shard of an evaluation set, in order, without augmentation.

    Args:
        images: kept where they are; moved batch by batch if that is not `device`.
        normalization: of pixels scaled to [0, 1].
        device: where batches are made.
        batch_size: examples per batch of this rank; the last batch may have fewer.
        ranks: the ranks that share the set.
        channels_last: memory format of the batches.
    """
    normalize = Normalizer(normalization, device, channels_last)
    shard = ranks.shard(len(images))
    for start in range(shard.start, shard.stop, batch_size):
        part = slice(start, min(start + batch_size, shard.stop))
        yield LabelledImages(
            images=normalize(images.images[part].to(device)),
            labels=images.labels[part].to(device),
            ids=torch.arange(part.start, part.stop, device=device),
            step=0,
        )


class _Draw(IntEnum):
    """What a random number is for: the last counter of its hash. Numbers are never reused for something else."""

    CROP_ROW = 0
    CROP_COLUMN = 1
    FLIP = 2
    CUTOUT_ROW = 3
    CUTOUT_COLUMN = 4


_DRAWS_PER_REPEAT = 64
"""Room for the kinds of draws: repeat r of an example counts on from r times this."""


@dataclass(frozen=True, eq=False)
class _Draws:
    """Examples and how each is augmented; None where an augmentation is off.

    Attributes:
        ids: int64 [M].
        crop: int64 [2, M], rows and columns of px by which the window is shifted.
        flip: bool [M].
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


def _pack(images: Tensor, device: torch.device) -> Tensor:
    """Put every pixel into one int32, so that a gather moves whole pixels: uint8 [N, 3, H, W] to int32 [N*H*W]."""
    packed = torch.zeros(len(images), *images.shape[2:], 4, dtype=torch.uint8, device=device)
    packed[..., :3] = images.to(device).permute(0, 2, 3, 1)
    return packed.view(torch.int32).view(-1)


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Mirror positions that lie less than `size` outside at the edge pixels, which are not repeated."""
    return size - 1 - (size - 1 - positions.abs()).abs()
