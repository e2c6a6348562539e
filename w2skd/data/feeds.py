"""Chooses the data feed of labelled images: resident (kept on the device) or streaming (read by data workers)."""

import os
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from w2skd.data.batch import LabelledImages
from w2skd.data.device_decode import DeliverEncoded, ReadEncoded, check_decoder
from w2skd.data.identity import DataIdentity
from w2skd.data.image_stream import DeliverImages, ReadImages, mean_colour
from w2skd.data.normalize import Normalizer
from w2skd.data.order import BatchOrder
from w2skd.data.parts import equal_parts, part_size
from w2skd.data.resident import ResidentFeed, evaluation_batches
from w2skd.data.sources import Listing, identify_image_data, list_image_data, load_image_data
from w2skd.data.streaming import Delivery, Reader, StreamingFeed, stream_once
from w2skd.data.transforms import EvalTransform, TrainTransform
from w2skd.data.workers import Workers
from w2skd.platform.ranks import Ranks
from w2skd.recipe.data import ImageDataSection
from w2skd.recipe.train import TrainSection

EVALUATION_BATCH = 500
"""Maximum number of examples per forward pass; fewer for large images."""

_EVALUATION_PIXELS = EVALUATION_BATCH * 64 * 64
_MAX_RESIDENT_SHARE = 0.25

_MOST_SAMPLES = 5000
_SAMPLED_PIXELS = _MOST_SAMPLES * 32 * 32


