"""The streaming feed: the batches do not depend on the workers, the ranks or the step at which a run resumes."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from jpegs import jpeg_bytes, photo
from PIL import Image, ImageOps
from torch import Tensor

from w2skd.data.batch import LabelledImages
from w2skd.data.counter import permutation, seed_from
from w2skd.data.image_stream import DeliverImages, ReadImages, mean_colour
from w2skd.data.images import Normalization
from w2skd.data.normalize import Normalizer
from w2skd.data.order import BatchOrder
from w2skd.data.parts import equal_parts
from w2skd.data.streaming import Request, StreamingFeed, _SideStream, stream_once
from w2skd.data.transforms import EvalTransform, TrainTransform
from w2skd.data.workers import Workers
from w2skd.errors import DataError, UsageError
from w2skd.platform.ranks import Ranks

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

CPU = torch.device("cpu")
NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
BLANK = (102, 128, 153)
ALL = TrainTransform(("random_resized_crop", "flip", "trivial_augment", "cutout", "random_erasing"))
SIZE = 16


@dataclass(frozen=True)
class Photos:
    """Pictures that are made when they are opened; the one numbered `bad` cannot be, that numbered `deadly` kills."""

    count: int = 10
    bad: int = -1
    deadly: int = -1

    def __len__(self) -> int:
        return self.count

    def open(self, index: int) -> Image.Image:
        if index == self.bad:
            raise DataError(f"{self.name(index)}: not an image")
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        coarse = np.random.default_rng(index).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((20 + index % 5, 24 - index % 3), Image.Resampling.BICUBIC)

    def read(self, indices: Tensor, size_px: int) -> Tensor:
        raise NotImplementedError

    def name(self, index: int) -> str:
        return f"{index}.jpg"


def feed(photos: Photos | None = None, **options) -> StreamingFeed:
    photos, seed = photos or Photos(), options.pop("seed", 7)
    order = BatchOrder(len(photos), options.pop("batch_size", 4), options.pop("repeats", 1), seed)
    read = ReadImages(photos, options.pop("transform", ALL), BLANK, seed)
    deliver, workers = delivery(photos, options), Workers(options.pop("workers", 0))
    return StreamingFeed(order, read, deliver, workers, SIZE, **options)


def delivery(photos: Photos, options: dict[str, Any]) -> DeliverImages:
    normalize = Normalizer(NORMALIZATION, options.pop("device", CPU), options.pop("channels_last", False))
    return DeliverImages(torch.arange(len(photos)) % 4, normalize)


def take(batches: Iterator[LabelledImages], count: int) -> list[LabelledImages]:
    return list(islice(batches, count))


def assert_same(some: list[LabelledImages], others: list[LabelledImages]) -> None:
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert (one.step, one.slice) == (other.step, other.slice)
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.images, other.images)


def normalized(pixels: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(value, dtype=torch.float64)[:, None, None] for value in (NORMALIZATION.mean, NORMALIZATION.std)
    )
    return (pixels.double() / 255 - mean) / std


def reference(example: int, transform, *, size_px: int = SIZE, epoch: int = 0, repeat: int = 0) -> Tensor:
    pixels = np.zeros((size_px, size_px, 3), dtype=np.uint8)
    torch.manual_seed(seed_from(7, epoch, example, repeat))
    transform.pipeline(size_px, BLANK)(Photos().open(example), pixels)
    return normalized(torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_equal_the_reference(channels_last: bool):
    batches = take(feed(channels_last=channels_last).micro_batches(0), 6)
    for number, batch in enumerate(batches):
        assert batch.images.dtype is torch.float32
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        assert batch.images.is_contiguous(memory_format=memory_format)
        assert torch.equal(batch.labels, batch.ids % 4)
        expected = [reference(i, ALL, epoch=number // 3) for i in batch.ids.tolist()]
        torch.testing.assert_close(batch.images.double(), torch.stack(expected), rtol=0, atol=2e-6)


@pytest.mark.cuda
@pytest.mark.needs_gpu(reason="compares two devices")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_gpu_gets_the_same_batches(workers: int):
    there = take(feed(device=torch.device("cuda"), workers=workers).micro_batches(0), 4)
    for one, other in zip(there, take(feed().micro_batches(0), 4), strict=True):
        assert (one.images.device.type, one.labels.device.type, one.ids.device.type) == ("cuda", "cuda", "cuda")
        assert torch.equal(one.ids.cpu(), other.ids)
        torch.testing.assert_close(one.images.cpu(), other.images, rtol=0, atol=2e-6)


def test_an_epoch_is_a_permutation_filled_up_from_its_start():
    one = feed()
    assert one.steps_per_epoch == 3
    batches = take(one.micro_batches(0), 6)
    assert [batch.step for batch in batches] == [0, 1, 2, 3, 4, 5]
    for epoch in (0, 1):
        order = permutation(10, 7, epoch).tolist()
        assert torch.cat([batch.ids for batch in batches[3 * epoch : 3 * epoch + 3]]).tolist() == order + order[:2]


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_change_nothing(workers: int):
    options = {"repeats": 2, "size_at": lambda step: 8 + 4 * (step % 3)}
    whole = take(feed(**options).micro_batches(0, accumulate=2), 14)
    assert_same(take(feed(workers=workers, **options).micro_batches(0, accumulate=2), 14), whole)
    assert_same(take(feed(workers=workers, **options).micro_batches(4, accumulate=2), 6), whole[8:])


@pytest.mark.parametrize("first_step", [1, 3, 5])
def test_a_later_start_continues_with_the_same_batches(first_step: int):
    whole = take(feed().micro_batches(0), 8)
    assert_same(take(feed().micro_batches(first_step), 8 - first_step), whole[first_step:])


@pytest.mark.parametrize("workers", [0, 1])
def test_two_ranks_see_what_one_process_accumulates(workers: int):
    single = take(feed().micro_batches(0, accumulate=4), 16)
    by_rank = [take(feed(workers=workers).micro_batches(0, ranks=Ranks(rank, 2), accumulate=2), 8) for rank in range(2)]
    assert_same([by_rank[rank][micro] for micro in range(8) for rank in range(2)], single)
    assert [batch.slice for batch in single[:4]] == [0, 1, 2, 3]


def test_batches_that_cannot_be_cut_are_refused_at_once():
    with pytest.raises(UsageError, match=r"batch_size: 4 .* multiple of 3"):
        feed().micro_batches(0, ranks=Ranks(0, 3))
    with pytest.raises(UsageError, match=r"batch_size: 4 is not a multiple of data\.repeats \(3\)"):
        feed(repeats=3)


def test_repeats_augment_an_example_anew():
    batch = next(feed(batch_size=6, repeats=3).micro_batches(0))
    ids = batch.ids.tolist()
    assert ids == ids[:2] * 3
    expected = [reference(example, ALL, repeat=place // 2) for place, example in enumerate(ids)]
    torch.testing.assert_close(batch.images.double(), torch.stack(expected), rtol=0, atol=2e-6)
    assert not torch.equal(batch.images[0], batch.images[2])


def test_a_size_by_step_is_what_images_are_cut_to():
    sizes = {0: 8, 1: 12, 2: 16, 3: 20}
    for batch in take(feed(size_at=sizes.__getitem__).micro_batches(0), 4):
        size_px = sizes[batch.step]
        expected = [reference(i, ALL, size_px=size_px, epoch=batch.step // 3) for i in batch.ids.tolist()]
        torch.testing.assert_close(batch.images.double(), torch.stack(expected), rtol=0, atol=2e-6)


def test_augmentation_changes_from_epoch_to_epoch_and_with_the_seed():
    photos = Photos(1)
    draws = [batch.images for batch in take(feed(photos, batch_size=1).micro_batches(0), 8)]
    assert len({draw.numpy().tobytes() for draw in draws}) == 8
    assert not torch.equal(draws[0], next(feed(photos, batch_size=1, seed=8).micro_batches(0)).images)


def test_blanked_parts_are_nearly_zero():
    assert mean_colour(NORMALIZATION) == BLANK
    batch = next(feed(transform=TrainTransform(("cutout",))).micro_batches(0))
    near = (batch.images.abs() < 0.01).all(dim=1).flatten(1).float().mean(dim=1)
    assert (near >= 1 / 16).all()


def test_torch_generator_is_not_touched():
    before = torch.get_rng_state()
    for workers in (0, 1):
        take(feed(workers=workers).micro_batches(0), 3)
        next(stream(workers=workers))
    feed().example()
    assert torch.equal(before, torch.get_rng_state())


def test_example_is_the_first_and_plain():
    batch = feed().example()
    assert (batch.ids.tolist(), batch.labels.tolist(), batch.step, len(batch)) == ([0], [0], 0, 1)
    expected = reference(0, TrainTransform(()))
    torch.testing.assert_close(batch.images[0].double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_example_is_the_very_error(workers: int):
    bad = permutation(10, 7, 0)[5].item()
    batches = feed(Photos(bad=bad), workers=workers).micro_batches(0)
    next(batches)
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == f"{bad}.jpg: not an image"
    with pytest.raises(DataError, match=r"^0\.jpg: not an image"):
        feed(Photos(bad=0)).example()


def test_a_killed_worker_is_one_line():
    batches = feed(Photos(deadly=5), workers=1).micro_batches(0)
    with pytest.raises(DataError, match=r"^data\.workers: a data worker \(pid \d+\) was killed by SIGKILL"):
        take(batches, 3)


def stream(photos: Photos | None = None, **options) -> Iterator[LabelledImages]:
    photos = photos or Photos()
    read, deliver = ReadImages(photos, EvalTransform(18, "bicubic")), delivery(photos, options)
    parts = options.pop("ranks", Ranks()).share(equal_parts(range(len(photos)), 3))
    workers = Workers(options.pop("workers", 0))
    assert not options
    return stream_once(read, deliver, parts, size_px=SIZE, workers=workers)


@pytest.mark.parametrize("ranks", [1, 3, 12])
@pytest.mark.parametrize("channels_last", [False, True])
def test_evaluation_covers_every_example_once(ranks: int, channels_last: bool):
    batches = [
        batch for rank in range(ranks) for batch in stream(ranks=Ranks(rank, ranks), channels_last=channels_last)
    ]
    batches.sort(key=lambda batch: int(batch.ids[0]))
    assert torch.cat([batch.ids for batch in batches]).tolist() == list(range(10))
    assert all(1 <= len(batch) <= 3 for batch in batches)
    assert torch.cat([batch.labels for batch in batches]).tolist() == [i % 4 for i in range(10)]
    expected = torch.stack([reference(i, EvalTransform(18, "bicubic")) for i in range(10)])
    images = torch.cat([batch.images for batch in batches])
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=2e-6)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert batches[0].images.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_do_not_change_an_evaluation(workers: int):
    assert_same(list(stream(workers=workers)), list(stream()))


def test_an_unreadable_example_ends_an_evaluation():
    with pytest.raises(DataError, match=r"^7\.jpg: not an image"):
        list(stream(Photos(bad=7), workers=1))


def test_copies_to_a_gpu_run_on_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the order of the calls, with fake streams because there may be no GPU."""
    calls: list[tuple[object, ...]] = []

    class Stream:
        def __init__(self, name: object):
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            calls.append((self.name, "waits for", other.name))

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        calls.append(("on", stream.name))
        yield
        calls.append(("leaves", stream.name))

    class Made:
        def to(self, device: torch.device, *, non_blocking: bool) -> "Made":
            calls.append(("copy", str(device), non_blocking))
            return Made()

        def record_stream(self, stream: Stream) -> None:
            calls.append(("used by", stream.name))

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    made = Made()
    copied = _SideStream(torch.device("cuda:0"))(made)
    assert copied is not made
    assert calls == [
        ("on", "side"),
        ("copy", "cuda:0", True),
        ("leaves", "side"),
        ("main", "waits for", "side"),
        ("used by", "main"),
    ]


