"""The networks below the pyramid: classifiers without their last layers, and a slim one for CPUs."""

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
    """A network that gives features at strides of 4, 8, 16 and 32 px.

    Attributes:
        build: from the class of its normalisations.
        stages: names of its first stage (up to the first features), and of those with the features.
        channels: of the features.
        classifier: torchvision's name of the classifier that it is a part of, if there is one.
        prefix: of the body's names in the classifier's state dict.
        left_out: beginnings of the names there that the body has no place for.
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
    """Five stages of half the size each, of two convolutions but for the first.

    Groups are normalised rather than batches: it starts afresh, on the few images at a time that a CPU can take.
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
    # The last block of each stride. The 1,280 channels after it are for classes, and would cost more than they tell.
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
    frozen_stages: int,
    norm: Norm | None,
) -> Any:
    """A body with a feature pyramid on top (Lin et al. 2017, "Feature pyramid networks").

    Args:
        body: an entry of `BODIES`.
        first: which of its four features is the finest that is used.
        channels: of all levels of the pyramid.
        top: what makes the coarser levels; None subsamples the last one.
        frozen_norm: the body's batch normalisations stay as they are.
        frozen_stages: how many of its four stages learn nothing, the stem being a part of the first one.
        norm: of the pyramid's convolutions; None is none, and biases instead.

    Returns:
        From images [N, 3, H, W], H and W multiples of 32, to an ordered dict of features [N, channels, h, w].
    """
    network = body.build(FrozenBatchNorm if frozen_norm else nn.BatchNorm2d)
    if frozen_stages:
        last = [name for name, _ in network.named_children()].index(body.stages[frozen_stages - 1])
        for part in list(network.children())[: last + 1]:
            part.requires_grad_(False)
    stages = {stage: str(level) for level, stage in enumerate(body.stages[first:])}
    return BackboneWithFPN(network, stages, list(body.channels[first:]), channels, top, norm)
