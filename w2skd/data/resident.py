"""All images on the training device, as uint8: batches are gathered, augmented and normalised there, in a few kernels.

Nothing is drawn from a generator. The order of an epoch is a function of (seed, epoch), an example's augmentation one
of (seed, epoch, example), so that batches depend neither on the number of ranks nor on where a run was resumed.

Shapes: n examples of a micro-batch, N of the set, M of an epoch's batches; H rows and W columns of px.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from w2skd.data.counter import permutation, randint
from w2skd.data.images import ImageSet, Normalization
from w2skd.errors import UsageError

AUGMENTATIONS = ("crop", "flip", "cutout")


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """One micro-batch.

    Attributes:
        images: float32 [n, 3, H, W], normalised.
        labels: int64 [n].
        ids: int64 [n], indices into the set.
        step: the global optimizer step that it belongs to; 0 outside training.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    step: int

    @property
    def model_inputs(self) -> tuple[Tensor]:
        """What a classifier's forward takes."""
        return (self.images,)

    def __len__(self) -> int:
        return len(self.labels)


class ResidentFeed:
    """Endless training batches out of a set that lives on the device (4 bytes a pixel).

    Epoch e takes the examples in the order ``permutation(N, seed, e)``. Its last batch is filled up from the start of
    the same order, so that every batch has `batch_size` examples, also where the set has fewer.

    Args:
        images: at least one.
        normalization: of pixels scaled to [0, 1].
        batch_size: examples per optimizer step, over all ranks and micro-batches.
        augment: any of `AUGMENTATIONS`. ``crop`` shifts by up to an eighth of the side (1 px at least) and fills up by
            reflection, ``flip`` mirrors every second example from left to right, ``cutout`` sets a square of half the
            side, centred anywhere, to the mean colour. They act in this order, whatever the order given.
        seed: of order and augmentation.
        device: where the set is kept and batches are made.
        channels_last: memory format of the batches; their values are the same.
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
        channels_last: bool = False,
    ):
        assert len(images) > 0, "no images"
        assert batch_size > 0, f"batch_size {batch_size}"
        assert set(augment) <= set(AUGMENTATIONS), f"augment {augment}"
        self.steps_per_epoch = -(-len(images) // batch_size)
        self._batch_size = batch_size
        self._augment = frozenset(augment)
        self._seed = seed
        self._device = device
        self._height, self._width = images.images.shape[2:]
        self._labels = images.labels.to(device)
        self._pixels = _pack(images.images, device)
        # Half as many bytes in the index make the gather faster; a set too large for that is still possible.
        self._index_dtype = torch.int32 if self._pixels.numel() < 2**31 else torch.int64
        self._normalize = _Normalizer(normalization, self._height, self._width, device, channels_last)

    def micro_batches(
        self, first_step: int, *, rank: int = 0, ranks: int = 1, accumulate: int = 1
    ) -> Iterator[LabelledImages]:
        """Yield this rank's micro-batches without end, `accumulate` of them a step, from global step `first_step` on.

        A step's batch is cut into ranks x accumulate equal slices. Rank r takes slice micro x ranks + r, so that two
        ranks see what one process with twice the accumulation sees.

        Raises:
            UsageError: the batch cannot be cut into equal slices.
        """
        if self._batch_size % (ranks * accumulate):
            raise UsageError(
                f"train.batch_size: {self._batch_size} examples cannot be shared equally among {ranks} ranks x "
                f"{accumulate} accumulated micro-batches; take a multiple of {ranks * accumulate}"
            )
        return self._micro_batches(first_step, rank, ranks, accumulate)

    def example(self) -> LabelledImages:
        """Return a batch of the first example, not augmented."""
        ids = torch.zeros(1, dtype=torch.int64, device=self._device)
        return self._batch(_Draws(ids), 0)

    def _micro_batches(self, first_step: int, rank: int, ranks: int, accumulate: int) -> Iterator[LabelledImages]:
        size = self._batch_size // (ranks * accumulate)
        step = first_step
        while True:
            epoch, first_batch = divmod(step, self.steps_per_epoch)
            draws = self._draw_epoch(epoch)
            for batch in range(first_batch, self.steps_per_epoch):
                for micro in range(accumulate):
                    start = batch * self._batch_size + (micro * ranks + rank) * size
                    yield self._batch(draws.part(start, start + size), step)
                step += 1

    def _draw_epoch(self, epoch: int) -> "_Draws":
        """Order and augmentation of a whole epoch at once: a few kernels an epoch instead of some at every step."""
        total = self.steps_per_epoch * self._batch_size
        order = permutation(len(self._labels), self._seed, epoch, device=self._device)
        ids = order[torch.arange(total, device=self._device) % len(order)]

        def draw(high: int, kind: _Draw) -> Tensor:
            return randint(high, self._seed, epoch, ids, kind.value)

        pad = max(1, min(self._height, self._width) // 8)
        crop = flip = cutout = None
        if "crop" in self._augment:
            crop = torch.stack([draw(2 * pad + 1, _Draw.CROP_ROW), draw(2 * pad + 1, _Draw.CROP_COLUMN)]) - pad
        if "flip" in self._augment:
            flip = draw(2, _Draw.FLIP).bool()
        if "cutout" in self._augment:
            cutout = torch.stack([draw(self._height, _Draw.CUTOUT_ROW), draw(self._width, _Draw.CUTOUT_COLUMN)])
        return _Draws(ids, crop, flip, cutout)

    def _batch(self, draws: "_Draws", step: int) -> LabelledImages:
        images = self._normalize(self._gather(draws))
        if draws.cutout is not None:
            images.mul_(self._outside_cutout(draws.cutout))
        return LabelledImages(images, self._labels[draws.ids], draws.ids, step)

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
    rank: int = 0,
    ranks: int = 1,
    channels_last: bool = False,
) -> Iterator[LabelledImages]:
    """Yield this rank's share of a set, once, in order and not augmented; every example falls to exactly one rank.

    Args:
        images: kept where they are; moved batch by batch if that is not `device`.
        normalization: of pixels scaled to [0, 1].
        device: where batches are made.
        batch_size: examples per batch of this rank; the last batch may have fewer.
        rank: this process's number, below `ranks`.
        ranks: how many share the set.
        channels_last: memory format of the batches.
    """
    height, width = images.images.shape[2:]
    normalize = _Normalizer(normalization, height, width, device, channels_last)
    end = len(images) * (rank + 1) // ranks
    for start in range(len(images) * rank // ranks, end, batch_size):
        part = slice(start, min(start + batch_size, end))
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


class _Normalizer:
    """uint8 [n, 3, H, W] of any strides to dense float32, (pixel / 255 - mean) / std, in one memory format."""

    def __init__(
        self, normalization: Normalization, height: int, width: int, device: torch.device, channels_last: bool
    ):
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        mean = torch.tensor(normalization.mean, dtype=torch.float64)
        std = torch.tensor(normalization.std, dtype=torch.float64)
        # Of an image's full size and layout: a multiply-add that broadcasts over colours only is 4 times slower.
        self._scale = self._full(1 / (255 * std), height, width, device)
        self._shift = self._full(-mean / std, height, width, device)

    def __call__(self, pixels: Tensor) -> Tensor:
        images = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device, memory_format=self._format)
        images.copy_(pixels)
        return torch.addcmul(self._shift, images, self._scale, out=images)

    def _full(self, colours: Tensor, height: int, width: int, device: torch.device) -> Tensor:
        full = colours.float()[None, :, None, None].expand(1, 3, height, width)
        return full.to(device).contiguous(memory_format=self._format)


def _pack(images: Tensor, device: torch.device) -> Tensor:
    """Put every pixel into one int32, so that a gather moves whole pixels: uint8 [N, 3, H, W] to int32 [N*H*W]."""
    packed = torch.zeros(len(images), *images.shape[2:], 4, dtype=torch.uint8, device=device)
    packed[..., :3] = images.to(device).permute(0, 2, 3, 1)
    return packed.view(torch.int32).view(-1)


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Mirror positions that lie less than `size` outside at the edge pixels, which are not repeated."""
    return size - 1 - (size - 1 - positions.abs()).abs()
