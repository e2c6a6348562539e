"""The words that a recipe may use for tasks, models and sources, as plain data.

Errors can suggest the nearest word without importing torch. A test holds these lists and the catalogs equal.
"""

import re
from typing import NamedTuple

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

DETECTORS = (
    "retinanet_resnet18",
    "retinanet_resnet34",
    "retinanet_resnet50",
    "retinanet_resnet101",
    "retinanet_mobilenet_v2",
    "retinanet_slim",
    "fasterrcnn_resnet18",
    "fasterrcnn_resnet34",
    "fasterrcnn_resnet50",
    "fasterrcnn_resnet101",
    "fasterrcnn_mobilenet_v2",
    "fasterrcnn_slim",
)
"""Family, underscore, body; detectors of one family can teach one another."""

DENOISERS = (
    "unet_nc64_rb2",
    "unet_nc128_rb3",
    "unet_nc160_rb3",
    "unet_mini_nc16_rb1",
    "unet_mini_nc24_rb1",
    "unet_mini_nc32_rb1",
    "unet_mini_nc32_rb2",
    "unet_mini_nc64_rb2",
)
"""nc: channels of the first resolution; rb: residual blocks per resolution; mini: two resolutions instead of four."""

FEATURE_EXTRACTORS = (
    "inception-v3-compat",
    "vgg16",
    "clip-rn50",
    "clip-rn101",
    "clip-rn50x4",
    "clip-rn50x16",
    "clip-rn50x64",
    "clip-vit-b-32",
    "clip-vit-b-16",
    "clip-vit-l-14",
    "clip-vit-l-14-336px",
    "dinov2-vit-s-14",
    "dinov2-vit-b-14",
    "dinov2-vit-l-14",
    "dinov2-vit-g-14",
)
"""torch-fidelity's."""

CLASSIFICATION_SOURCES = ("cifar10", "cifar100", "fashion_mnist", "image_folder", "shapes")


class MetricFacts(NamedTuple):
    """What must be known of a metric to compare and to write it.

    Attributes:
        higher_is_better: its direction.
        is_share: from 0 to 1, and read best in percent.
    """

    higher_is_better: bool
    is_share: bool


METRICS = {
    "classification": {
        "top1": MetricFacts(higher_is_better=True, is_share=True),
        "top5": MetricFacts(higher_is_better=True, is_share=True),
        "loss": MetricFacts(higher_is_better=False, is_share=False),
    },
    "detection": {
        name: MetricFacts(higher_is_better=True, is_share=True)
        for name in (
            *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
            *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
        )
    },
    "diffusion": {name: MetricFacts(higher_is_better=False, is_share=False) for name in ("fid", "kid")},
}
"""Task -> metric -> facts. A name means the same in every task that has it."""

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


def is_denoiser(name: str) -> bool:
    """Whether a recipe may name this U-Net: one of ours, or ``diffusers:`` and a folder."""
    prefix, colon, folder = name.partition(":")
    return name in DENOISERS or (prefix == "diffusers" and bool(colon) and bool(folder.strip()))


def unknown_denoiser(name: str) -> str:
    """What to say about a name that is no U-Net."""
    known = f"{', '.join(DENOISERS)}, diffusers:<folder>"
    return f"unknown model {name!r}{suggest(name, DENOISERS)}; known: {known}"


def is_extractor(name: str) -> bool:
    """Whether a recipe may name this network to compare images by: torch-fidelity's, or ``checkpoint:`` and a run."""
    prefix, colon, run = name.partition(":")
    return name in FEATURE_EXTRACTORS or (prefix == "checkpoint" and bool(colon) and bool(run.strip()))


def unknown_extractor(name: str) -> str:
    """What to say about a name that is no feature extractor."""
    known = f"{', '.join(FEATURE_EXTRACTORS)}, checkpoint:<run>"
    return f"unknown extractor {name!r}{suggest(name, FEATURE_EXTRACTORS)}; known: {known}"


EVALUATION_LEAVES = {
    "classification": ("predictions", "confusion"),
    "detection": ("results", "pictures"),
    "diffusion": ("samples", "pictures"),
}
"""Task -> what an evaluation of it can leave besides its numbers."""
