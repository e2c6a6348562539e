"""Packed image folders contain the examples of the original folder, and damage is detected."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from w2skd.data.batch import LabelledImages
from w2skd.data.feeds import ImageFeeds
from w2skd.data.packed import PackedExamples, open_pack
from w2skd.data.packing import PackOptions, pack, shrink
from w2skd.data.sources import ImageListing, identify_image_data, list_image_data, load_image_data
from w2skd.errors import DataError
from w2skd.platform.ranks import Ranks
from w2skd.recipe.train import TrainSection
from w2skd.tasks.classification.recipe import ClassificationData

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SIDE = 24
AUGMENT = ("random_resized_crop", "flip", "trivial_augment", "random_erasing")
TRAIN = TrainSection.model_validate(
    {"steps": 9, "batch_size": 6, "optimizer": {"name": "sgd", "lr": 0.1}, "lr_schedule": {"name": "constant"}}
)


@pytest.fixture(autouse=True)
def _fresh_caches() -> Iterator[None]:
    yield
    for cached in (list_image_data, load_image_data, identify_image_data):
        cached.cache_clear()


def noise(seed: int, width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def image_folder(root: Path, smallest: int = 16) -> Path:
    """Write two classes of images of different shapes, with a shorter side of `smallest` to `smallest` + 8 px."""
    for part, count in (("train", 9), ("test", 5)):
        for number, name in enumerate(("dog", "caf\u00e9")):
            (root / part / name / "sub folder").mkdir(parents=True)
            for i in range(count):
                image = noise(100 * number + i + len(part), smallest + i, smallest + (5 * i) % 9)
                image.save(root / part / name / ("sub folder" if i % 3 == 0 else "") / f"{i}.png")
    return root


def section(root: Path, source: str = "packed", **keys: Any) -> ClassificationData:
    given = {"image_size": 16, "augment": AUGMENT, "workers": 0, "feed": "streaming", **keys}
    return ClassificationData(source=source, root=root, **given)


def packed(root: Path, out: Path, side_px: int = SIDE, form: Any = "raw", **keys: Any) -> Path:
    options = PackOptions(side_px, form, workers=2, shard_bytes=keys.pop("shard_bytes", 5000))
    pack(section(root, "image_folder", **keys), out, options, progress=lambda done, total: None)
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


def feeds(data: ClassificationData) -> ImageFeeds:
    return ImageFeeds(data, TRAIN, seed=3, device=torch.device("cpu"))


def names(listing: ImageListing) -> list[list[str]]:
    return [[part.examples.name(i) for i in range(len(part))] for part in (listing.train, listing.evaluation)]


def assert_same_batches(found: list[LabelledImages], expected: list[LabelledImages]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.images, other.images)


# The same examples


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"train_examples": 7, "eval_examples": 3},
        {"validation_share": 0.3},
        {"validation_share": 0.3, "split_seed": 4},
    ],
)
def test_examples_labels_and_classes_are_those_of_the_folder(
    keys: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    listings = [
        list_image_data(section(folder, "image_folder", **keys)),
        list_image_data(section(packed(folder, tmp_path / "packed"), **keys)),
    ]
    assert names(listings[0]) == names(listings[1])
    for part in ("train", "evaluation"):
        files, stored = (getattr(listing, part) for listing in listings)
        assert files.classes == stored.classes == ("caf\u00e9", "dog")
        assert torch.equal(files.labels, stored.labels)
        assert files.fingerprint() == stored.fingerprint()
    assert listings[0].normalization == listings[1].normalization


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("form", ["raw", "jpeg"])
def test_batches_of_images_that_were_not_resized_are_those_of_the_folder(
    form: str, workers: int, folder: Path, tmp_path: Path
) -> None:
    if form == "jpeg":  # plain JPEG files are copied
        for path in [*folder.rglob("*.png")]:
            Image.open(path).save(path.with_suffix(".jpg"), quality=80)
            path.unlink()
    files = feeds(section(folder, "image_folder"))
    stored = feeds(section(packed(folder, tmp_path / "packed", 64, form), workers=workers))
    expected = list(islice(files.train.micro_batches(0), 9))  # three epochs
    assert_same_batches(list(islice(stored.train.micro_batches(0), 9)), expected)
    assert_same_batches(list(islice(stored.train.micro_batches(4), 5)), expected[4:])
    assert_same_batches(list(stored.evaluation_batches(Ranks())), list(files.evaluation_batches(Ranks())))
    assert stored.notes[0].endswith("from 18 images: pixels are those of the original files")


def test_resident_batches_are_those_of_the_folder(folder: Path, tmp_path: Path) -> None:
    keys = {"augment": ("crop", "flip"), "feed": "resident"}
    files = feeds(section(folder, "image_folder", **keys))
    stored = feeds(section(packed(folder, tmp_path / "packed", 64), **keys))
    expected = list(islice(files.train.micro_batches(0), 4))
    assert_same_batches(list(islice(stored.train.micro_batches(0), 4)), expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_pixels_are_those_of_the_folder_if_it_resizes_to_the_packed_side(
    interpolation: str, tmp_path: Path
) -> None:
    folder = image_folder(tmp_path / "images", smallest=40)
    keys = {"eval_resize": SIDE, "interpolation": interpolation}
    files = feeds(section(folder, "image_folder", **keys))
    stored = feeds(section(packed(folder, tmp_path / "packed", **keys), **keys))
    assert_same_batches(list(stored.evaluation_batches(Ranks())), list(files.evaluation_batches(Ranks())))
    note = f"packed at {SIDE} px (shorter side), raw, from 18 images: pixels differ from the original files"
    assert stored.notes[0] == f"{tmp_path / 'packed' / 'train'}: {note}"
    one, other = (feed.identity().facts["training"] for feed in (files, stored))
    assert {key for key in one if one[key] != other[key]} == {"content"}


@pytest.mark.parametrize("size", [(100, 37), (37, 100), (50, 50), (24, 90), (10, 90), (999, 25)])
def test_the_shorter_side_is_resized_as_torchvision_does_and_never_enlarged(size: tuple[int, int]) -> None:
    image = noise(0, *size)
    small = shrink(image, SIDE, "bicubic")
    assert min(small.size) == min(SIDE, *size)
    if min(size) > SIDE:
        expected = v2.Resize(SIDE, v2.InterpolationMode.BICUBIC, antialias=True)(image)
        assert small.size == expected.size
        assert small.tobytes() == expected.tobytes()
    else:
        assert small is image


def test_jpeg_is_near_the_resized_pixels_and_smaller(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", smallest=80)
    exact, lossy = (packed(folder, tmp_path / form, 64, form) for form in ("raw", "jpeg"))
    one, other = (list_image_data(section(root)).train.examples.read(torch.arange(18), 32) for root in (exact, lossy))
    assert 0 < (one.float() - other.float()).abs().mean() < 2
    sizes = [sum(path.stat().st_size for path in root.glob("*.bin")) for root in (exact, lossy)]
    assert sizes[1] < sizes[0] / 3
    assert "JPEG quality 95, from 18 images: pixels differ" in feeds(section(lossy)).notes[0]


@pytest.mark.parametrize("form", ["raw", "jpeg"])
def test_stored_images_are_upright(form: str, folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(5, 20, 16).save(folder / "train/dog/turned.jpg", exif=exif, quality=95)
    files = list_image_data(section(folder, "image_folder")).train.examples
    stored = list_image_data(section(packed(folder, tmp_path / "packed", 64, form))).train.examples
    last = len(stored) - 1
    assert stored.name(last) == "train/dog/turned.jpg"
    assert stored.open(last).size == (16, 20)
    error = np.asarray(stored.open(last), dtype=float) - np.asarray(files.open(last), dtype=float)
    assert abs(error).mean() < (2 if form == "jpeg" else 1e-9)


def test_only_paths_travel_to_workers(folder: Path, tmp_path: Path) -> None:
    examples = list_image_data(section(packed(folder, tmp_path / "packed", shard_bytes=10**9))).train.examples
    content = pickle.dumps(examples)
    assert len(content) < 1500
    there = pickle.loads(content)
    assert isinstance(there, PackedExamples)
    assert there.open(17).tobytes() == examples.open(17).tobytes()


def test_shards_are_closed_at_their_size(folder: Path, tmp_path: Path) -> None:
    record = open_pack(packed(folder, tmp_path / "packed", shard_bytes=2000))
    sizes = [file.size_bytes for file in record.parts["train"].shards]
    assert len(sizes) > 3
    assert max(sizes) <= 2000
    assert sorted(path.name for path in (tmp_path / "packed").glob("train-*.bin")) == [
        f"train-{number:05}.bin" for number in range(len(sizes))
    ]


def test_remarks_about_the_folder_are_kept(folder: Path, tmp_path: Path) -> None:
    (folder / "train/dog/notes.txt").write_text("")
    notes = feeds(section(packed(folder, tmp_path / "packed"))).notes
    assert any("1 file is not read: 1 .txt (dog/notes.txt)" in line for line in notes)


def test_images_that_are_enlarged_are_reported(folder: Path, tmp_path: Path) -> None:
    root = packed(folder, tmp_path / "packed")
    assert not any("images are enlarged" in line for line in feeds(section(root, image_size=SIDE)).notes)
    assert any("packed at 24 px, so images are enlarged" in line for line in feeds(section(root, image_size=32)).notes)


# Damage


def spoil_record(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        record = json.loads((root / "pack.json").read_text())
        change(record)
        (root / "pack.json").write_text(json.dumps(record))

    return spoil


def flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, ("data.root: no such folder",)),
        (lambda root: (root / "pack.json").unlink(), ("contains no pack.json", "w2skd pack")),
        (lambda root: (root / "pack.json").write_text("{"), ("pack.json: damaged",)),
        (lambda root: (root / "pack.json").write_text("[]"), ("pack.json: damaged",)),
        (spoil_record(lambda record: record.update(schema=2)), ("has schema 2", "reads schema 1")),
        (spoil_record(lambda record: record.pop("classes")), ("pack.json: damaged", "classes")),
        (lambda root: (root / "train.npy").unlink(), ("train.npy: missing",)),
        (lambda root: flip(root / "eval.npy"), ("eval.npy: damaged", "SHA-256")),
        (lambda root: flip(root / "train-names.txt", 0), ("train-names.txt: damaged", "SHA-256")),
        (lambda root: (root / "train-00001.bin").unlink(), ("train-00001.bin: missing",)),
        (lambda root: (root / "train-00001.bin").write_bytes(b"abc"), ("train-00001.bin: damaged", "has 3 bytes")),
    ],
)
def test_damage_is_detected_when_the_folder_is_opened(
    spoil: Callable[[Path], object], words: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    root = packed(folder, tmp_path / "packed")
    spoil(root)
    with pytest.raises(DataError) as caught:
        list_image_data(section(root))
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["raw", "jpeg"])
def test_a_damaged_image_is_named(form: str, folder: Path, tmp_path: Path) -> None:
    root = packed(folder, tmp_path / "packed", form=form)
    flip(root / "train-00000.bin", 600)
    examples = list_image_data(section(root)).train.examples
    with pytest.raises(DataError, match=r"train-00000\.bin: damaged \(image train/caf.*: its checksum differs\)"):
        [examples.content(index) for index in range(len(examples))]
    if form == "jpeg":
        with pytest.raises(DataError, match="its checksum differs"):
            [examples.open(index) for index in range(len(examples))]


def test_a_pack_without_evaluation_images_needs_a_hold_out(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "test")
    root = packed(folder, tmp_path / "packed", validation_share=0.2)
    assert len(list_image_data(section(root, validation_share=0.2)).evaluation) > 0
    with pytest.raises(DataError, match=r"contains no evaluation set.*set data\.validation_share"):
        list_image_data(section(root))
