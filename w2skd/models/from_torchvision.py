"""Classifiers of torchvision by name."""

from typing import Any

from torch import nn

from w2skd.errors import RecipeError, suggest
from w2skd.models.image_size import require_whole_patches, size_refused

# In train mode these two would return named tuples with auxiliary logits. `init_weights=True` is their default, passed
# explicitly to avoid their warning that it will change.
_OPTIONS = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def build_from_torchvision(name: str, classes: int, image_size_px: int | None = None) -> nn.Module:
    """Build a freshly initialised classifier of torchvision.

    Args:
        name: torchvision's name, such as ``resnet18``.
        classes: number of classes.
        image_size_px: side of the images, used by models that are built for one size (``vit_*``, ``maxvit_t``); None is
            the model's default.

    Raises:
        RecipeError: torchvision has no such classifier, or cannot build it for that size.
    """
    models = import_torchvision_models(name)
    options = _OPTIONS.get(name, {}) | _size_options(name, image_size_px)
    try:
        model: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    except ValueError as error:
        if image_size_px is None:
            raise
        raise size_refused(f"torchvision:{name}", image_size_px, error) from error
    return model


def import_torchvision_models(name: str) -> Any:
    """Import torchvision's classifiers and check that there is one of this name.

    Raises:
        RecipeError: there is none.
    """
    from torchvision import models  # slow to import, and many experiments don't need it

    known = models.list_models(module=models)
    if name not in known:
        raise RecipeError(f"torchvision has no classifier {name!r}{suggest(name, known)}")
    return models


def _size_options(name: str, image_size_px: int | None) -> dict[str, int | tuple[int, int]]:
    if image_size_px is None:
        return {}
    if name.startswith("vit_"):
        require_whole_patches(f"torchvision:{name}", image_size_px, int(name.rpartition("_")[2]))
        return {"image_size": image_size_px}
    return {"input_size": (image_size_px, image_size_px)} if name.startswith("maxvit_") else {}