@dataclass(frozen=True)
class JpegFiles:
    """JPEG files of several sizes in memory; number 3 is a PNG."""

    count: int = 8

    def __len__(self) -> int:
        return self.count

    def content(self, index: int) -> bytes:
        if index == 3:
            file = BytesIO()
            photo(90, 80, 3).save(file, "PNG")
            return file.getvalue()
        return jpeg_bytes(photo(30 + 25 * index, 40 + 20 * index, index), orientation=1 + index)

    def open(self, index: int) -> Image.Image:
        return ImageOps.exif_transpose(Image.open(BytesIO(self.content(index)))).convert("RGB")


@pytest.mark.parametrize("transform", [ALL, TrainTransform(("flip",)), EvalTransform(20), EvalTransform(14)])
def test_reduced_decoding_changes_neither_windows_nor_draws(transform) -> None:
    request = Request(range(8), SIZE, 3, (0,) * 8 if isinstance(transform, TrainTransform) else ())
    full, reduced = (
        ReadImages(JpegFiles(), transform, BLANK, 7, reduced=reduced)(request) for reduced in (False, True)
    )
    assert isinstance(full, Tensor)
    assert isinstance(reduced, Tensor)
    differences = (full.int() - reduced.int()).abs().flatten(1)
    assert (differences.double().mean(dim=1) < 8).all(), "another window, flip or erased part would differ by more"
    is_same = differences.amax(dim=1) == 0
    assert is_same[3], "PNG files are decoded as before"
    assert is_same[0], "images of less than twice the output's side are decoded as before"
    assert is_same.all() == (transform == EvalTransform(14)), "a crop that pads is decoded as before"


def test_reduced_decoding_reports_what_open_reports() -> None:
    class Damaged(JpegFiles):
        def content(self, index: int) -> bytes:
            return super().content(index)[:-300]

        def open(self, index: int) -> Image.Image:
            raise DataError(f"{index}.jpg: damaged")

    for transform in (EvalTransform(20), EvalTransform(200)):
        error = ReadImages(Damaged(), transform, reduced=True)(Request([6], SIZE))
        assert str(error) == "6.jpg: damaged"
