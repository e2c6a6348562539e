"""Names of models, and what they stand for: plain dicts, no dotted strings."""

from collections.abc import Callable

from torch import nn

from w2skd.errors import RecipeError, suggest
from w2skd.models.cifar_resnet import (
    cifar_resnet8,
    cifar_resnet14,
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
    cifar_resnet110,
)
from w2skd.models.small_cnn import small_cnn_strong, small_cnn_weak

CLASSIFIERS: dict[str, Callable[[int], nn.Module]] = {
    "cifar_resnet8": cifar_resnet8,
    "cifar_resnet14": cifar_resnet14,
    "cifar_resnet20": cifar_resnet20,
    "cifar_resnet32": cifar_resnet32,
    "cifar_resnet44": cifar_resnet44,
    "cifar_resnet56": cifar_resnet56,
    "cifar_resnet110": cifar_resnet110,
    "small_cnn_weak": small_cnn_weak,
    "small_cnn_strong": small_cnn_strong,
}
"""Name -> constructor, called with the number of classes. `w2skd.recipe.names` lists the same names."""

_TORCHVISION_PREFIX = "torchvision:"

# These two would give named tuples with auxiliary logits in train mode. `init_weights` is their default, said aloud,
# since they warn of its future otherwise.
_TORCHVISION_OPTIONS = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def build_classifier(name: str, classes: int) -> nn.Module:
    """A freshly initialised model from images [N, 3, H, W] to logits [N, classes], on the CPU.

    Args:
        name: a key of `CLASSIFIERS`, or ``torchvision:`` and the name of one of torchvision's classifiers.
        classes: how many.

    Raises:
        RecipeError: there is no such model.
    """
    if name.startswith(_TORCHVISION_PREFIX):
        return _build_from_torchvision(name.removeprefix(_TORCHVISION_PREFIX), classes)
    if name not in CLASSIFIERS:
        raise RecipeError(f"unknown model {name!r}{suggest(name, CLASSIFIERS)}")
    return CLASSIFIERS[name](classes)


def _build_from_torchvision(name: str, classes: int) -> nn.Module:
    import torchvision  # takes a while, and not every experiment needs it

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise RecipeError(f"torchvision has no classifier {name!r}{suggest(name, known)}")
    options = _TORCHVISION_OPTIONS.get(name, {})
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    return model
