"""Names of models, and what they stand for: plain dicts, no dotted strings."""

from collections.abc import Callable
from typing import Protocol

from torch import nn

from w2skd.errors import RecipeError
from w2skd.models.cifar_resnet import (
    cifar_resnet8,
    cifar_resnet14,
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
    cifar_resnet110,
)
from w2skd.models.from_timm import build_from_timm
from w2skd.models.from_torchvision import build_from_torchvision
from w2skd.models.image_size import require_logits, require_whole_patches
from w2skd.models.names import unknown_classifier
from w2skd.models.plugin import build_from_plugin
from w2skd.models.small_cnn import small_cnn_strong, small_cnn_weak
from w2skd.models.vit import CifarVit
from w2skd.models.wide_resnet import wrn_16_2, wrn_28_10, wrn_40_2

CLASSIFIERS: dict[str, Callable[[int], nn.Module]] = {
    "cifar_resnet8": cifar_resnet8,
    "cifar_resnet14": cifar_resnet14,
    "cifar_resnet20": cifar_resnet20,
    "cifar_resnet32": cifar_resnet32,
    "cifar_resnet44": cifar_resnet44,
    "cifar_resnet56": cifar_resnet56,
    "cifar_resnet110": cifar_resnet110,
    "wrn_16_2": wrn_16_2,
    "wrn_40_2": wrn_40_2,
    "wrn_28_10": wrn_28_10,
    "cifar_vit": CifarVit,
    "small_cnn_weak": small_cnn_weak,
    "small_cnn_strong": small_cnn_strong,
}
"""Name -> constructor, called with the number of classes. `w2skd.models.names` lists the same names."""


class Build(Protocol):
    """How a model comes from its name (without prefix), the number of classes and the side of its images."""

    def __call__(self, name: str, classes: int, image_size_px: int | None = None) -> nn.Module:
        """Freshly initialised, on the CPU."""


ELSEWHERE: dict[str, Build] = {
    "torchvision": build_from_torchvision,
    "timm": build_from_timm,
    "plugin": build_from_plugin,
}
"""Prefix of a name -> who builds the model. `w2skd.models.names` lists the same prefixes."""


def build_classifier(name: str, classes: int, image_size_px: int | None = None) -> nn.Module:
    """A freshly initialised model from images [N, 3, H, W] to logits [N, classes], on the CPU.

    Args:
        name: a key of `CLASSIFIERS`; or ``torchvision:``, ``timm:`` or ``plugin:`` and a name that is known there.
        classes: how many.
        image_size_px: side of the images that it will see. Models with learned positions are built for it, and all are
            tried on one image of that size; None is the model's own size, and tries nothing.

    Raises:
        RecipeError: there is no such model, or it can't take images of that size.
        UsageError: the user's own code fails.
    """
    prefix, colon, rest = name.partition(":")
    if colon and prefix in ELSEWHERE:
        model = ELSEWHERE[prefix](rest, classes, image_size_px)
    elif name in CLASSIFIERS:
        model = _build_ours(name, classes, image_size_px)
    else:
        raise RecipeError(unknown_classifier(name))
    if image_size_px is not None:
        require_logits(name, model, classes, image_size_px)
    return model


def _build_ours(name: str, classes: int, image_size_px: int | None) -> nn.Module:
    if CLASSIFIERS[name] is CifarVit and image_size_px is not None:
        require_whole_patches(name, image_size_px, CifarVit.PATCH_PX)
        return CifarVit(classes, image_size_px)
    return CLASSIFIERS[name](classes)
