"""Classifiers adapted to other normalisation, image sizes and classes."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from w2skd.tasks.classification.adapted import AdaptedClassifier

IMAGENET = (0.485, 0.456, 0.406, 0.229, 0.224, 0.225)
HALVES = (0.5,) * 6


class Recorder(nn.Module):
    """Five logits that are linear in the mean colour; records its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(15.0).reshape(5, 3))
        self.seen = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return functional.linear(images.mean(dim=(2, 3)), self.weight)


def normalized(pixels: Tensor, by: Sequence[float]) -> Tensor:
    mean, std = torch.tensor(by, dtype=torch.float64).reshape(2, 1, 3, 1, 1)
    return (pixels - mean) / std


def test_the_model_sees_images_with_its_own_normalisation() -> None:
    pixels = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    model = Recorder()
    adapted = AdaptedClassifier(model, ours=HALVES, theirs=IMAGENET)
    adapted(normalized(pixels, HALVES).float())
    torch.testing.assert_close(model.seen, normalized(pixels, IMAGENET).float())


def test_without_differences_the_model_gets_the_same_tensor() -> None:
    images, model = torch.randn(2, 3, 6, 6), Recorder()
    logits = AdaptedClassifier(model, ours=IMAGENET, theirs=IMAGENET, image_size_px=6)(images)
    assert model.seen is images
    assert torch.equal(logits, model(images))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_smaller_image_is_antialiased_and_then_renormalised(interpolation: str) -> None:
    pixels = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    model = Recorder()
    adapted = AdaptedClassifier(model, ours=HALVES, theirs=IMAGENET, image_size_px=5, interpolation=interpolation)
    adapted(normalized(pixels, HALVES).float())
    smaller = functional.interpolate(pixels, (5, 5), mode=interpolation, antialias=True)
    torch.testing.assert_close(model.seen, normalized(smaller, IMAGENET).float(), atol=1e-5, rtol=1e-5)


def test_downscaling_averages_fine_stripes() -> None:
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[..., ::2] = 1.0
    model = Recorder()
    AdaptedClassifier(model, ours=HALVES, theirs=HALVES, image_size_px=8)(stripes)
    assert model.seen.shape == (1, 3, 8, 8)
    assert (model.seen - 0.5).abs().max() < 0.05


def test_logits_are_selected_in_the_order_of_our_classes() -> None:
    images, model = torch.randn(4, 3, 6, 6), Recorder()
    adapted = AdaptedClassifier(model, ours=HALVES, theirs=HALVES, columns=[3, 0])
    assert torch.equal(adapted(images), model(images)[:, [3, 0]])


def test_it_adds_no_state_and_moves_with_its_model() -> None:
    adapted = AdaptedClassifier(Recorder(), ours=HALVES, theirs=IMAGENET, columns=[1])
    assert list(adapted.state_dict()) == ["model.weight"]
    assert [name for name, _ in adapted.named_parameters()] == ["model.weight"]
    adapted.to("meta")
    assert adapted(torch.empty(2, 3, 6, 6, device="meta")).shape == (2, 1)


def test_channels_last_survives() -> None:
    model = Recorder()
    adapted = AdaptedClassifier(model, ours=HALVES, theirs=IMAGENET, image_size_px=6)
    adapted(torch.randn(2, 3, 12, 12).to(memory_format=torch.channels_last))
    assert model.seen.is_contiguous(memory_format=torch.channels_last)


def test_only_square_images_are_resized() -> None:
    with pytest.raises(AssertionError, match="not squares"):
        AdaptedClassifier(Recorder(), ours=HALVES, theirs=HALVES, image_size_px=4)(torch.zeros(1, 3, 6, 8))
