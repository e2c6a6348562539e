"""Classifiers by name."""

from collections.abc import Callable
from functools import partial

from torch import nn

from w2skd.errors import RecipeError
from w2skd.models.cifar_resnet import CifarResNet
from w2skd.models.from_timm import build_from_timm
from w2skd.models.from_torchvision import build_from_torchvision
from w2skd.models.image_size import require_logits, require_whole_patches
from w2skd.models.names import unknown_classifier
from w2skd.models.plugin import build_from_plugin
from w2skd.models.small_cnn import SmallCnn
from w2skd.models.vit import CifarVit
from w2skd.models.whitened_cnn import WhitenedCnn
from w2skd.models.wide_resnet import WideResNet

CLASSIFIERS: dict[str, Callable[[int], nn.Module]] = {
    "cifar_resnet8": partial(CifarResNet, 8),
    "cifar_resnet14": partial(CifarResNet, 14),
    "cifar_resnet20": partial(CifarResNet, 20),
    "cifar_resnet32": partial(CifarResNet, 32),
    "cifar_resnet44": partial(CifarResNet, 44),
    "cifar_resnet56": partial(CifarResNet, 56),
    "cifar_resnet110": partial(CifarResNet, 110),
    "wrn_16_2": partial(WideResNet, 16, 2),
    "wrn_40_2": partial(WideResNet, 40, 2),
    "wrn_28_10": partial(WideResNet, 28, 10),
    "cifar_vit": CifarVit,
    "whitened_cnn_w16": partial(WhitenedCnn, 16),
    "whitened_cnn_w32": partial(WhitenedCnn, 32),
    "whitened_cnn_w64": partial(WhitenedCnn, 64),
    "small_cnn_weak": partial(SmallCnn, (16, 32, 64)),
    "small_cnn_strong": partial(SmallCnn, (24, 48, 112, 240)),
}
"""Name -> constructor, called with the number of classes. `w2skd.models.names` lists the same names."""

ELSEWHERE: dict[str, Callable[[str, int, int | None], nn.Module]] = {
    "torchvision": build_from_torchvision,
    "timm": build_from_timm,
    "plugin": build_from_plugin,
}
"""Prefix -> function that builds a model from its name without prefix, the number of classes and the image size in px.

`w2skd.models.names` lists the same prefixes.
"""


def build_classifier(name: str, classes: int, image_size_px: int | None = None) -> nn.Module:
    """Build a freshly initialised model on the CPU that maps images [N, 3, H, W] to logits [N, classes].

    Args:
        name: a key of `CLASSIFIERS`, or a name with the prefix ``torchvision:``, ``timm:`` or ``plugin:``.
        classes: number of classes.
        image_size_px: side of the images. Models with learned positions are built for it, and every model is tested on
            one image of that size. None is the model's default size and skips the test.

    Raises:
        RecipeError: there is no such model, or it cannot process images of that size.
        UsageError: a plug-in's code fails.
    """
    prefix, colon, rest = name.partition(":")
    if colon and prefix in ELSEWHERE:
        model = ELSEWHERE[prefix](rest, classes, image_size_px)
    elif name not in CLASSIFIERS:
        raise RecipeError(unknown_classifier(name))
    elif CLASSIFIERS[name] is CifarVit and image_size_px is not None:
        require_whole_patches(name, image_size_px, CifarVit.PATCH_PX)
        model = CifarVit(classes, image_size_px)
    else:
        model = CLASSIFIERS[name](classes)
    if image_size_px is not None:
        require_logits(name, model, classes, image_size_px)
    return model
