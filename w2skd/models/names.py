"""Names of classifiers, so that recipes can be validated without importing torch.

A test checks that they agree with `w2skd.models.catalog`.
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
    "whitened_cnn_w16",
    "whitened_cnn_w32",
    "whitened_cnn_w64",
    "small_cnn_weak",
    "small_cnn_strong",
)

MODEL_PREFIXES = {
    "torchvision": re.compile(r"[a-z0-9_]+"),
    "timm": re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?"),
    "plugin": re.compile(r"[^\W\d_]\w*"),
}
"""Prefix -> pattern of the rest of the name, as in ``torchvision:resnet18``, ``timm:resnet18.a1_in1k`` or
``plugin:my_model``. Whether the model exists is checked when it is built."""

PUBLISHERS = ("torchvision:", "timm:")
"""Prefixes of models for which a library publishes weights."""

_LIBRARY_FAMILIES = (
    *("alexnet", "beit", "convnext", "deit", "densenet", "efficientnet", "googlenet", "inception", "maxvit", "mnasnet"),
    *("mobilenet", "regnet", "resnet", "resnext", "shufflenet", "squeezenet", "swin", "vgg", "vit", "wide_resnet"),
)


def is_classifier(name: str) -> bool:
    """Return whether a name is in `CLASSIFIERS` or has a prefix and matches that prefix's pattern."""
    prefix, colon, rest = name.partition(":")
    if not colon:
        return name in CLASSIFIERS
    return prefix in MODEL_PREFIXES and MODEL_PREFIXES[prefix].fullmatch(rest) is not None


def unknown_classifier(name: str) -> str:
    """Return the error message for an unknown name."""
    prefix, colon, _ = name.partition(":")
    if colon and prefix in MODEL_PREFIXES:
        return f"unknown model {name!r}: not a valid name of a {prefix} model"
    if name.startswith(_LIBRARY_FAMILIES):
        hint = f" (did you mean 'torchvision:{name}' or 'timm:{name}'?)"
    else:
        hint = suggest(prefix, MODEL_PREFIXES) if colon else suggest(name, CLASSIFIERS)
    elsewhere = ", ".join(f"{prefix}:<name>" for prefix in MODEL_PREFIXES)
    return f"unknown model {name!r}{hint}; known: {', '.join(CLASSIFIERS)}, {elsewhere}"
