"""Classifiers of timm, by its own names; timm is an extra, imported only for them."""

from torch import nn

from w2skd.errors import RecipeError, suggest
from w2skd.models.image_size import require_whole_patches, size_refused


def build_from_timm(name: str, classes: int, image_size_px: int | None = None) -> nn.Module:
    """A freshly initialised classifier of timm.

    Args:
        name: without prefix, such as ``resnet18``; with a tag (``resnet18.a1_in1k``) in the shape that those weights
            need.
        classes: how many.
        image_size_px: side of its images where the model is built for one size; None is the model's own.

    Raises:
        RecipeError: timm is not installed, has no such model or tag, or the model can't be built for that size.
    """
    _require_known(name)
    import timm

    # timm marks by `fixed_input_size` which constructors take `img_size`; an option that is None is not handed on.
    cfg = timm.models.get_pretrained_cfg(name)
    side_px = image_size_px if cfg is not None and cfg.fixed_input_size else None
    try:
        model = timm.create_model(name, pretrained=False, num_classes=classes, img_size=side_px)
    except (AssertionError, RuntimeError, ValueError) as error:
        if side_px is None or cfg is None:
            raise
        reason = str(error) or f"its own size is {cfg.input_size[-1]} px"
        raise size_refused(f"timm:{name}", side_px, reason) from error
    if side_px is not None:
        _require_whole_patches(name, model, side_px)
    return model


def _require_known(name: str) -> None:
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise RecipeError(f"timm:{name} needs timm, which is not installed: pip install 'w2skd[timm]'") from error
    if not timm.is_model(name):
        raise RecipeError(f"timm has no model {name!r}{suggest(name.partition('.')[0], timm.list_models())}")
    architecture, dot, _ = name.partition(".")
    tagged = timm.list_models(f"{architecture}.*", include_tags=True)
    if dot and name not in tagged:
        tags = ", ".join(known.partition(".")[2] for known in tagged)
        raise RecipeError(
            f"timm has no weights {name!r}{suggest(name, tagged)}; tags of {architecture}: {tags or None}"
        )


def _require_whole_patches(name: str, model: nn.Module, image_size_px: int) -> None:
    from timm.layers.patch_embed import PatchEmbed

    for module in model.modules():
        if isinstance(module, PatchEmbed) and module.img_size == (image_size_px, image_size_px):
            if not module.dynamic_img_pad:
                require_whole_patches(f"timm:{name}", image_size_px, module.patch_size[0])
            return
