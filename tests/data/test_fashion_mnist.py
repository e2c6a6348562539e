"""Fashion-MNIST's files: gzipped or not, in torchvision's folder or flat, intact or damaged."""

import gzip
from pathlib import Path

import pytest
import torch

from w2skd.data.fashion_mnist import CLASSES, find_files, read_part
from w2skd.data.sources import list_image_data, load_image_data
from w2skd.errors import DataError
from w2skd.tasks.classification.recipe import ClassificationData


def idx(values: torch.Tensor) -> bytes:
    header = [0x800 + values.ndim, *values.shape]
    return b"".join(number.to_bytes(4, "big") for number in header) + values.numpy().tobytes()


def images(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def write(folder: Path, packed: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", 30), ("t10k", 10)):
        for kind, values in (
            ("images-idx3", images(count, count)),
            ("labels-idx1", torch.arange(count, dtype=torch.uint8) % 10),
        ):
            content = idx(values)
            name = f"{prefix}-{kind}-ubyte"
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return folder


@pytest.mark.parametrize("folder", [".", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [True, False])
def test_files_are_found_and_read_as_they_are(folder: str, packed: bool, tmp_path: Path) -> None:
    write(tmp_path / folder, packed)
    load_image_data.cache_clear()
    list_image_data.cache_clear()
    data = load_image_data(ClassificationData(source="fashion_mnist", root=tmp_path))
    assert (len(data.train), len(data.evaluation)) == (30, 10)
    assert data.train.images.shape == (30, 3, 28, 28)
    assert torch.equal(data.train.images[:, 0], images(30, 30))
    assert torch.equal(data.train.images[:, 0], data.train.images[:, 2])
    assert data.train.labels[:12].tolist() == [*range(10), 0, 1]
    assert data.train.classes == CLASSES == data.evaluation.classes


def test_absent_files_say_where_they_were_looked_for(tmp_path: Path) -> None:
    list_image_data.cache_clear()
    with pytest.raises(
        DataError, match=r"neither in .*none nor in .*FashionMNIST/raw; set data\.download: true, or"
    ) as said:
        list_image_data(ClassificationData(source="fashion_mnist", root=tmp_path / "none"))
    assert "\n" not in str(said.value)
    assert find_files(tmp_path) is None


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda content: content[:-5], "truncated or damaged: 23,515 bytes, but its header states 23,520"),
        (lambda content: b"\0\0" + content[2:4] + content[4:], None),
        (lambda content: b"<html>" + content, "not an IDX file of bytes with 3 dimensions"),
        (lambda content: b"", "not an IDX file of bytes with 3 dimensions"),
    ],
)
def test_damaged_files_are_named(spoil, problem: str | None, tmp_path: Path) -> None:
    write(tmp_path, packed=False)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(spoil(path.read_bytes()))
    paths = (path, tmp_path / "train-labels-idx1-ubyte")
    if problem is None:
        assert len(read_part(*paths)[0]) == 30
    else:
        with pytest.raises(DataError, match=f"train-images-idx3-ubyte: {problem}"):
            read_part(*paths)


def test_a_packed_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    write(tmp_path, packed=True)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz: damaged or cannot be read"):
        read_part(tmp_path / "t10k-images-idx3-ubyte.gz", path)


def test_images_and_labels_must_belong_together(tmp_path: Path) -> None:
    write(tmp_path, packed=False)
    with pytest.raises(DataError, match=r"has 30 images, .* 10 labels"):
        read_part(tmp_path / "train-images-idx3-ubyte", tmp_path / "t10k-labels-idx1-ubyte")
    (tmp_path / "labels").write_bytes(idx(torch.full((30,), 11, dtype=torch.uint8)))
    with pytest.raises(DataError, match="label 11; expected 0 to 9"):
        read_part(tmp_path / "train-images-idx3-ubyte", tmp_path / "labels")
