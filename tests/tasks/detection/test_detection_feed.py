"""The detection feed: the batches do not depend on the workers, the ranks or the step at which a run resumes."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from w2skd.data.counter import permutation
from w2skd.data.images import Normalization
from w2skd.data.order import BatchOrder
from w2skd.data.parts import equal_parts
from w2skd.data.streaming import StreamingFeed, stream_once
from w2skd.data.workers import Workers
from w2skd.errors import DataError, UsageError
from w2skd.platform.ranks import Ranks
from w2skd.tasks.detection.batch import ImagesWithBoxes
from w2skd.tasks.detection.feed import DeliverBoxes, ReadBoxes
from w2skd.tasks.detection.listing import BoxTable, CocoListing
from w2skd.tasks.detection.transforms import DetectionTransform

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

CPU = torch.device("cpu")
NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
DRAWN = DetectionTransform(40, 80, flip=True, jitter=(0.6, 1.2), crop=(0.6, 1.0))
COUNT = 10


@dataclass(frozen=True)
class Photos:
    """Pictures of several sizes; the one numbered `bad` cannot be opened, that numbered `deadly` kills."""

    bad: int = -1
    deadly: int = -1

    def __len__(self) -> int:
        return COUNT

    def open(self, index: int) -> Image.Image:
        if index == self.bad:
            raise DataError(f"{self.name(index)}: not an image")
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        coarse = np.random.default_rng(index).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize(self.size(index), Image.Resampling.BICUBIC)

    @staticmethod
    def size(index: int) -> tuple[int, int]:
        return 50 + 6 * index, 70 - 3 * index

    def name(self, index: int) -> str:
        return f"{index}.jpg"

    def select(self, indices: Tensor) -> "Photos":
        raise NotImplementedError


def listing(photos: Photos | None = None) -> CocoListing:
    """Example i has i % 4 boxes."""
    images = torch.tensor([i for i in range(COUNT) for _ in range(i % 4)])
    corner = torch.rand(len(images), 2, generator=torch.Generator().manual_seed(0)) * 20
    boxes = torch.cat([corner, corner + 12], 1)
    sizes = torch.tensor([Photos.size(i)[::-1] for i in range(COUNT)])
    table = BoxTable.grouped(boxes, torch.arange(len(images)) % 3, images, COUNT)
    examples = photos or Photos()
    return CocoListing("photos", examples, torch.arange(COUNT), sizes, table, ("a", "b", "c"), (1, 2, 3), (), dict)


def feed(photos: Photos | None = None, **options) -> StreamingFeed:
    seed, workers = options.pop("seed", 7), Workers(options.pop("workers", 0))
    order = BatchOrder(COUNT, options.pop("batch_size", 4), seed=seed)
    return StreamingFeed(order, reader(photos, options, seed), delivery(options), workers)


def reader(photos: Photos | None, options: dict[str, Any], seed: int = 0) -> ReadBoxes:
    found = listing(photos)
    return ReadBoxes(found.examples, found.table, options.pop("transform", DRAWN), seed)


def delivery(options: dict[str, Any]) -> DeliverBoxes:
    delivery = DeliverBoxes(NORMALIZATION, options.pop("device", CPU), options.pop("channels_last", False))
    assert not options
    return delivery


def evaluation(photos: Photos | None = None, **options) -> Iterator[ImagesWithBoxes]:
    parts = options.pop("ranks", Ranks()).share(equal_parts(range(COUNT), 3))
    workers = Workers(options.pop("workers", 0))
    read = reader(photos, options).plain
    return stream_once(read, delivery(options), parts, workers=workers)


def take(batches: Iterator[ImagesWithBoxes], count: int) -> list[ImagesWithBoxes]:
    return list(islice(batches, count))


def assert_same(some: list[ImagesWithBoxes], others: list[ImagesWithBoxes]) -> None:
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert (one.step, one.sizes, len(one)) == (other.step, other.sizes, len(other))
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.scales, other.scales)
        for a, b in zip(one.targets, other.targets, strict=True):
            assert torch.equal(a.boxes, b.boxes)
            assert torch.equal(a.labels, b.labels)


def check_against_reference(batch: ImagesWithBoxes, transform: DetectionTransform, epoch: int) -> None:
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (NORMALIZATION.mean, NORMALIZATION.std))
    assert batch.images.dtype is torch.float32
    height, width = batch.images.shape[2:]
    for side, longest in ((height, max(size[0] for size in batch.sizes)), (width, max(s[1] for s in batch.sizes))):
        assert side % 32 == 0
        assert longest <= side < longest + 32
    for place, example in enumerate(batch.ids.tolist()):
        done = transform(Photos().open(example), listing().boxes(example), 7, epoch, example)
        h, w = batch.sizes[place]
        assert done.pixels.shape == (h, w, 3)
        expected = (torch.tensor(done.pixels).permute(2, 0, 1).double() / 255 - mean) / std
        torch.testing.assert_close(batch.images[place, :, :h, :w].double(), expected, rtol=0, atol=2e-6)
        assert (batch.images[place, :, h:] == 0).all()
        assert (batch.images[place, :, :, w:] == 0).all()
        assert torch.equal(batch.targets[place].boxes, done.target.boxes)
        assert torch.equal(batch.targets[place].labels, done.target.labels)
        torch.testing.assert_close(batch.scales[place], torch.tensor(done.scale))


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_equal_the_reference(channels_last: bool) -> None:
    for number, batch in enumerate(take(feed(channels_last=channels_last).micro_batches(0), 6)):
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        assert batch.images.is_contiguous(memory_format=memory_format)
        check_against_reference(batch, DRAWN, number // 3)


def test_models_get_images_and_sizes() -> None:
    batch = feed().example()
    assert batch.model_inputs == (batch.images, batch.sizes)


@pytest.mark.cuda
@pytest.mark.needs_gpu(reason="compares two devices")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_gpu_gets_the_same_batches(workers: int) -> None:
    there = take(feed(device=torch.device("cuda"), workers=workers).micro_batches(0), 6)
    for one, other in zip(there, take(feed().micro_batches(0), 6), strict=True):
        assert (one.images.device.type, one.ids.device.type, one.scales.device.type) == ("cuda", "cuda", "cpu")
        torch.testing.assert_close(one.images.cpu(), other.images, rtol=0, atol=2e-6)
        for a, b in zip(one.targets, other.targets, strict=True):
            assert (a.boxes.device.type, a.labels.device.type) == ("cuda", "cuda")
            assert torch.equal(a.boxes.cpu(), b.boxes)
            assert torch.equal(a.labels.cpu(), b.labels)


def test_an_epoch_is_a_permutation_filled_up_from_its_start() -> None:
    one = feed()
    assert one.steps_per_epoch == 3
    batches = take(one.micro_batches(0), 6)
    assert [batch.step for batch in batches] == [0, 1, 2, 3, 4, 5]
    for epoch in (0, 1):
        order = permutation(COUNT, 7, epoch).tolist()
        assert torch.cat([batch.ids for batch in batches[3 * epoch : 3 * epoch + 3]]).tolist() == order + order[:2]


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_change_nothing(workers: int) -> None:
    whole = take(feed().micro_batches(0, accumulate=2), 14)
    assert_same(take(feed(workers=workers).micro_batches(0, accumulate=2), 14), whole)
    assert_same(take(feed(workers=workers).micro_batches(4, accumulate=2), 6), whole[8:])


@pytest.mark.parametrize("first_step", [1, 3, 5])
def test_a_later_start_continues_with_the_same_batches(first_step: int) -> None:
    whole = take(feed().micro_batches(0), 8)
    assert_same(take(feed().micro_batches(first_step), 8 - first_step), whole[first_step:])


def test_two_ranks_see_what_one_process_accumulates() -> None:
    single = take(feed().micro_batches(0, accumulate=4), 16)
    by_rank = [take(feed().micro_batches(0, ranks=Ranks(rank, 2), accumulate=2), 8) for rank in range(2)]
    assert_same([by_rank[rank][micro] for micro in range(8) for rank in range(2)], single)


def test_batches_that_cannot_be_cut_are_refused_at_once() -> None:
    with pytest.raises(UsageError, match=r"batch_size: 4 .* multiple of 3"):
        feed().micro_batches(0, ranks=Ranks(0, 3))


@pytest.mark.parametrize("workers", [0, 1])
def test_images_without_boxes_come_with_empty_targets(workers: int) -> None:
    batches = take(feed(batch_size=1, transform=DRAWN.plain, workers=workers).micro_batches(0), COUNT)
    counts = {int(batch.ids): batch.targets[0].boxes.shape for batch in batches}
    assert counts == {i: (i % 4, 4) for i in range(COUNT)}


def test_example_is_the_first_and_plain() -> None:
    batch = feed().example()
    assert (batch.ids.tolist(), batch.step, len(batch)) == ([0], 0, 1)
    check_against_reference(batch, DRAWN.plain, 0)


def test_torch_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    for workers in (0, 1):
        take(feed(workers=workers).micro_batches(0), 3)
        next(evaluation(workers=workers))
    feed().example()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_example_is_the_very_error(workers: int) -> None:
    bad = permutation(COUNT, 7, 0)[5].item()
    batches = feed(Photos(bad=bad), workers=workers).micro_batches(0)
    next(batches)
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == f"{bad}.jpg: not an image"
    with pytest.raises(DataError, match=r"^0\.jpg: not an image"):
        feed(Photos(bad=0)).example()


def test_a_killed_worker_is_one_line() -> None:
    batches = feed(Photos(deadly=5), workers=1).micro_batches(0)
    with pytest.raises(DataError, match=r"^data\.workers: a data worker \(pid \d+\) was killed by SIGKILL"):
        take(batches, 3)


@pytest.mark.parametrize("ranks", [1, 3, 12])
@pytest.mark.parametrize("channels_last", [False, True])
def test_evaluation_covers_every_example_once(ranks: int, channels_last: bool) -> None:
    batches = [b for rank in range(ranks) for b in evaluation(ranks=Ranks(rank, ranks), channels_last=channels_last)]
    assert sorted(torch.cat([batch.ids for batch in batches]).tolist()) == list(range(COUNT))
    for batch in batches:
        assert 1 <= len(batch) <= 3
        check_against_reference(batch, DRAWN.plain, 0)


def test_scales_lead_back_to_the_original_image() -> None:
    for batch in evaluation():
        for place, example in enumerate(batch.ids.tolist()):
            back = batch.targets[place].boxes / batch.scales[place].flip(0).repeat(2)
            torch.testing.assert_close(back, listing().boxes(example).boxes)
            size = torch.tensor(batch.sizes[place]) / batch.scales[place]
            torch.testing.assert_close(size, listing().sizes[example].float())


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_do_not_change_an_evaluation(workers: int) -> None:
    assert_same(list(evaluation(workers=workers)), list(evaluation()))


def test_an_unreadable_example_ends_an_evaluation() -> None:
    with pytest.raises(DataError, match=r"^7\.jpg: not an image"):
        list(evaluation(Photos(bad=7), workers=1))
