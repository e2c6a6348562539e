"""Classifiers of torchvision, by its own names."""

from torch import nn

from w2skd.errors import RecipeError, suggest
from w2skd.models.image_size import require_whole_patches, size_refused

# These two would give named tuples with auxiliary logits in train mode. `init_weights` is their default, said aloud,
# since they warn of its future otherwise.
_OPTIONS = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def build_from_torchvision(name: str, classes: int, image_size_px: int | None = None) -> nn.Module:
    """A freshly initialised classifier of torchvision.

    Args:
        name: without prefix, such as ``resnet18``.
        classes: how many.
        image_size_px: side of its images where the model is built for one size (``vit_*``, ``maxvit_t``); None is the
            model's own.

    Raises:
        RecipeError: torchvision has no such classifier, or it can't be built for that size.
    """
    import torchvision  # takes a while, and not every experiment needs it

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise RecipeError(f"torchvision has no classifier {name!r}{suggest(name, known)}")
    options = _OPTIONS.get(name, {}) | _size_options(name, image_size_px)
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    except ValueError as error:
        if image_size_px is None:
            raise
        raise size_refused(f"torchvision:{name}", image_size_px, error) from error
    return model


def _size_options(name: str, image_size_px: int | None) -> dict[str, int | tuple[int, int]]:
    if image_size_px is None:
        return {}
    if name.startswith("vit_"):
        require_whole_patches(f"torchvision:{name}", image_size_px, int(name.rpartition("_")[2]))
        return {"image_size": image_size_px}
    if name.startswith("maxvit_"):
        return {"input_size": (image_size_px, image_size_px)}
    return {}
