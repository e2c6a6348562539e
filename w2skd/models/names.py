"""Names of classifiers as plain data, so that a recipe is checked without importing torch.

A test keeps these lists and `w2skd.models.catalog` equal.
"""

import re

from w2skd.errors import suggest

CLASSIFIERS = (
    "cifar_resnet8",
    "cifar_resnet14",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "wrn_16_2",
    "wrn_40_2",
    "wrn_28_10",
    "cifar_vit",
    "small_cnn_weak",
    "small_cnn_strong",
)

MODEL_PREFIXES = {
    "torchvision": re.compile(r"[a-z0-9_]+"),
    "timm": re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?"),
    "plugin": re.compile(r"[^\W\d_]\w*"),
}
"""Where other models come from -> how their names look there, as in ``torchvision:resnet18``, ``timm:resnet18.a1_in1k``
or ``plugin:my_model``. Whether there is such a model is found out when it is built."""

_LIBRARY_FAMILIES = (
    *("alexnet", "beit", "convnext", "deit", "densenet", "efficientnet", "googlenet", "inception", "maxvit", "mnasnet"),
    *("mobilenet", "regnet", "resnet", "resnext", "shufflenet", "squeezenet", "swin", "vgg", "vit", "wide_resnet"),
)


def is_classifier(name: str) -> bool:
    """Whether a recipe may name this model: one of ours, or one whose name looks right for where it comes from."""
    prefix, colon, rest = name.partition(":")
    if not colon:
        return name in CLASSIFIERS
    return prefix in MODEL_PREFIXES and MODEL_PREFIXES[prefix].fullmatch(rest) is not None


def unknown_classifier(name: str) -> str:
    """What to say about a name that is no model."""
    prefix, colon, _ = name.partition(":")
    if colon and prefix in MODEL_PREFIXES:
        return f"unknown model {name!r}: no name of a {prefix} model looks like this"
    if name.startswith(_LIBRARY_FAMILIES):
        hint = f" (did you mean 'torchvision:{name}' or 'timm:{name}'?)"
    else:
        hint = suggest(prefix, MODEL_PREFIXES) if colon else suggest(name, CLASSIFIERS)
    elsewhere = ", ".join(f"{prefix}:<name>" for prefix in MODEL_PREFIXES)
    return f"unknown model {name!r}{hint}; known: {', '.join(CLASSIFIERS)}, {elsewhere}"


PUBLISHERS = ("torchvision:", "timm:")
"""Prefixes of the names of models whose weights a library publishes."""
