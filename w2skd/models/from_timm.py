"""Classifiers of timm by name. timm is an optional dependency, imported only when needed."""

from typing import Any

from torch import nn

from w2skd.errors import RecipeError, suggest
from w2skd.models.image_size import require_whole_patches, size_refused


def build_from_timm(name: str, classes: int, image_size_px: int | None = None) -> nn.Module:
    """Build a freshly initialised classifier of timm.

    Args:
        name: timm's name, such as ``resnet18``; a tag (``resnet18.a1_in1k``) selects the architecture variant that
            those weights need.
        classes: number of classes.
        image_size_px: side of the images, used by models that are built for one size; None is the model's default.

    Raises:
        RecipeError: timm is not installed, has no such model or tag, or cannot build the model for that size.
    """
    architecture, dot, _ = name.partition(".")
    timm = import_timm(architecture)
    tagged = timm.list_models(f"{architecture}.*", include_tags=True)
    if dot and name not in tagged:
        tags = ", ".join(known.partition(".")[2] for known in tagged)
        raise RecipeError(
            f"timm has no weights {name!r}{suggest(name, tagged)}; tags of {architecture}: {tags or None}"
        )
    # timm sets `fixed_input_size` for constructors that take `img_size`, and ignores options that are None.
    cfg = timm.models.get_pretrained_cfg(name)
    side_px = image_size_px if cfg is not None and cfg.fixed_input_size else None
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, img_size=side_px)
    except (AssertionError, RuntimeError, ValueError) as error:
        if side_px is None:
            raise
        reason = str(error) or f"its own size is {cfg.input_size[-1]} px"
        raise size_refused(f"timm:{name}", side_px, reason) from error
    built_for = (side_px, side_px)
    patches = (each for each in model.modules() if isinstance(each, timm.layers.PatchEmbed))
    embedding = next((each for each in patches if each.img_size == built_for), None)
    if side_px is not None and embedding is not None and not embedding.dynamic_img_pad:
        require_whole_patches(f"timm:{name}", side_px, embedding.patch_size[0])
    return model


def import_timm(architecture: str) -> Any:
    """Import timm and check that it has a model of this name, without tag.

    Raises:
        RecipeError: timm is not installed or has no such model.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise RecipeError(
            f"timm:{architecture} needs timm, which is not installed: pip install 'w2skd[timm]'"
        ) from error
    if not timm.is_model(architecture):
        raise RecipeError(f"timm has no model {architecture!r}{suggest(architecture, timm.list_models())}")
    return timm