class ImageFeeds:
    """Training and evaluation batches of a ``data`` section. Images are read on first use.

    Args:
        section: the recipe's ``data`` section.
        train: the recipe's ``train`` section, with the batch size, memory format and length of the run.
        seed: seed of order and augmentation.
        device: device of the batches.

    Attributes:
        normalization: of pixels scaled to [0, 1].
        size_px: side of the evaluation images, and of the training images at full size.
        resident: whether all images are kept on the device.

    Raises:
        DataError: files are missing, damaged, too few or inconsistent, or the device does not support the section's
            ``decode``.
    """

    def __init__(self, section: ImageDataSection, train: TrainSection, *, seed: int, device: torch.device):
        self._section = section
        self._preparation = section.preparation
        self._train = train
        self._seed = seed
        self._device = device
        self._listing = list_image_data(section)
        self.normalization = self._listing.normalization
        self.size_px = self._listing.size_px
        self.resident = self._fits_on_device()
        self._normalize = Normalizer(self.normalization, device, train.channels_last)
        self._decoder_note = check_decoder(device) if self._preparation.decode == "nvjpeg" else None

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
    def smallest_px(self) -> int:
        """Side of the smallest training images; below `size_px` with progressive resolution."""
        progressive = self._preparation.progressive
        return self.size_px if progressive is None else min(progressive.from_px, self.size_px)

    def fingerprint(self) -> str:
        """Return a fingerprint of both sets: of pixels and labels if resident, else of names and labels."""
        sets = load_image_data(self._section) if self.resident else self._listing
        return f"{sets.train.fingerprint()[:16]}/{sets.evaluation.fingerprint()[:16]}"

    @property
    def notes(self) -> list[str]:
        """Remarks about the sources of both sets and about decoding, one line each."""
        sets = (self.train_listing, self.evaluation_listing)
        lines = dict.fromkeys(f"{part.name}: {line}" for part in sets for line in part.notes)
        return [*lines, *([] if self._decoder_note is None else [self._decoder_note])]

    def identity(self) -> DataIdentity:
        """Identify both sets, see `w2skd.data.identity`.

        Raises:
            DataError: an image cannot be read.
        """
        return identify_image_data(self._section)

    @cached_property
    def train(self) -> ResidentFeed | StreamingFeed[Any, LabelledImages]:
        """The training batches. Resident images are read on first access.

        Raises:
            DataError: an image cannot be read.
            UsageError: the batch size is not a multiple of the recipe's repeats.
        """
        section, listing, preparation = self._section, self.train_listing, self._preparation
        order = BatchOrder(len(listing), self._train.batch_size, preparation.repeats, self._seed)
        size_at = None if preparation.progressive is None else self._size_at
        if self.resident:
            images, kinds = load_image_data(section).train, preparation.augment
            return ResidentFeed(images, order, self._normalize, kinds, size_at, preparation.crop_px)
        alternating = "alternating_flip" in preparation.augment
        transform = TrainTransform(
            tuple(kind for kind in preparation.augment if kind != "alternating_flip"),
            preparation.crop_scale,
            preparation.interpolation,
            preparation.erasing_probability,
            preparation.crop_px,
        )
        read, deliver = self._stages(listing, transform, alternating)
        return StreamingFeed(order, read, deliver, self._workers, self.size_px, size_at)

    def sample(self) -> Tensor:
        """Return training images for statistics, evenly spread over the set, without augmentation.

        They depend on the data only, not on the seed, the feed or the rank.

        Returns:
            Normalised float32 [n, 3, S, S] on the CPU: at most 5,000 images, fewer if they are larger than 32 px.

        Raises:
            DataError: an image cannot be read.
        """
        section, listing = self._section, self.train_listing
        count = min(len(listing), _MOST_SAMPLES, max(1, _SAMPLED_PIXELS // self.size_px**2))
        ids = [place * len(listing) // count for place in range(count)]
        normalize = Normalizer(self.normalization, torch.device("cpu"), channels_last=False)
        if self.resident:
            return normalize(load_image_data(section).train.images[ids])
        batches = stream_once(
            ReadImages(listing.examples, self._evaluation_transform),
            DeliverImages(listing.labels, normalize),
            equal_parts(ids, self._largest_evaluation_batch),
            size_px=self.size_px,
            workers=self._workers,
        )
        return torch.cat([batch.images for batch in batches])

    def evaluation_batches(self, ranks: Ranks) -> Iterator[LabelledImages]:
        """Iterate over this rank's share of the evaluation batches, without augmentation.

        The last batch may be shorter than `evaluation_batch`.
        """
        section, listing = self._section, self.evaluation_listing
        parts = ranks.share(equal_parts(range(len(listing)), self._largest_evaluation_batch))
        if self.resident:
            return evaluation_batches(load_image_data(section).evaluation, self._normalize, parts)
        read, deliver = self._stages(listing, self._evaluation_transform)
        return stream_once(read, deliver, parts, size_px=self.size_px, workers=self._workers)

    @property
    def evaluation_batch(self) -> int:
        """Examples of an evaluation batch. It depends on the set and the size of its images only."""
        return part_size(len(self.evaluation_listing), self._largest_evaluation_batch)

    @property
    def _evaluation_transform(self) -> EvalTransform:
        return EvalTransform(self._preparation.eval_resize or self.size_px, self._preparation.interpolation)

    @property
    def _largest_evaluation_batch(self) -> int:
        return max(1, min(EVALUATION_BATCH, _EVALUATION_PIXELS // self.size_px**2))

    @property
    def _workers(self) -> Workers:
        return Workers.of(self._section.workers, self._section.worker_timeout_s)

    def _stages(
        self, listing: Listing, transform: TrainTransform | EvalTransform, alternating_flip: bool = False
    ) -> tuple[Reader[Any], Delivery[Any, LabelledImages]]:
        """Return what data workers do and what the main process does with a micro-batch of the streaming feed."""
        examples, decode = listing.examples, self._preparation.decode
        if decode == "nvjpeg":
            interpolation = self._preparation.interpolation
            deliver = DeliverEncoded(examples, listing.labels, self._normalize, interpolation)
            return ReadEncoded(examples, transform, self._seed), deliver
        blank = mean_colour(self.normalization)
        read = ReadImages(examples, transform, blank, self._seed, decode == "reduced", alternating_flip)
        return read, DeliverImages(listing.labels, self._normalize)

    def _fits_on_device(self) -> bool:
        if self._section.feed != "auto":
            return self._section.feed == "resident"
        # Four bytes per pixel for the training set only: the evaluation set stays on the host.
        needed = 4 * len(self.train_listing) * self.size_px**2
        return not self._preparation.needs_streaming and needed <= _MAX_RESIDENT_SHARE * _memory_of(self._device)

    def _size_at(self, step: int) -> int:
        """Return the side in px at a global step, from 0."""
        progressive = self._preparation.progressive
        assert progressive is not None
        steps_per_epoch = self.train.steps_per_epoch
        until = progressive.until.steps(steps_per_epoch, self._train.total_steps(steps_per_epoch))
        if step >= until or progressive.from_px >= self.size_px:
            return self.size_px
        side = progressive.from_px + (self.size_px - progressive.from_px) * step // until
        return max(progressive.from_px, side // progressive.multiple_px * progressive.multiple_px)


def _memory_of(device: torch.device) -> int:
    """Return the memory of the device in bytes; for the CPU, that of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
