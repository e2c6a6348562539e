from itertools import pairwise

import pytest
import torch
from torch import nn

from w2skd.models.catalog import build_classifier
from w2skd.models.measure import count_parameters, forward_flops
from w2skd.models.wide_resnet import WideBlock

PUBLISHED = [("wrn_16_2", 16, 2, 0.7), ("wrn_40_2", 40, 2, 2.2), ("wrn_28_10", 28, 10, 36.5)]
"""Name, depth, width, millions of parameters for CIFAR-10 (Zagoruyko & Komodakis 2016, tables 4 and 5)."""


def parameters_by_formula(depth, width, classes):
    """Sum over convolutions, head, and normalisations (two numbers per channel before all convolutions but one)."""
    blocks = (depth - 4) // 6
    channels = [16, 16 * width, 32 * width, 64 * width]
    total = 3 * 9 * 16
    for before, after in pairwise(channels):
        total += 9 * before * after + before * after + (2 * blocks - 1) * 9 * after * after
        total += 2 * before + (2 * blocks - 1) * 2 * after
    return total + 2 * channels[3] + (channels[3] + 1) * classes


@pytest.mark.parametrize(("name", "depth", "width", "millions"), PUBLISHED)
@pytest.mark.parametrize("classes", [10, 100])
def test_parameters_as_published(name, depth, width, millions, classes):
    with torch.device("meta"):
        parameters = count_parameters(build_classifier(name, classes))
    assert parameters == parameters_by_formula(depth, width, classes)
    assert round(parameters / 1e6, 1) == millions if classes == 10 else parameters > millions * 1e6


@pytest.mark.parametrize(("name", "depth"), [(name, depth) for name, depth, _, _ in PUBLISHED])
def test_depth_counts_the_layers_with_weights_as_resnets_do(name, depth):
    with torch.device("meta"):
        model = build_classifier(name, 10)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    # The paper's depth counts three projections among the layers: 6n + 4, and not the classifier.
    assert len(layers) - 1 == depth


def test_two_stages_halve_the_resolution():
    with torch.device("meta"):
        model = build_classifier("wrn_28_10", 10)
        out = model.stage3(model.stage2(model.stage1(model.conv(torch.randn(2, 3, 32, 32)))))
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert out.shape == (2, 640, 8, 8)


def test_flops_of_wrn_16_2_by_hand():
    def block(before, after, pixels):
        return pixels * (9 * before * after + 9 * after * after + (before * after if before != after else 0))

    multiply_adds = 3 * 9 * 16 * 32 * 32 + 128 * 10
    for before, after, side_px in ((16, 32, 32), (32, 64, 16), (64, 128, 8)):
        multiply_adds += block(before, after, side_px**2) + block(after, after, side_px**2)
    assert forward_flops(build_classifier("wrn_16_2", 10), (torch.randn(1, 3, 32, 32),)) == 2 * multiply_adds


def test_a_block_without_projection_has_an_identity_shortcut():
    block = WideBlock(8, 8, stride=1).eval()
    nn.init.zeros_(block.conv2.weight)
    images = torch.randn(2, 8, 6, 6)
    assert torch.equal(block(images), images)


def test_the_projection_has_the_first_convolutions_input():
    block = WideBlock(8, 16, stride=2).eval()
    nn.init.zeros_(block.conv2.weight)
    images = torch.randn(2, 8, 6, 6)
    expected = torch.einsum(
        "oi,nihw->nohw", block.projection.weight[:, :, 0, 0], block.norm1(images).relu()[:, :, ::2, ::2]
    )
    torch.testing.assert_close(block(images), expected)
