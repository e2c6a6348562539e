"""Windows equal the boxes of torchvision's transforms, with the same random draws."""

import numpy as np
import pytest
import torch
from jpegs import photo
from PIL import Image
from torchvision.transforms import v2

from w2skd.data.window import Window, centre_window, random_window

SIZES = [(300, 400), (400, 300), (256, 256), (97, 500), (641, 427)]


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.35, 1.0)])
def test_a_random_window_takes_the_draws_of_torchvision(scale: tuple[float, float]) -> None:
    crop = v2.RandomResizedCrop(24, scale)
    for seed in range(60):
        image = Image.new("RGB", SIZES[seed % len(SIZES)])
        torch.manual_seed(seed)
        drawn, after = crop.make_params([image]), torch.get_rng_state()
        torch.manual_seed(seed)
        window = random_window(image.size, 24, scale)
        left, top, right, bottom = window.box
        assert {"left": left, "top": top, "width": right - left, "height": bottom - top} == drawn
        assert torch.equal(torch.get_rng_state(), after)
        assert window.square(24) == window.box


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("resize_px", "size_px"), [(64, 64), (65, 56), (97, 32)])
def test_a_centre_window_is_resize_and_centre_crop(size: tuple[int, int], resize_px: int, size_px: int) -> None:
    image = photo(*size)
    window = centre_window(size, size_px, resize_px)
    assert window is not None
    expected = v2.CenterCrop(size_px)(v2.Resize(resize_px)(image))
    resized = image.crop(window.box).resize(window.resized, Image.Resampling.BILINEAR)
    left, top = window.offset
    assert np.array_equal(resized.crop((left, top, left + size_px, top + size_px)), expected)
    at_once = image.resize((size_px, size_px), Image.Resampling.BILINEAR, box=window.square(size_px))
    assert np.abs(np.asarray(at_once, dtype=int) - np.asarray(expected)).max() <= 2


def test_a_crop_that_pads_has_no_window() -> None:
    assert centre_window((100, 80), 32, 31) is None


@pytest.mark.parametrize(("width", "reduction"), [(447, 1), (448, 2), (895, 2), (896, 4), (1792, 8), (9000, 8)])
def test_a_reduced_image_has_at_least_the_resolution_of_the_square(width: int, reduction: int) -> None:
    assert Window((10, 10, 10 + width, 10 + 9000), (224, 224)).reduction == reduction
