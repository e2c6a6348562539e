"""What a model says to an image size, found out before training does."""

import torch
from torch import Tensor, nn

from w2skd.errors import RecipeError, UsageError
from w2skd.models.modes import in_eval_mode
from w2skd.models.plugin import blame_plugin


def size_refused(name: str, image_size_px: int, reason: Exception | str) -> RecipeError:
    """The error that says, in one line, that a model can't take images of that side, and why."""
    why = str(reason).partition("\n")[0] or type(reason).__name__
    return RecipeError(f"{name} cannot take images of {image_size_px} px: {why}")


def require_whole_patches(name: str, image_size_px: int, patch_px: int) -> None:
    """Refuse a side that patches don't fill: some models would leave out the pixels at the edge without a word.

    Raises:
        RecipeError: so it is.
    """
    if image_size_px % patch_px == 0:
        return
    below = image_size_px // patch_px * patch_px
    fitting = " or ".join(str(side_px) for side_px in (below, below + patch_px) if side_px > 0)
    raise size_refused(name, image_size_px, f"its patches have {patch_px} px; {fitting} px would do")


def require_logits(name: str, model: nn.Module, classes: int, image_size_px: int) -> None:
    """Let the model see one black image of that size, in eval mode and on its own device.

    Args:
        name: of the model, for the message.
        model: left in the modes in which it was.
        classes: how many logits there must be.
        image_size_px: side of the image.

    Raises:
        RecipeError: it fails, or gives something else than [1, classes] numbers.
        UsageError: the user's own code fails.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    image = torch.zeros(1, 3, image_size_px, image_size_px, device=device)
    try:
        with in_eval_mode(model), torch.no_grad():
            logits = model(image)
    except Exception as error:  # libraries and plug-ins raise whatever they like
        of_plugin = blame_plugin(error)
        if of_plugin is not None:  # may have nothing to do with the size
            raise UsageError(f"{name} fails on an image of {image_size_px} px: {of_plugin}") from error
        raise size_refused(name, image_size_px, error) from error
    if not isinstance(logits, Tensor) or logits.shape != (1, classes):
        shape = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise RecipeError(f"{name} gives {shape} for one image of {image_size_px} px, not [1, {classes}] logits")
