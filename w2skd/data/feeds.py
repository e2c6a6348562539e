"""Chooses the data feed: resident (all images on the device) or streaming (data workers)."""

import os
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Protocol

import torch

from w2skd.data.batch import LabelledImages
from w2skd.data.resident import ResidentFeed, evaluation_batches
from w2skd.data.sources import Listing, list_image_data, load_image_data
from w2skd.data.streaming import StreamingFeed, stream_evaluation
from w2skd.data.transforms import TrainTransform
from w2skd.data.workers import default_workers
from w2skd.platform.ranks import Ranks
from w2skd.recipe.data import ImageSection

EVALUATION_BATCH = 500
"""Examples of one forward, of one process; fewer where images are large."""

_EVALUATION_PIXELS = EVALUATION_BATCH * 64 * 64
_LARGEST_RESIDENT_SHARE = 0.25


class TrainFeed(Protocol):
    """Endless training batches; see `ResidentFeed` and `StreamingFeed`."""

    steps_per_epoch: int

    def micro_batches(
        self, first_step: int, *, rank: int = 0, ranks: int = 1, accumulate: int = 1
    ) -> Iterator[LabelledImages]:
        """Yield this rank's micro-batches without end, from global step `first_step` on."""
        ...

    def example(self) -> LabelledImages:
        """Return a batch of the first example, not augmented."""
        ...


class ImageFeeds:
    """Training and evaluation batches of one ``data`` section. Nothing is read before it is asked for.

    Args:
        section: of the recipe.
        batch_size: training examples per optimizer step, over all ranks and micro-batches.
        seed: of order and augmentation.
        device: where batches are made.
        channels_last: memory format of the batches.
        run_steps: steps per epoch to the length of the run in steps, for progressive resolution.

    Raises:
        DataError: files are missing, damaged, too few or contradictory.
    """

    def __init__(
        self,
        section: ImageSection,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        channels_last: bool,
        run_steps: Callable[[int], int],
    ):
        self._section = section
        self._batch_size = batch_size
        self._seed = seed
        self._device = device
        self._channels_last = channels_last
        self._run_steps = run_steps
        self._listing = list_image_data(section)
        self.normalization = self._listing.normalization
        self.size_px = self._listing.size_px
        self.resident = self._fits_on_device()

    @property
    def train_listing(self) -> Listing:
        """The training examples."""
        return self._listing.train

    @property
    def evaluation_listing(self) -> Listing:
        """The evaluation examples."""
        return self._listing.evaluation

    @property
    def kind(self) -> str:
        """``resident`` or ``streaming``."""
        return "resident" if self.resident else "streaming"

    @property
    def workers(self) -> int:
        """Reading processes of a streaming feed."""
        return default_workers() if self._section.workers is None else self._section.workers

    @property
    def smallest_px(self) -> int:
        """Side of the smallest training images; below `size_px` where they grow."""
        progressive = self._section.progressive
        return self.size_px if progressive is None else min(progressive.from_px, self.size_px)

    def fingerprint(self) -> str:
        """What the examples are: of their pixels where they are resident, else of their names and labels."""
        if self.resident:
            data = load_image_data(self._section)
            return f"{data.train.fingerprint()[:16]}/{data.evaluation.fingerprint()[:16]}"
        return f"{self.train_listing.fingerprint()[:16]}/{self.evaluation_listing.fingerprint()[:16]}"

    @cached_property
    def train(self) -> TrainFeed:
        """The training batches, not mixed yet; resident images are read when this is first asked for.

        Raises:
            DataError: an image cannot be read.
            UsageError: the batch size does not go with the recipe's repeats.
        """
        section = self._section
        size_at = None if section.progressive is None else self._size_at
        if self.resident:
            return ResidentFeed(
                load_image_data(section).train,
                self.normalization,
                batch_size=self._batch_size,
                augment=section.augment,
                seed=self._seed,
                device=self._device,
                repeats=section.repeats,
                size_at=size_at,
                channels_last=self._channels_last,
            )
        transform = TrainTransform(
            kinds=section.augment,
            crop_scale=section.crop_scale,
            interpolation=section.interpolation,
            erasing_probability=section.erasing_probability,
        )
        return StreamingFeed(
            self.train_listing.examples,
            self.train_listing.labels,
            self.normalization,
            batch_size=self._batch_size,
            size_px=self.size_px,
            transform=transform,
            repeats=section.repeats,
            size_at=size_at,
            seed=self._seed,
            device=self._device,
            workers=self.workers,
            timeout_s=section.worker_timeout_s,
            channels_last=self._channels_last,
        )

    def train_batches(self, first_step: int, *, rank: int, ranks: int, accumulate: int) -> Iterator[LabelledImages]:
        """Yield this rank's micro-batches, augmented, without end."""
        return self.train.micro_batches(first_step, rank=rank, ranks=ranks, accumulate=accumulate)

    def evaluation_batches(self, ranks: Ranks) -> Iterator[LabelledImages]:
        """Iterate over this rank's shard of the evaluation set, in order, without augmentation."""
        batch_size = max(1, min(EVALUATION_BATCH, _EVALUATION_PIXELS // self.size_px**2))
        if self.resident:
            return evaluation_batches(
                load_image_data(self._section).evaluation,
                self.normalization,
                device=self._device,
                batch_size=batch_size,
                ranks=ranks,
                channels_last=self._channels_last,
            )
        return stream_evaluation(
            self.evaluation_listing.examples,
            self.evaluation_listing.labels,
            self.normalization,
            resize_px=self._section.eval_resize or self.size_px,
            crop_px=self.size_px,
            interpolation=self._section.interpolation,
            device=self._device,
            batch_size=batch_size,
            ranks=ranks,
            workers=self.workers,
            timeout_s=self._section.worker_timeout_s,
            channels_last=self._channels_last,
        )

    def _fits_on_device(self) -> bool:
        if self._section.feed != "auto":
            return self._section.feed == "resident"
        # Four bytes a pixel for training, three for evaluation, which stays on the host.
        needed = 4 * len(self.train_listing) * self.size_px**2
        return not self._section.needs_streaming and needed <= _LARGEST_RESIDENT_SHARE * _memory_of(self._device)

    def _size_at(self, step: int) -> int:
        """Side in px at the 0-based global step."""
        progressive = self._section.progressive
        assert progressive is not None
        steps_per_epoch = self.train.steps_per_epoch
        until = progressive.until.steps(steps_per_epoch, self._run_steps(steps_per_epoch))
        if step >= until or progressive.from_px >= self.size_px:
            return self.size_px
        side = progressive.from_px + (self.size_px - progressive.from_px) * step // until
        return max(progressive.from_px, side // progressive.multiple_px * progressive.multiple_px)


def _memory_of(device: torch.device) -> int:
    """Bytes of the device's memory, or of this machine's for the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
