"""Decoding outside of the workers gives the batches of `ReadImages`: same windows, flips, ids and order."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import islice

import pytest
import torch
from jpegs import jpeg_bytes, photo
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import io

from w2skd.data import device_decode
from w2skd.data.batch import LabelledImages
from w2skd.data.device_decode import DeliverEncoded, EncodedImages, ReadEncoded, check_decoder
from w2skd.data.image_stream import DeliverImages, ReadImages
from w2skd.data.images import Normalization
from w2skd.data.normalize import Normalizer, to_bytes
from w2skd.data.order import BatchOrder
from w2skd.data.parts import equal_parts
from w2skd.data.streaming import Request, StreamingFeed, stream_once
from w2skd.data.transforms import EvalTransform, TrainTransform
from w2skd.data.workers import Workers
from w2skd.errors import DataError
from w2skd.platform.ranks import Ranks

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

CPU = torch.device("cpu")
NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
SIZE = 32
GREY, PNG, CMYK = 2, 3, 5
"""Indices of the files that are not RGB JPEG."""

TRAIN = TrainTransform(("random_resized_crop", "flip"))
TOLERANCE = {"bilinear": 1, "bicubic": 2}


@dataclass(frozen=True)
class Files:
    """Files in memory: JPEG in all orientations and several sizes, greyscale, PNG, CMYK; `cut` is truncated."""

    count: int = 10
    cut: int = -1

    def __len__(self) -> int:
        return self.count

    @cache  # noqa: B019  # a few small instances, alive as long as the tests
    def content(self, index: int) -> bytes:
        image = photo(90 + 13 * index, 120 - 7 * index, index)
        if index == PNG:
            file = BytesIO()
            image.save(file, "PNG")
            return file.getvalue()
        mode = {GREY: "L", CMYK: "CMYK"}.get(index, "RGB")
        content = jpeg_bytes(image.convert(mode), 1 + index % 8, progressive=index == 4)
        return content[:-200] if index == self.cut else content

    def open(self, index: int) -> Image.Image:
        if index == self.cut:
            raise DataError(f"{index}.jpg: damaged")
        return ImageOps.exif_transpose(Image.open(BytesIO(self.content(index)))).convert("RGB")


def normalizer(device: torch.device = CPU) -> Normalizer:
    return Normalizer(NORMALIZATION, device, False)


def pair(files: Files, transform: TrainTransform | EvalTransform) -> tuple[ReadEncoded, DeliverEncoded]:
    labels = torch.arange(len(files)) % 4
    return ReadEncoded(files, transform, 7), DeliverEncoded(files, labels, normalizer(), transform.interpolation)


def feed(workers: int = 0, *, encoded: bool = True, size_at=None) -> StreamingFeed:
    files = Files()
    order, labels = BatchOrder(len(files), 4, 2, 7), torch.arange(len(files)) % 4
    read, deliver = pair(files, TRAIN)
    if not encoded:
        read, deliver = ReadImages(files, TRAIN, seed=7), DeliverImages(labels, normalizer())
    return StreamingFeed(order, read, deliver, Workers(workers), SIZE, size_at)


def take(batches: Iterator[LabelledImages], count: int) -> list[LabelledImages]:
    return list(islice(batches, count))


def pixels(batch: LabelledImages) -> Tensor:
    return to_bytes(batch.images, NORMALIZATION).int()


def assert_alike(some: list[LabelledImages], others: list[LabelledImages], tolerance: int) -> None:
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert (one.step, one.slice) == (other.step, other.slice)
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.labels, other.labels)
        assert (pixels(one) - pixels(other)).abs().max() <= tolerance


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "kinds", [("random_resized_crop", "flip"), ("random_resized_crop",), ("flip",), (), None], ids=str
)
def test_pixels_are_those_of_pillow_within_the_tolerance(kinds: tuple[str, ...] | None, interpolation: str) -> None:
    transform = (
        EvalTransform(40, interpolation) if kinds is None else TrainTransform(kinds, interpolation=interpolation)
    )
    ids = torch.arange(10)
    for epoch in range(4):
        request = Request(ids.tolist(), SIZE, epoch, () if kinds is None else (0,) * 10)
        read, deliver = pair(Files(), transform)
        made, expected = read(request), ReadImages(Files(), transform, seed=7)(request)
        assert isinstance(made, EncodedImages)
        assert (made.lengths == 0).nonzero().flatten().tolist() == [PNG, CMYK], "these are decoded by the workers"
        difference = (pixels(deliver(made, ids)) - expected.int()).abs().flatten(1).amax(dim=1)
        assert difference.max() <= TOLERANCE[interpolation]
        assert difference[PNG] == difference[CMYK] == 0


def test_a_crop_that_pads_is_left_to_pillow() -> None:
    read, deliver = pair(Files(), EvalTransform(SIZE - 4))
    request = Request([0, 1], SIZE)
    expected = ReadImages(Files(), EvalTransform(SIZE - 4))(request)
    assert torch.equal(pixels(deliver(read(request), torch.arange(2))), expected.int())


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_ordinary_feed(workers: int) -> None:
    sizes = {"size_at": lambda step: 24 + 8 * (step % 2)}
    whole = take(feed(encoded=False, **sizes).micro_batches(0, accumulate=2), 14)
    assert_alike(take(feed(workers, **sizes).micro_batches(0, accumulate=2), 14), whole, 1)
    later = take(feed(workers, **sizes).micro_batches(3, accumulate=2), 4)
    for one, other in zip(later, take(feed(**sizes).micro_batches(0, accumulate=2), 10)[6:], strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.ids, other.ids)
    assert_alike([feed().example()], [feed(encoded=False).example()], 1)


def test_an_evaluation_covers_every_example_once() -> None:
    read, deliver = pair(Files(), EvalTransform(40))
    parts = Ranks().share(equal_parts(range(10), 3))
    batches = list(stream_once(read, deliver, parts, size_px=SIZE, workers=Workers(1)))
    assert torch.cat([batch.ids for batch in batches]).tolist() == list(range(10))


def test_torch_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    take(feed().micro_batches(0), 3)
    assert torch.equal(before, torch.get_rng_state())


def test_a_truncated_file_is_the_error_of_open() -> None:
    read, _ = pair(Files(cut=1), TRAIN)
    assert str(read(Request([0, 1], SIZE, 0, (0, 0)))) == "1.jpg: damaged"


def test_files_that_the_decoder_refuses_are_decoded_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Like nvJPEG, the decoder refuses a whole group because of one file."""
    decode, calls = io.decode_jpeg, []

    def refuse(files: list[Tensor], **options) -> list[Tensor]:
        calls.append(len(files))
        if any(bytes(file[:600].tolist()) == refused[:600] for file in files):
            raise RuntimeError("Failed to get image info")
        return decode(files, **options)

    read, deliver = pair(Files(), TRAIN)
    ids = torch.arange(10)
    made = read(Request(ids.tolist(), SIZE, 0, (0,) * 10))
    expected, refused = deliver(made, ids), Files().content(6)
    monkeypatch.setattr(io, "decode_jpeg", refuse)
    difference = (pixels(deliver(made, ids)) - pixels(expected)).abs().flatten(1).amax(dim=1)
    assert calls == [8, *[1] * 8]
    assert difference[6] <= 1
    assert difference.sum() == difference[6], "the others do not change"
    assert [len(image) for image in device_decode._groups([torch.zeros(9 * 2**20)] * 3)] == [1, 1, 1]


