import pytest
import torch
from torch import nn

from w2skd.models.catalog import build_classifier
from w2skd.models.measure import count_parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cifar_resnet20", 269_722),
        ("cifar_resnet32", 464_154),
        ("cifar_resnet44", 658_586),
        ("cifar_resnet56", 853_018),
        ("cifar_resnet110", 1_727_962),
    ],
)
def test_parameters_as_published(name, parameters):
    assert count_parameters(build_classifier(name, 10)) == parameters


def test_a_shortcut_takes_every_second_pixel_and_pads_with_zeros():
    block = build_classifier("cifar_resnet8", 10).stage2[0].eval()
    nn.init.zeros_(block.norm2.weight)  # zeroes the convolutions, so only the shortcut remains
    images = torch.rand(2, 16, 32, 32)
    out = block(images)
    assert out.shape == (2, 32, 16, 16)
    assert torch.equal(out[:, 8:24], images[:, :, ::2, ::2])
    assert out[:, :8].abs().sum() == out[:, 24:].abs().sum() == 0


def test_depth_counts_the_layers_with_weights():
    model = build_classifier("cifar_resnet56", 10)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == 56
