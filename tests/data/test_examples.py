"""Images read one at a time and many at once: in memory, from files, generated, and selections of them."""

import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

from w2skd.data.examples import ChosenExamples, Examples, PixelExamples
from w2skd.data.folder import FileExamples
from w2skd.data.shapes import ShapeExamples

PIXELS = torch.randint(0, 256, (6, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["pixels", "files", "shapes", "chosen"])
def examples(request: pytest.FixtureRequest, tmp_path: Path) -> Examples:
    match request.param:
        case "pixels":
            return PixelExamples(PIXELS)
        case "files":
            paths = tuple(tmp_path / "train" / f"{index}.png" for index in range(6))
            paths[0].parent.mkdir()
            for pixels, path in zip(PIXELS, paths, strict=True):
                Image.fromarray(pixels.numpy()).save(path)
            return FileExamples(tmp_path, paths)
        case "shapes":
            return ShapeExamples(seed=3, count=6, size_px=12)
        case _:
            return ChosenExamples(PixelExamples(PIXELS), torch.tensor([5, 0, 3, 3, 1, 2]))


def test_one_by_one_and_many_at_once_are_the_same_pixels(examples: Examples) -> None:
    indices = torch.tensor([4, 0, 2])
    many = examples.read(indices, 12)
    assert (many.dtype, many.shape) == (torch.uint8, (3, 3, 12, 12))
    for index, pixels in zip(indices.tolist(), many, strict=True):
        image = examples.open(index)
        assert (image.mode, image.size) == ("RGB", (12, 12))
        assert image.tobytes() == pixels.permute(1, 2, 0).contiguous().numpy().tobytes()


def test_other_sizes_can_be_had(examples: Examples) -> None:
    assert examples.read(torch.tensor([1, 5]), 8).shape == (2, 3, 8, 8)


def test_modes_are_read_without_decoding(examples: Examples) -> None:
    assert [examples.mode(index) for index in range(6)] == ["RGB"] * 6


def test_they_travel_to_workers(examples: Examples) -> None:
    there = pickle.loads(pickle.dumps(examples))
    assert len(there) == len(examples) == 6
    assert there.open(5).tobytes() == examples.open(5).tobytes()


def test_what_they_are_called(tmp_path: Path) -> None:
    assert PixelExamples(PIXELS).name(4) == "4"
    assert ChosenExamples(PixelExamples(PIXELS), torch.tensor([5, 0])).name(0) == "5"
    assert FileExamples(tmp_path, (tmp_path / "train" / "cat" / "1.png",)).name(0) == "train/cat/1.png"


def test_the_pixels_are_those_that_were_given() -> None:
    assert torch.equal(PixelExamples(PIXELS).read(torch.arange(6), 12), PIXELS.permute(0, 3, 1, 2))
    chosen = ChosenExamples(PixelExamples(PIXELS), torch.tensor([5, 0]))
    assert torch.equal(chosen.read(torch.tensor([1, 0]), 12), PIXELS[[0, 5]].permute(0, 3, 1, 2))
