"""The resident feed against a slow reference, one example and one pixel at a time."""

from collections.abc import Iterator
from itertools import chain, combinations, islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from w2skd.data import resident
from w2skd.data.batch import LabelledImages
from w2skd.data.counter import permutation, randint
from w2skd.data.images import ImageSet, Normalization
from w2skd.data.normalize import Normalizer
from w2skd.data.order import BatchOrder
from w2skd.data.parts import equal_parts
from w2skd.data.resident import ResidentFeed, evaluation_batches
from w2skd.errors import UsageError
from w2skd.platform.ranks import Ranks

CPU = torch.device("cpu")
NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
AUGMENTATIONS = ("crop", "flip", "cutout")
SUBSETS = list(chain.from_iterable(combinations(AUGMENTATIONS, size) for size in range(4)))


def image_set(count: int = 10, height: int = 16, width: int = 16) -> ImageSet:
    pixels = randint(256, 0, torch.arange(count * 3 * height * width)).to(torch.uint8)
    return ImageSet(pixels.view(count, 3, height, width), torch.arange(count) % 4, ("a", "b", "c", "d"))


def feed(images: ImageSet, batch_size: int = 4, augment: tuple[str, ...] = AUGMENTATIONS, **options) -> ResidentFeed:
    order = BatchOrder(len(images), batch_size, options.pop("repeats", 1), options.pop("seed", 7))
    normalize = Normalizer(NORMALIZATION, options.pop("device", CPU), options.pop("channels_last", False))
    return ResidentFeed(images, order, normalize, augment, **options)


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


