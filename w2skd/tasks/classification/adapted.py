"""A pretrained classifier adapted to the recipe's normalisation, image size and classes.

Shapes: N images, H and W pixels, C classes of the data, K classes of the pretrained model.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


class AdaptedClassifier(nn.Module):
    """Wrap a classifier so that it takes the recipe's images and returns logits for the data's classes.

    The state dict contains the wrapped model only, under ``model.``.

    Args:
        model: maps images [N, 3, H, W], normalised as in its own training, to logits [N, K].
        ours: normalisation of the input images: three means, then three standard deviations, of pixels in [0, 1].
        theirs: normalisation that the model was trained with, in the same form.
        image_size_px: side of the square images that the model sees; None disables resizing.
        interpolation: mode of the resizing, which is antialiased.
        columns: for each class of the data, its index in the model's logits; None keeps all logits.
    """

    scale: Tensor | None
    shift: Tensor | None
    columns: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        *,
        ours: Sequence[float],
        theirs: Sequence[float],
        image_size_px: int | None = None,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        columns: Sequence[int] | None = None,
    ):
        super().__init__()
        self.model = model
        self.image_size_px = image_size_px
        self.interpolation = interpolation
        scale, shift = _renormalization(ours, theirs)
        same = torch.equal(scale, torch.ones(3)) and torch.equal(shift, torch.zeros(3))
        # The recipe determines these values at every start, so they stay out of checkpoints.
        self.register_buffer("scale", None if same else scale.reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", None if same else shift.reshape(1, 3, 1, 1), persistent=False)
        picked = None if columns is None else torch.tensor(columns, dtype=torch.int64)
        self.register_buffer("columns", picked, persistent=False)

    @property
    def adapted(self) -> str:
        """How the wrapped classifier differs from the recipe, and which setting removes the difference, if any."""
        if self.columns is not None:
            return "it has other classes than the data, or has them in another order"
        if self.image_size_px is not None:
            return f"it sees images of {self.image_size_px} px (teacher.image_size)"
        return "it was trained with another normalisation; set data.normalization to the teacher's"

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, 3, H, W], normalised as `ours`, to logits [N, C]; images to be resized must be square."""
        if self.image_size_px is not None and images.shape[-1] != self.image_size_px:
            assert images.shape[-2] == images.shape[-1], f"not squares: {tuple(images.shape)}"
            images = functional.interpolate(
                images, (self.image_size_px, self.image_size_px), mode=self.interpolation, antialias=True
            )
        if self.scale is not None and self.shift is not None:
            images = torch.addcmul(self.shift, images, self.scale)
        logits: Tensor = self.model(images)
        return logits if self.columns is None else logits.index_select(1, self.columns)


def _renormalization(ours: Sequence[float], theirs: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return scale and shift, float32 [3] each, that turn images normalised as `ours` into `theirs`."""
    our_mean, our_std = torch.tensor(ours, dtype=torch.float64).reshape(2, 3)
    their_mean, their_std = torch.tensor(theirs, dtype=torch.float64).reshape(2, 3)
    return (our_std / their_std).float(), ((our_mean - their_mean) / their_std).float()
