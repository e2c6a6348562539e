"""Sources: intact and damaged CIFAR files, folders, generated shapes; their subsets and hold-outs."""

import hashlib
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from w2skd.data.sources import SOURCES, identify_image_data, list_image_data, load_image_data
from w2skd.errors import DataError
from w2skd.recipe.data import ImageDataSection
from w2skd.tasks.classification.recipe import ClassificationData


@pytest.fixture(autouse=True)
def _fresh_cache() -> Iterator[None]:
    load_image_data.cache_clear()
    yield
    load_image_data.cache_clear()


def load(source: str, root: Path, **keys):
    return load_image_data(ClassificationData(source=source, root=root, **keys))


def batch(count: int, classes: int, key: str, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    return pickle.dumps({"data": pixels, key: [i % classes for i in range(count)]})


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CIFAR-10 whose checksums torchvision is made to believe."""
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    contents = {name: batch(20, 10, "labels", seed) for seed, name in enumerate(names)}
    contents["batches.meta"] = pickle.dumps({"label_names": [f"class{i}" for i in range(10)]})
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5["batches.meta"]})
    return tmp_path


def image_folder(root: Path, parts: dict[str, dict[str, int]]) -> Path:
    for part, classes in parts.items():
        for number, (name, count) in enumerate(classes.items()):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (10, 8), (number * 50, i, 0)).save(root / part / name / f"{i:03}.png")
    return root


def test_the_schema_and_the_catalog_name_the_same_sources():
    assert set(SOURCES) == set(get_args(ImageDataSection.model_fields["source"].annotation))


def test_cifar10(cifar10: Path):
    data = load("cifar10", cifar10)
    assert (len(data.train), len(data.evaluation)) == (100, 20)
    assert data.train.classes == tuple(f"class{i}" for i in range(10))
    assert data.train.labels.tolist() == list(range(10)) * 10
    first = pickle.loads((cifar10 / CIFAR10.base_folder / "data_batch_1").read_bytes())["data"]
    assert torch.equal(data.train.images[:20], torch.from_numpy(first).view(20, 3, 32, 32))
    assert data.normalization.mean == (0.4914, 0.4822, 0.4465)


def test_cifar100_uses_its_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()
    contents = {
        "train": batch(200, 100, "fine_labels", 0),
        "test": batch(100, 100, "fine_labels", 1),
        "meta": pickle.dumps({"fine_label_names": [f"fine{i}" for i in range(100)]}),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5["meta"]})
    data = load("cifar100", tmp_path)
    assert (len(data.train), len(data.evaluation), len(data.train.classes)) == (200, 100, 100)


@pytest.mark.parametrize(("source", "dataset"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_absent_cifar_says_where_it_was_looked_for_and_what_to_do(source: str, dataset: type[CIFAR10], tmp_path: Path):
    with pytest.raises(DataError) as caught:
        load(source, tmp_path / "none")
    message = str(caught.value)
    for word in (tmp_path / "none" / dataset.base_folder, tmp_path / "none" / dataset.filename, dataset.url):
        assert str(word) in message
    assert "data.download: true" in message
    assert "\n" not in message
    assert not (tmp_path / "none").exists()


def test_a_damaged_batch_is_named_and_never_unpickled(cifar10: Path, tmp_path: Path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    (cifar10 / CIFAR10.base_folder / "data_batch_3").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match=r"cifar-10-batches-py: data_batch_3 is damaged; .*data\.download: true"):
        load("cifar10", cifar10)
    assert not (tmp_path / "exploded").exists()


def test_a_missing_batch_and_a_damaged_table_of_names_are_named(cifar10: Path):
    (cifar10 / CIFAR10.base_folder / "test_batch").unlink()
    (cifar10 / CIFAR10.base_folder / "batches.meta").write_bytes(b"x")
    with pytest.raises(DataError, match=r"test_batch is missing, batches\.meta is damaged"):
        load("cifar10", cifar10)


def test_an_intact_archive_is_unpacked_without_download(cifar10: Path, monkeypatch: pytest.MonkeyPatch):
    root = cifar10 / "elsewhere"
    root.mkdir()
    archive = root / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(cifar10 / CIFAR10.base_folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert len(load("cifar10", root).train) == 100


def test_a_damaged_archive_is_named(tmp_path: Path):
    (tmp_path / CIFAR10.filename).write_bytes(b"half a download")
    with pytest.raises(DataError, match=rf"{CIFAR10.filename} is damaged; remove it"):
        load("cifar10", tmp_path)


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args, **options):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(DataError, match=r"cannot download https://.*no route to host.* yourself$"):
        load("cifar10", tmp_path / "new", download=True)


def test_a_damaged_download_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args, **options):
        (tmp_path / CIFAR10.filename).write_bytes(b"a page that says no")
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(DataError, match=rf"{CIFAR10.filename} is damaged"):
        load("cifar10", tmp_path, download=True)


def test_download_fetches_what_is_missing(cifar10: Path, monkeypatch: pytest.MonkeyPatch):
    root = cifar10 / "new"

    def fetch(url, folder, **options):
        (cifar10 / CIFAR10.base_folder).rename(Path(folder) / CIFAR10.base_folder)

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fetch)
    assert len(load("cifar10", root, download=True).train) == 100
    assert sorted(path.name for path in root.iterdir()) == [CIFAR10.base_folder]


def test_image_folder(tmp_path: Path):
    root = image_folder(tmp_path, {"train": {"cat": 3, "dog": 2}, "val": {"cat": 1, "dog": 1}})
    data = load("image_folder", root, eval_folder="val", image_size=8)
    assert data.train.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.train.images[:, :, 4, 4].tolist() == [[0, 0, 0], [0, 1, 0], [0, 2, 0], [50, 0, 0], [50, 1, 0]]
    assert data.evaluation.labels.tolist() == [0, 1]
    assert data.normalization.std == (0.229, 0.224, 0.225)


def test_image_folders_may_have_file_names_that_are_not_unicode(tmp_path: Path):
    root = image_folder(tmp_path, {"train": {"cat": 2, "dog": 1}, "test": {"cat": 1, "dog": 1}})
    (root / "train" / "cat" / "001.png").rename(root / "train" / "cat" / "\udcff.png")
    section = ClassificationData(source="image_folder", root=root, image_size=8)
    assert identify_image_data(section).facts["training"]["images"] == 3
    assert list_image_data(section).train.fingerprint() != list_image_data(section).evaluation.fingerprint()


def test_image_folders_with_different_classes_are_refused(tmp_path: Path):
    root = image_folder(tmp_path, {"train": {"cat": 1, "dog": 1}, "test": {"cat": 1, "dgo": 1}})
    with pytest.raises(DataError, match=r"only in .*train: dog; only in .*test: dgo"):
        load("image_folder", root, image_size=8)


def test_only_chosen_images_are_read(tmp_path: Path):
    root = image_folder(tmp_path, {"train": {"cat": 6, "dog": 6}, "test": {"cat": 2, "dog": 2}})
    chosen = load("image_folder", root, image_size=8, train_examples=4).train
    assert chosen.labels.tolist() == [0, 0, 1, 1]
    kept = {tuple(pixel[:2]) for pixel in chosen.images[:, :, 4, 4].tolist()}
    for number, name in enumerate(("cat", "dog")):
        for i in range(6):
            if (50 * number, i) not in kept:
                (root / f"train/{name}/{i:03}.png").write_bytes(b"broken")
    load_image_data.cache_clear()
    assert torch.equal(load("image_folder", root, image_size=8, train_examples=4).train.images, chosen.images)
    with pytest.raises(DataError, match=r"\.png: not an image"):
        load("image_folder", root, image_size=8)


def test_a_hold_out_takes_the_place_of_the_evaluation_folder(tmp_path: Path):
    root = image_folder(tmp_path, {"train": {"cat": 10, "dog": 20}})
    data = load("image_folder", root, image_size=8, validation_share=0.2)
    assert data.train.labels.bincount().tolist() == [8, 16]
    assert data.evaluation.labels.bincount().tolist() == [2, 4]
    both = torch.cat([data.train.images, data.evaluation.images])[:, :2, 4, 4]
    assert len(both.unique(dim=0)) == 30


def test_the_hold_out_does_not_depend_on_the_training_subset(cifar10: Path):
    small = load("cifar10", cifar10, validation_share=0.2, train_examples=30, eval_examples=10)
    large = load("cifar10", cifar10, validation_share=0.2, train_examples=60, eval_examples=10)
    other = load("cifar10", cifar10, validation_share=0.2, train_examples=60, eval_examples=10, split_seed=1)
    assert (len(small.train), len(large.train), len(small.evaluation)) == (30, 60, 10)
    assert small.evaluation.fingerprint() == large.evaluation.fingerprint() != other.evaluation.fingerprint()
    rows = {image.numpy().tobytes() for image in large.train.images}
    assert {image.numpy().tobytes() for image in small.train.images} <= rows
    assert not rows & {image.numpy().tobytes() for image in large.evaluation.images}


def test_too_few_examples_name_the_set(cifar10: Path):
    with pytest.raises(DataError, match=r"the training set of cifar10: 101 examples requested.*only 100"):
        load("cifar10", cifar10, train_examples=101)
    with pytest.raises(DataError, match=r"the test set of cifar10: 21 examples"):
        load("cifar10", cifar10, eval_examples=21)


def test_shapes_by_default_and_by_number():
    data = load("shapes", Path("unused"))
    assert data.train.images.shape == (4096, 3, 32, 32)
    assert data.evaluation.images.shape == (1024, 3, 32, 32)
    few = load("shapes", Path("unused"), train_examples=200, eval_examples=50, image_size=16)
    assert few.train.images.shape == (200, 3, 16, 16)
    assert few.evaluation.images.shape == (50, 3, 16, 16)
    assert few.train.labels.bincount().tolist() == [20] * 10
    more = load("shapes", Path("unused"), train_examples=300, eval_examples=50, image_size=16)
    assert torch.equal(more.train.images[:200], few.train.images)
    assert not torch.equal(few.train.images[:50], few.evaluation.images)
    other = load("shapes", Path("unused"), train_examples=200, eval_examples=50, image_size=16, split_seed=1)
    assert not torch.equal(other.train.images, few.train.images)


@pytest.mark.parametrize(("count", "share"), [(1, 0.01), (100, 0.1), (33, 0.5), (95, 0.9), (11, 0.96), (257, 0.333)])
def test_shapes_fill_the_training_set_after_a_hold_out(count: int, share: float):
    data = load("shapes", Path("unused"), train_examples=count, validation_share=share, image_size=8)
    assert len(data.train) == count
    assert len(data.evaluation) >= 10


def test_shapes_normalization_fits():
    data = load("shapes", Path("unused"), train_examples=1000, eval_examples=10)
    pixels = data.train.images.float() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(data.normalization.mean, abs=0.02)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(data.normalization.std, abs=0.02)


def test_equal_sections_share_one_result():
    first = load("shapes", Path("unused"), train_examples=10, eval_examples=10, image_size=8)
    assert load("shapes", Path("unused"), train_examples=10, eval_examples=10, image_size=8) is first
