"""The choice of the feed, and the equality of both feeds on the same images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from jpegs import jpeg_bytes, photo
from PIL import Image
from torch import Tensor

from w2skd.data import feeds
from w2skd.data.feeds import ImageFeeds
from w2skd.data.normalize import to_bytes
from w2skd.data.sources import list_image_data, load_image_data
from w2skd.platform.ranks import Ranks
from w2skd.recipe.train import TrainSection
from w2skd.tasks.classification.recipe import ClassificationData

CPU = torch.device("cpu")


def make(total_steps: int = 40, **keys: Any) -> ImageFeeds:
    section = ClassificationData.model_validate(
        {"source": "shapes", "train_examples": 40, "eval_examples": 21, "image_size": 16, "workers": 0, **keys}
    )
    train = TrainSection.model_validate(
        {
            "steps": total_steps,
            "batch_size": 8,
            "optimizer": {"name": "sgd", "lr": 0.1},
            "lr_schedule": {"name": "constant"},
        }
    )
    return ImageFeeds(section, train, seed=3, device=CPU)


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({}, "resident"),
        ({"feed": "streaming"}, "streaming"),
        ({"augment": ["random_resized_crop", "flip"]}, "streaming"),
        ({"augment": ["crop", "flip", "cutout"]}, "resident"),
        ({"eval_resize": 20}, "streaming"),
    ],
)
def test_what_the_recipe_asks_for_decides(keys: dict[str, Any], kind: str) -> None:
    assert make(**keys).kind == kind


def test_what_does_not_fit_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_of_40 = 4 * 40 * 16 * 16
    monkeypatch.setattr(feeds, "_memory_of", lambda device: 4 * bytes_of_40)
    assert make().kind == "resident"
    monkeypatch.setattr(feeds, "_memory_of", lambda device: 4 * bytes_of_40 - 1)
    assert make().kind == "streaming"
    assert make(feed="resident").kind == "resident"


def test_both_feeds_show_the_same_examples_in_the_same_order() -> None:
    resident, streaming = make(), make(feed="streaming", augment=[])
    for first, second, _ in zip(
        resident.train.micro_batches(2),
        streaming.train.micro_batches(2),
        range(6),
        strict=False,
    ):
        assert torch.equal(first.ids, second.ids)
        assert torch.equal(first.labels, second.labels)


def test_without_augmentation_both_feeds_show_the_same_pixels() -> None:
    for ranks in (1, 2):
        for rank in range(ranks):
            first = list(make().evaluation_batches(Ranks(rank, ranks)))
            second = list(make(feed="streaming").evaluation_batches(Ranks(rank, ranks)))
            if rank:  # all examples are in one batch
                assert first == second == []
                continue
            assert torch.equal(torch.cat([batch.ids for batch in first]), torch.cat([batch.ids for batch in second]))
            images = [torch.cat([batch.images for batch in batches]) for batches in (first, second)]
            torch.testing.assert_close(*images)
    assert make().train.steps_per_epoch == make(feed="streaming").train.steps_per_epoch == 5
    torch.testing.assert_close(make().train.example().images, make(feed="streaming").train.example().images)


def test_a_sample_is_spread_over_the_set_and_the_same_in_both_feeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "_MOST_SAMPLES", 16)
    resident, streaming = make(), make(feed="streaming")
    expected = load_image_data(resident._section).train.images[[place * 40 // 16 for place in range(16)]]
    sample = resident.sample()
    assert (sample.dtype, sample.shape) == (torch.float32, (16, 3, 16, 16))
    assert torch.equal(to_bytes(sample, resident.normalization), expected)
    torch.testing.assert_close(streaming.sample(), sample)


@pytest.mark.parametrize(("size_px", "count"), [(16, 40), (32, 32), (64, 8), (256, 1)])
def test_a_sample_of_large_images_has_fewer(size_px: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "_SAMPLED_PIXELS", 32 * 32 * 32)
    assert len(make(image_size=size_px).sample()) == count


@pytest.mark.parametrize("repeats", [1, 2])
def test_alternating_flip_shows_the_same_sides_in_both_feeds(repeats: int) -> None:
    options = {"augment": ["alternating_flip"], "repeats": repeats}
    resident, streaming = make(**options), make(feed="streaming", **options)
    batches = [feeds.train.micro_batches(0) for feeds in (resident, streaming)]
    for first, second, _ in zip(*batches, range(15), strict=False):
        torch.testing.assert_close(first.images, second.images)
    workers = make(feed="streaming", **{**options, "workers": 1}).train.micro_batches(7)
    torch.testing.assert_close(next(workers).images, next(resident.train.micro_batches(7)).images)


@pytest.mark.parametrize("feed", ["resident", "streaming"])
def test_a_crop_of_the_recipe_reaches_both_feeds(feed: str) -> None:
    batch = next(make(feed=feed, augment=["crop"], crop_px=1, train_examples=400).train.micro_batches(0))
    wide = next(make(feed=feed, augment=["crop"], crop_px=6, train_examples=400).train.micro_batches(0))
    plain = next(make(feed=feed, augment=[], train_examples=400).train.micro_batches(0))

    def largest_shift(images: Tensor) -> int:
        """Return the largest shift in px over the batch, found by comparing the middle of the images."""
        middle = slice(6, 10)
        shifts = [
            max(abs(row), abs(column))
            for one, other in zip(images, plain.images, strict=True)
            for row in range(-6, 7)
            for column in range(-6, 7)
            if torch.allclose(one[:, middle, middle], other[:, 6 + row : 10 + row, 6 + column : 10 + column], atol=1e-5)
        ]
        assert shifts
        return max(shifts)

    assert largest_shift(batch.images) == 1
    assert largest_shift(wide.images) > 2


@pytest.mark.parametrize("feed", ["resident", "streaming"])
def test_images_grow_with_a_progressive_section(feed: str) -> None:
    progressive = {"from_px": 8, "until": "0.5run", "multiple_px": 4}
    batches = make(feed=feed, progressive=progressive).train.micro_batches(0)
    sizes = [batch.images.shape[-1] for batch, _ in zip(batches, range(24), strict=False)]
    assert sizes == [8] * 10 + [12] * 10 + [16] * 4
    (evaluation,) = make(feed=feed, progressive=progressive).evaluation_batches(Ranks())
    assert evaluation.images.shape[-1] == 16


def test_a_fingerprint_tells_other_data_apart(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(tmp_path / part / name / "1.png")

    def fingerprint(feed: str) -> str:
        list_image_data.cache_clear()
        load_image_data.cache_clear()
        return make(
            source="image_folder", root=tmp_path, train_examples=None, eval_examples=None, feed=feed
        ).fingerprint()

    before = {feed: fingerprint(feed) for feed in ("resident", "streaming")}
    Image.new("RGB", (16, 16), (255, 0, 0)).save(tmp_path / "train" / "cat" / "1.png")
    assert fingerprint("resident") != before["resident"]
    assert fingerprint("streaming") == before["streaming"], "pixels of a streamed set are not read for it"
    (tmp_path / "train" / "cat" / "1.png").rename(tmp_path / "train" / "cat" / "2.png")
    assert fingerprint("streaming") != before["streaming"]


@pytest.mark.parametrize(("decode", "tolerance"), [("reduced", 8.0), ("nvjpeg", 1.0)])
def test_all_ways_of_decoding_show_the_same_examples(tmp_path: Path, decode: str, tolerance: float) -> None:
    for part in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(6):
                content = jpeg_bytes(photo(70, 60, 10 * number + index), 1 + index)
                (tmp_path / part / name / f"{index}.jpg").write_bytes(content)
    folder = {"source": "image_folder", "root": tmp_path, "train_examples": None, "eval_examples": None}
    full, other = (
        make(**folder, augment=["random_resized_crop", "flip"], decode=how, crop_scale=[0.5, 1])
        for how in ("full", decode)
    )
    assert other.kind == "streaming"
    assert make(**folder, augment=["flip"], decode=decode).kind == "streaming"
    assert [*full.notes, *(line for line in other.notes if "decodes on the CPU" in line)] == other.notes
    assert len(other.notes) == len(full.notes) + (decode == "nvjpeg")
    batches = [(feeds.train.micro_batches(0), feeds.evaluation_batches(Ranks())) for feeds in (full, other)]
    for one, two in zip(*batches, strict=True):
        for first, second, _ in zip(one, two, range(3), strict=False):
            assert torch.equal(first.ids, second.ids)
            shown = [to_bytes(batch.images, full.normalization).int() for batch in (first, second)]
            difference = (shown[0] - shown[1]).abs().double().flatten(1).mean(dim=1)
            assert 0 < difference.max() < tolerance
