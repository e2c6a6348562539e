"""The reference is computed once, cached, and recomputed if the cached file is damaged."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from w2skd.errors import CheckpointError, DataError
from w2skd.tasks.diffusion.classifier_features import ClassifierFeatures, classifier_extractor
from w2skd.tasks.diffusion.features import Extractor
from w2skd.tasks.diffusion.reference import Reference, default_cache, open_reference

KEY = {"data": "0123abcd", "split": "train", "size_px": 8}
IMAGES = torch.randint(0, 256, (20, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class Images:
    """Batches of images that count how often they were requested."""

    def __init__(self, images: Tensor = IMAGES):
        self.images = images
        self.calls = 0

    def __call__(self) -> Iterator[Tensor]:
        self.calls += 1
        yield from self.images.split(7)


def extractor(fingerprint: str = "ab", name: str = "checkpoint:runs/a", features: int = 5) -> Extractor:
    torch.manual_seed(int(fingerprint, 16))
    body = nn.Conv2d(3, features, 8)
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(features, 2))
    classifier = ClassifierFeatures(name, model, _to_unit, fingerprint)
    return classifier_extractor(classifier, device="cpu", batch_size=64, size_px=8)


def _to_unit(pixels: Tensor) -> Tensor:
    return pixels.float() / 255


def cached(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def same(one: Reference, other: Reference) -> bool:
    return (
        torch.equal(one.features, other.features)
        and np.array_equal(one.mu, other.mu)
        and np.array_equal(one.sigma, other.sigma)
        and (one.mu.dtype, one.sigma.dtype) == (other.mu.dtype, other.sigma.dtype)
    )


def test_a_reference_holds_features_mean_and_covariance(tmp_path: Path) -> None:
    network = extractor()
    reference = open_reference(network, Images(), key=KEY, cache=tmp_path)
    expected = torch.cat([network(part) for part in IMAGES.split(7)])
    assert torch.equal(reference.features, expected)
    assert len(reference) == 20
    assert np.allclose(reference.mu, expected.double().mean(0), rtol=1e-5)
    assert np.allclose(reference.sigma, torch.cov(expected.double().T), rtol=1e-5)
    assert reference.note is None


def test_a_cached_reference_is_bit_identical(tmp_path: Path) -> None:
    images = Images()
    first, second = (open_reference(extractor(), images, key=KEY, cache=tmp_path / "new" / "cache") for _ in range(2))
    assert images.calls == 1
    assert same(first, second)
    assert second.note is None


def test_moving_the_checkpoint_keeps_the_cache_valid(tmp_path: Path) -> None:
    images = Images()
    for name in ("checkpoint:runs/a", "checkpoint:/elsewhere/a"):
        open_reference(extractor(name=name), images, key=KEY, cache=tmp_path)
    assert images.calls == 1


@pytest.mark.parametrize(
    ("fingerprint", "key"), [("cd", KEY), ("ab", KEY | {"data": "4567"}), ("ab", KEY | {"split": "eval"})]
)
def test_other_weights_or_images_have_another_file(tmp_path: Path, fingerprint: str, key: dict[str, object]) -> None:
    images = Images()
    open_reference(extractor(), images, key=KEY, cache=tmp_path)
    open_reference(extractor(fingerprint), images, key=key, cache=tmp_path)
    assert images.calls == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_the_order_of_keys_does_not_matter(tmp_path: Path) -> None:
    images = Images()
    for key in (KEY, dict(reversed(KEY.items()))):
        open_reference(extractor(), images, key=key, cache=tmp_path)
    assert images.calls == 1


def test_the_file_records_its_key(tmp_path: Path) -> None:
    open_reference(extractor(), Images(), key=KEY, cache=tmp_path)
    with safe_open(cached(tmp_path), framework="pt") as file:
        key = json.loads(file.metadata()["key"])
    assert key == KEY | {"extractor": "w2skd-ab", "weights": "ab", "dimensions": 5, "version": 1}


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def cut_off_early(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def with_another_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def not_a_file(file: Path) -> None:
    file.unlink()
    file.write_text("<html>404</html>")


@pytest.mark.parametrize("damage", [cut_off, cut_off_early, emptied, with_another_byte, not_a_file])
def test_a_damaged_file_is_recomputed_and_reported(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    images = Images()
    whole = open_reference(extractor(), images, key=KEY, cache=tmp_path)
    file = cached(tmp_path)
    damage(file)
    again = open_reference(extractor(), images, key=KEY, cache=tmp_path)
    assert same(again, whole)
    assert images.calls == 2
    assert again.note is not None
    assert again.note.startswith(f"{file}: damaged")
    assert again.note.endswith(": recomputed the features of the real images")
    assert "\n" not in again.note
    assert open_reference(extractor(), images, key=KEY, cache=tmp_path).note is None
    assert images.calls == 2


def test_a_file_of_other_images_is_recomputed_and_reported(tmp_path: Path) -> None:
    images = Images()
    open_reference(extractor(), Images(255 - IMAGES), key=KEY | {"data": "4567"}, cache=tmp_path / "other")
    whole = open_reference(extractor(), images, key=KEY, cache=tmp_path / "cache")
    shutil.copy(cached(tmp_path / "other"), cached(tmp_path / "cache"))
    again = open_reference(extractor(), images, key=KEY, cache=tmp_path / "cache")
    assert same(again, whole)
    assert again.note is not None
    assert "belongs to other images" in again.note


def test_a_read_only_cache_is_no_error_and_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    images = Images()
    reference = open_reference(extractor(), images, key=KEY, cache=tmp_path / "file")
    assert len(reference) == 20
    assert reference.note is not None
    assert reference.note.startswith(f"cannot write {tmp_path / 'file'}")
    assert reference.note.endswith(": the next run has to recompute the features of the real images")


def test_a_full_disk_is_no_error_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("w2skd.platform.files.os.fsync", full)
    reference = open_reference(extractor(), Images(), key=KEY, cache=tmp_path)
    assert "No space left on device" in str(reference.note)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_real_images_are_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(DataError, match=f"fid.reference: {count} real images"):
        open_reference(extractor(), Images(IMAGES[:count]), key=KEY, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_non_finite_features_are_refused_and_not_cached(tmp_path: Path) -> None:
    network = extractor()
    network._network.model[0].bias.data[2] = math.nan
    with pytest.raises(CheckpointError, match="has non-finite features for 20 of 20 real images"):
        open_reference(network, Images(), key=KEY, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_default_cache_follows_the_xdg_specification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache() == tmp_path / ".cache" / "w2skd" / "fid"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "w2skd" / "fid"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # relative paths must be ignored
    assert default_cache() == tmp_path / ".cache" / "w2skd" / "fid"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    open_reference(extractor(), Images(), key=KEY)
    assert cached(tmp_path / "xdg" / "w2skd" / "fid").suffix == ".safetensors"


def test_a_missing_home_directory_is_no_error_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert default_cache() is None
    reference = open_reference(extractor(), Images(), key=KEY)
    assert len(reference) == 20
    assert reference.note == (
        "there is no home directory for a cache (set fid.cache): the next run has to recompute the features of the "
        "real images"
    )
