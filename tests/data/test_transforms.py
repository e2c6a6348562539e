"""Transforms of one image equal torchvision's v2 transforms called directly with the same seed."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import MobileNet_V2_Weights
from torchvision.transforms import v2

from w2skd.data.counter import randint
from w2skd.data.transforms import TRAIN_KINDS, EvalTransform, TrainTransform

BLANK = (123, 117, 104)


def photo(height: int = 40, width: int = 56) -> Image.Image:
    coarse = randint(256, 0, torch.arange(8 * 8 * 3)).to(torch.uint8).view(8, 8, 3).numpy()
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def made(transform: TrainTransform | EvalTransform, size_px: int, seed: int = 0, image: Image.Image | None = None):
    out = np.zeros((size_px, size_px, 3), dtype=np.uint8)
    torch.manual_seed(seed)
    transform.pipeline(size_px, BLANK)(image or photo(), out)
    return out


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_training_does_what_torchvisions_reference_does(interpolation: str):
    mode = v2.InterpolationMode(interpolation)
    by_hand = v2.Compose(
        [
            v2.RandomResizedCrop(24, (0.3, 0.9), interpolation=mode, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.TrivialAugmentWide(interpolation=mode),
            v2.PILToTensor(),
            v2.RandomErasing(0.5, value=BLANK),
        ]
    )
    kinds = ("random_erasing", "trivial_augment", "flip", "random_resized_crop")
    transform = TrainTransform(kinds, (0.3, 0.9), interpolation, erasing_probability=0.5)
    for seed in range(40):
        torch.manual_seed(seed)
        expected = by_hand(photo()).permute(1, 2, 0).numpy()
        assert np.array_equal(made(transform, 24, seed), expected), seed


@pytest.mark.parametrize("crop_px", [None, 1, 11])
@pytest.mark.parametrize("size", [(16, 16), (40, 56)])
def test_crop_and_flip_are_torchvisions_without_its_overhead(crop_px: int | None, size: tuple[int, int]):
    padding = crop_px or 2
    by_hand = v2.Compose(
        [
            *(v2.Resize(16), v2.CenterCrop(16)),
            v2.RandomCrop(16, padding=padding, padding_mode="reflect"),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.RandomErasing(0.5, value=BLANK),
        ]
    )
    transform = TrainTransform(("crop", "flip", "random_erasing"), erasing_probability=0.5, crop_px=crop_px)
    for seed in range(20):
        torch.manual_seed(seed)
        expected = by_hand(photo(*size)).permute(1, 2, 0).numpy()
        assert np.array_equal(made(transform, 16, seed, photo(*size)), expected), seed


def test_without_a_resized_crop_the_centre_is_taken():
    expected = v2.CenterCrop(20)(v2.Resize(20)(photo()))
    assert np.array_equal(made(TrainTransform(()), 20), np.asarray(expected))


def test_crop_reflects_at_the_edges_and_flip_mirrors():
    centre = made(TrainTransform(()), 16)
    padded = np.pad(centre, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    windows = [padded[top : top + 16, left : left + 16] for top in range(5) for left in range(5)]
    windows += [window[:, ::-1] for window in windows]
    found = set()
    for seed in range(30):
        out = made(TrainTransform(("crop", "flip")), 16, seed)
        found.add(next(number for number, window in enumerate(windows) if np.array_equal(out, window)))
    assert len(found) > 15


def test_cutout_blanks_a_square_of_half_the_side_as_far_as_it_lies_inside():
    for seed in range(20):
        out = made(TrainTransform(("cutout",)), 16, seed, Image.new("RGB", (16, 16), "white"))
        blanked = (out == BLANK).all(axis=2)
        assert np.array_equal(~blanked, (out == 255).all(axis=2))
        rows, columns = np.flatnonzero(blanked.any(axis=1)), np.flatnonzero(blanked.any(axis=0))
        assert blanked[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        for lines in (rows, columns):
            assert len(lines) == 8 or (4 <= len(lines) < 8 and (lines[0] == 0 or lines[-1] == 15))


def test_erasing_happens_as_often_as_asked():
    white = Image.new("RGB", (16, 16), "white")
    transform = TrainTransform(("random_erasing",), erasing_probability=0.25)
    erased = sum(bool((made(transform, 16, seed, white) != 255).any()) for seed in range(400))
    assert 70 <= erased <= 130


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (256, 256), (97, 500)])
def test_evaluation_gives_the_pixels_of_torchvisions_preset(size: tuple[int, int]):
    preset = MobileNet_V2_Weights.IMAGENET1K_V2.transforms()
    (resize_px,), (crop_px,) = preset.resize_size, preset.crop_size
    image = photo(*size)
    out = torch.from_numpy(made(EvalTransform(resize_px, preset.interpolation.value), crop_px, image=image))
    mean, std = torch.tensor(preset.mean), torch.tensor(preset.std)
    expected = (preset(image).permute(1, 2, 0) * std + mean) * 255
    assert torch.equal(expected.round().to(torch.uint8), out)


def test_kinds_are_known():
    assert TRAIN_KINDS[0] == "random_resized_crop"
    with pytest.raises(AssertionError, match="kinds"):
        TrainTransform(("flop",))