def test_other_augmentations_are_refused() -> None:
    with pytest.raises(AssertionError, match="cutout"):
        ReadEncoded(Files(), TrainTransform(("cutout",)))


def test_a_torchvision_without_decoders_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(io, "decode_jpeg")
    with pytest.raises(DataError, match=r"^data\.decode: nvjpeg needs torchvision\.io\.decode_jpeg"):
        check_decoder(CPU)


def test_without_a_gpu_there_is_a_remark() -> None:
    assert "the main process decodes on the CPU" in (check_decoder(CPU) or "")


@pytest.mark.cuda
@pytest.mark.needs_gpu(reason="decodes with nvJPEG")
def test_a_gpu_gets_nearly_the_same_pixels() -> None:
    cuda = torch.device("cuda", 0)
    assert check_decoder(cuda) is None
    ids = torch.arange(10)
    for transform in (TRAIN, EvalTransform(40)):
        made = ReadEncoded(Files(), transform, 7)(Request(ids.tolist(), SIZE, 0, (0,) * 10))
        there = DeliverEncoded(Files(), ids % 4, normalizer(cuda), "bilinear")(made.pin_memory(), ids.to(cuda))
        here = DeliverEncoded(Files(), ids % 4, normalizer(), "bilinear")(made, ids)
        assert there.images.device == cuda
        assert (pixels(there) - pixels(here)).abs().double().flatten(1).mean(dim=1).max() < 2
