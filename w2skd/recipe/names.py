"""The words that a recipe may use for tasks, models and sources, as plain data.

Errors can suggest the nearest word without importing torch. A test holds these lists and the catalogs equal.
"""

import re

CLASSIFIERS = (
    "cifar_resnet8",
    "cifar_resnet14",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "small_cnn_weak",
    "small_cnn_strong",
)

CLASSIFICATION_SOURCES = ("cifar10", "cifar100", "fashion_mnist", "image_folder", "shapes")

CLASSIFICATION_METRICS = {"top1": True, "top5": True, "loss": False}
"""Metric -> whether higher is better."""

TORCHVISION = re.compile(r"torchvision:[a-z0-9_]+")
"""Any classifier of torchvision by its own name, such as ``torchvision:resnet18``."""
