"""Check at startup that a model can process images of a given size."""

import torch
from torch import Tensor, nn

from w2skd.errors import RecipeError, UsageError
from w2skd.models.modes import in_eval_mode
from w2skd.models.plugin import describe_plugin_error


def size_refused(name: str, image_size_px: int, reason: Exception | str) -> RecipeError:
    """Return the error for a model that cannot process images of that size."""
    why = str(reason).partition("\n")[0] or type(reason).__name__
    return RecipeError(f"{name} cannot process images of {image_size_px} px: {why}")


def require_whole_patches(name: str, image_size_px: int, patch_px: int) -> None:
    """Require a side that is a multiple of the patch size: some models silently ignore the remaining pixels.

    Raises:
        RecipeError: the side is not a multiple.
    """
    if image_size_px % patch_px == 0:
        return
    below = image_size_px // patch_px * patch_px
    fitting = " or ".join(str(side_px) for side_px in (below, below + patch_px) if side_px > 0)
    raise size_refused(name, image_size_px, f"its patches have {patch_px} px; use {fitting} px")


def require_logits(name: str, model: nn.Module, classes: int, image_size_px: int) -> None:
    """Run the model on one black image of that size, in eval mode on its own device.

    Args:
        name: name of the model for error messages.
        model: its train and eval modes stay unchanged.
        classes: expected number of logits.
        image_size_px: side of the image.

    Raises:
        RecipeError: the model fails, or returns anything other than a tensor [1, classes].
        UsageError: a plug-in's code fails.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    image = torch.zeros(1, 3, image_size_px, image_size_px, device=device)
    try:
        with in_eval_mode(model), torch.no_grad():
            logits = model(image)
    except Exception as error:  # libraries and plug-ins can raise any exception
        plugin_error = describe_plugin_error(error)
        if plugin_error is not None:  # may be unrelated to the size
            raise UsageError(f"{name} fails on an image of {image_size_px} px: {plugin_error}") from error
        raise size_refused(name, image_size_px, error) from error
    if not isinstance(logits, Tensor) or logits.shape != (1, classes):
        shape = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise RecipeError(f"{name} returns {shape} for one image of {image_size_px} px, expected logits [1, {classes}]")
