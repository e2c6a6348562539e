"""Backbone bodies below the feature pyramid: classifiers without their last layers, and a slim network for CPUs."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from torch import nn
from torchvision import models
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import Conv2dNormActivation
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from w2skd.tasks.detection.models.norm import FrozenBatchNorm

Norm = Callable[[int], nn.Module]

group_norm = partial(nn.GroupNorm, 8)

_SLIM_CHANNELS = (24, 32, 48, 64)


class Body(NamedTuple):
    """A network with features at strides of 4, 8, 16 and 32 px.

    Attributes:
        build: makes the network, given a normalisation layer.
        stages: names of the modules that output the features.
        channels: of the features.
        classifier: torchvision's name of the classifier that contains the body, if any.
        prefix: of the body's tensors in the classifier's state dict.
        left_out: prefixes of the classifier's tensors that the body does not use.
    """

    build: Callable[[Norm], nn.Module]
    stages: tuple[str, str, str, str]
    channels: tuple[int, int, int, int]
    classifier: str | None = None
    prefix: str = ""
    left_out: tuple[str, ...] = ()


def _resnet(name: str, channels: tuple[int, int, int, int]) -> Body:
    def build(norm: Norm) -> nn.Module:
        body: nn.Module = models.get_model(name, weights=None, norm_layer=norm)
        return body

    return Body(build, ("layer1", "layer2", "layer3", "layer4"), channels, name, left_out=("fc.",))


def _mobilenet_v2(norm: Norm) -> nn.Module:
    body: nn.Module = models.mobilenet_v2(weights=None, norm_layer=norm).features
    return body


def _slim(norm: Norm) -> nn.Module:
    """A one-convolution stem and four stages of two convolutions, each of which halves the resolution.

    It uses group normalisation because it trains from scratch, on the few images per batch that a CPU can handle.
    """
    del norm
    channels = (16, *_SLIM_CHANNELS)
    layer = partial(Conv2dNormActivation, kernel_size=3, norm_layer=group_norm)
    stages: dict[str, nn.Module] = {"stem": layer(3, channels[0], stride=2)}
    for stage, (before, after) in enumerate(pairwise(channels), 1):
        stages[f"stage{stage}"] = nn.Sequential(layer(before, after, stride=2), layer(after, after))
    return nn.Sequential(OrderedDict(stages))


BODIES = {
    "resnet18": _resnet("resnet18", (64, 128, 256, 512)),
    "resnet34": _resnet("resnet34", (64, 128, 256, 512)),
    "resnet50": _resnet("resnet50", (256, 512, 1024, 2048)),
    "resnet101": _resnet("resnet101", (256, 512, 1024, 2048)),
    # The last block of each stride. The 1,280 channels after it serve classification and cost too much here.
    "mobilenet_v2": Body(
        _mobilenet_v2, ("3", "6", "13", "17"), (24, 32, 96, 320), "mobilenet_v2", "features.", ("18.", "classifier.")
    ),
    "slim": Body(_slim, ("stage1", "stage2", "stage3", "stage4"), _SLIM_CHANNELS),
}


def build_pyramid(
    body: Body,
    *,
    first: int,
    channels: int,
    top: ExtraFPNBlock | None,
    frozen_norm: bool,
    norm: Norm | None,
) -> Any:
    """Build a body with a feature pyramid on top (Lin et al. 2017, "Feature pyramid networks").

    Args:
        body: an entry of `BODIES`.
        first: index of the finest of its four features that is used.
        channels: of all levels of the pyramid.
        top: block that computes the coarser levels; None subsamples the last level.
        frozen_norm: freeze the body's batch normalisation.
        norm: normalisation of the pyramid's convolutions; None uses biases instead.

    Returns:
        Module that maps images [N, 3, H, W], H and W multiples of 32, to an ordered dict of features
        [N, channels, h, w].
    """
    network = body.build(FrozenBatchNorm if frozen_norm else nn.BatchNorm2d)
    stages = {stage: str(level) for level, stage in enumerate(body.stages[first:])}
    return BackboneWithFPN(network, stages, list(body.channels[first:]), channels, top, norm)