def reference(pixels: Tensor, seed: int, epoch: int, example: int, augment: tuple[str, ...], repeat: int = 0) -> Tensor:
    """Augment one uint8 image [3, H, W] by way of a padded copy."""
    _, height, width = pixels.shape

    def draw(high: int, kind: int) -> int:
        return int(randint(high, seed, epoch, example, 64 * repeat + kind))

    if "crop" in augment:
        pad = max(1, min(height, width) // 8)
        padded = torch.nn.functional.pad(pixels[None].float(), (pad,) * 4, mode="reflect")[0].to(torch.uint8)
        top, left = draw(2 * pad + 1, 0), draw(2 * pad + 1, 1)
        pixels = padded[:, top : top + height, left : left + width]
    if "flip" in augment and draw(2, 2) == 1:
        pixels = pixels.flip(2)
    image = normalized(pixels)
    if "cutout" in augment:
        side = min(height, width) // 2
        top, left = draw(height, 3) - side // 2, draw(width, 4) - side // 2
        image[:, max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 0
    return image


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("augment", SUBSETS, ids="+".join)
def test_batches_equal_the_reference(augment: tuple[str, ...], channels_last: bool):
    images = image_set()
    batches = take(feed(images, augment=augment, channels_last=channels_last).micro_batches(0), 6)
    for number, batch in enumerate(batches):
        assert batch.images.dtype is torch.float32
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        assert batch.images.is_contiguous(memory_format=memory_format)
        assert torch.equal(batch.labels, images.labels[batch.ids])
        expected = [reference(images.images[i], 7, number // 3, i, augment) for i in batch.ids.tolist()]
        torch.testing.assert_close(batch.images.double(), torch.stack(expected), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("height", "width"), [(8, 12), (12, 8), (9, 9), (33, 40)])
def test_other_sizes_equal_the_reference(height: int, width: int):
    images = image_set(6, height, width)
    batch = next(feed(images, batch_size=6).micro_batches(0))
    expected = [reference(images.images[i], 7, 0, i, AUGMENTATIONS) for i in batch.ids.tolist()]
    torch.testing.assert_close(batch.images.double(), torch.stack(expected), rtol=0, atol=2e-6)


@pytest.mark.parametrize("crop_px", [1, 2, 7])
def test_a_crop_shifts_by_at_most_crop_px(crop_px: int):
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    gradient = torch.stack([16 * rows, 16 * columns, 0 * rows]).to(torch.uint8)
    images = ImageSet(gradient.expand(400, 3, 16, 16).contiguous(), torch.zeros(400, dtype=torch.int64), ("a",))
    batch = next(feed(images, batch_size=400, augment=("crop",), crop_px=crop_px).micro_batches(0))
    # The centre is never in the reflected border, so its value reveals the shift.
    centres = batch.images[:, :2, 8, 8].double() * torch.tensor(NORMALIZATION.std[:2]) + torch.tensor(
        NORMALIZATION.mean[:2]
    )
    shifts = (centres * 255 / 16).round().long() - 8
    for axis in range(2):
        assert set(shifts[:, axis].tolist()) == set(range(-crop_px, crop_px + 1))


def test_alternating_flip_shows_both_sides_of_every_example_in_two_epochs():
    images = image_set()
    batches = take(feed(images, augment=("alternating_flip",)).micro_batches(0), 12)
    plain, mirrored = (normalized(pixels).float() for pixels in (images.images, images.images.flip(3)))
    sides: list[dict[int, bool]] = []
    for epoch in range(4):
        seen = {}
        for batch in batches[3 * epoch : 3 * epoch + 3]:
            for example, image in zip(batch.ids.tolist(), batch.images, strict=True):
                seen[example] = not torch.allclose(image, plain[example], atol=1e-5)
                torch.testing.assert_close(image, (mirrored if seen[example] else plain)[example], rtol=0, atol=2e-6)
        sides.append(seen)
    assert set(sides[0].values()) == {False, True}, "the first epoch draws the side of each example"
    assert sides[1] == {example: not side for example, side in sides[0].items()}
    assert sides[2:] == sides[:2]


def test_alternating_flip_resumes_on_the_same_side():
    images = image_set()
    whole = take(feed(images, augment=("crop", "alternating_flip")).micro_batches(0), 9)
    for first_step in (2, 4, 6):
        assert_same(
            take(feed(images, augment=("crop", "alternating_flip")).micro_batches(first_step), 9 - first_step),
            whole[first_step:],
        )


def test_the_order_of_the_names_does_not_matter():
    images = image_set()
    assert_same(
        take(feed(images, augment=("crop", "flip", "cutout")).micro_batches(0), 4),
        take(feed(images, augment=("cutout", "flip", "crop")).micro_batches(0), 4),
    )


def test_an_epoch_is_a_permutation_filled_up_from_its_start():
    images = image_set(10)
    one = feed(images, batch_size=4)
    assert one.steps_per_epoch == 3
    batches = take(one.micro_batches(0), 6)
    assert [batch.step for batch in batches] == [0, 1, 2, 3, 4, 5]
    for epoch in (0, 1):
        order = permutation(10, 7, epoch).tolist()
        seen = torch.cat([batch.ids for batch in batches[3 * epoch : 3 * epoch + 3]]).tolist()
        assert seen == order + order[:2]
    assert all(len(batch) == 4 for batch in batches)


def test_a_batch_may_be_larger_than_the_set():
    one = feed(image_set(3), batch_size=8)
    assert one.steps_per_epoch == 1
    order = permutation(3, 7, 1).tolist()
    assert take(one.micro_batches(1), 1)[0].ids.tolist() == (order * 3)[:8]


def test_augmentation_changes_from_epoch_to_epoch_and_with_the_seed():
    images = image_set(1, 32, 32)
    draws = [batch.images for batch in take(feed(images, batch_size=1).micro_batches(0), 8)]
    assert len({draw.numpy().tobytes() for draw in draws}) > 4
    assert not torch.equal(draws[0], next(feed(images, batch_size=1, seed=8).micro_batches(0)).images)


@pytest.mark.parametrize("first_step", [1, 3, 7])
def test_a_later_start_continues_with_the_same_batches(first_step: int):
    images = image_set()
    whole = take(feed(images).micro_batches(0, accumulate=2), 20)
    assert_same(
        take(feed(images).micro_batches(first_step, accumulate=2), 20 - 2 * first_step), whole[2 * first_step :]
    )


def test_two_ranks_see_what_one_process_accumulates():
    images = image_set()
    single = take(feed(images).micro_batches(0, accumulate=4), 16)
    for ranks, accumulate in ((2, 2), (4, 1)):
        by_rank = [
            take(feed(images).micro_batches(0, ranks=Ranks(rank, ranks), accumulate=accumulate), 4 * accumulate)
            for rank in range(ranks)
        ]
        together = [by_rank[rank][micro] for micro in range(4 * accumulate) for rank in range(ranks)]
        assert_same(together, single)


def test_accumulation_cuts_the_same_batch():
    images = image_set()
    whole = take(feed(images).micro_batches(0), 4)
    parts = take(feed(images).micro_batches(0, accumulate=2), 8)
    assert [part.slice for part in parts] == [0, 1] * 4
    for number, batch in enumerate(whole):
        assert torch.equal(torch.cat([part.images for part in parts[2 * number : 2 * number + 2]]), batch.images)
        assert [part.step for part in parts[2 * number : 2 * number + 2]] == [number, number]


def test_a_batch_that_cannot_be_shared_is_refused_at_once():
    with pytest.raises(UsageError, match=r"batch_size: 4 .* 3 ranks x 2 .* multiple of 6"):
        feed(image_set()).micro_batches(0, ranks=Ranks(0, 3), accumulate=2)


def test_draws_are_those_of_earlier_versions():
    batches = take(feed(image_set()).micro_batches(0), 4)
    assert [batch.ids.tolist() for batch in batches] == [[7, 6, 0, 1], [4, 8, 5, 3], [2, 9, 7, 6], [4, 9, 1, 3]]
    sums = [float(batch.images.double().sum()) for batch in batches]
    assert sums == pytest.approx([94.928288, 241.584508, 158.362276, 167.179273], abs=1e-3)


def test_repeats_augment_an_example_anew():
    images = image_set()
    batches = take(feed(images, batch_size=6, repeats=3).micro_batches(0), 5)
    for number, batch in enumerate(batches):
        assert batch.ids.tolist() == batch.ids[:2].tolist() * 3
        expected = [
            reference(images.images[i], 7, number // 2, i, AUGMENTATIONS, repeat=place // 2)
            for place, i in enumerate(batch.ids.tolist())
        ]
        torch.testing.assert_close(batch.images.double(), torch.stack(expected), rtol=0, atol=2e-6)
    assert not torch.equal(batches[0].images[0], batches[0].images[2])
    with pytest.raises(UsageError, match=r"batch_size: 4 .* multiple of 3"):
        feed(images, batch_size=4, repeats=3)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_size_by_step_makes_images_smaller(channels_last: bool):
    images = image_set(8, 16, 24)
    options = {"augment": ("flip",), "channels_last": channels_last}
    sizes = {0: 8, 1: 12, 2: 16, 3: 20}
    whole = take(feed(images, **options).micro_batches(0), 4)
    small = take(feed(images, size_at=sizes.__getitem__, **options).micro_batches(0), 4)
    shapes = [tuple(batch.images.shape[2:]) for batch in small]
    assert shapes == [(8, 12), (12, 18), (16, 24), (16, 24)]
    for one, other in zip(small, whole, strict=True):
        expected = torch.nn.functional.interpolate(
            other.images.contiguous(), one.images.shape[2:], mode="bilinear", antialias=True
        )
        torch.testing.assert_close(one.images, expected if one.step < 2 else other.images)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        assert one.images.is_contiguous(memory_format=memory_format)


def test_example_is_the_first_and_plain():
    images = image_set()
    batch = feed(images).example()
    assert len(batch) == 1
    assert (batch.ids.tolist(), batch.labels.tolist(), batch.step) == ([0], [0], 0)
    torch.testing.assert_close(batch.images[0].double(), normalized(images.images[0]), rtol=0, atol=2e-6)


def test_torch_generator_is_not_touched():
    before = torch.get_rng_state()
    take(feed(image_set()).micro_batches(0), 5)
    assert torch.equal(before, torch.get_rng_state())


def test_a_batch_is_the_callers_own():
    one = feed(image_set(), augment=())
    first = next(one.micro_batches(0))
    kept = first.images.clone()
    first.images.zero_()
    assert torch.equal(next(one.micro_batches(0)).images, kept)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("channels_last", [False, True])
def test_evaluation_covers_every_example_once(ranks: int, channels_last: bool):
    images = image_set(10)
    normalize = Normalizer(NORMALIZATION, CPU, channels_last)
    shares = [Ranks(rank, ranks).share(equal_parts(range(10), 3)) for rank in range(ranks)]
    batches = [batch for share in shares for batch in evaluation_batches(images, normalize, share)]
    batches.sort(key=lambda batch: int(batch.ids[0]))
    assert torch.cat([batch.ids for batch in batches]).tolist() == list(range(10))
    assert all(1 <= len(batch) <= 3 for batch in batches)
    assert torch.equal(torch.cat([batch.labels for batch in batches]), images.labels)
    pixels = torch.cat([batch.images for batch in batches]).double()
    torch.testing.assert_close(pixels, normalized(images.images), rtol=0, atol=2e-6)
    assert batches[0].images.is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


@pytest.mark.parametrize("at_once", [1, 5, 6, 1000])
@pytest.mark.parametrize("ranks", [Ranks(), Ranks(rank=1, world=2, local_rank=1)])
def test_batches_do_not_depend_on_how_many_are_placed_at_once(
    at_once: int, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions are computed for many batches ahead; a block may end within a batch or before the epoch does."""
    expected = take(feed(image_set(22), batch_size=4).micro_batches(3, ranks, accumulate=2), 30)
    monkeypatch.setattr(resident, "_PLACED_AT_ONCE", at_once)
    assert_same(take(feed(image_set(22), batch_size=4).micro_batches(3, ranks, accumulate=2), 30), expected)


def test_a_batch_takes_few_operations() -> None:
    """On a GPU every operation of a step costs the host a launch."""

    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func not in (torch.ops.aten.slice.Tensor, torch.ops.aten.view.default)
            return func(*args, **(kwargs or {}))

    batches = feed(image_set(64), augment=("crop", "flip")).micro_batches(0)
    next(batches)
    with Count() as counted:
        take(batches, 10)
    assert counted.count <= 10 * 10
