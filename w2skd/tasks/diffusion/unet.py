"""The denoising U-Nets of Ho et al. 2020, "Denoising diffusion probabilistic models", as diffusers builds them.

Names tell the size, as in the field: ``unet_nc64_rb2`` has 64 channels in its first level and two residual blocks in
every level. Its four levels have 1, 2, 2 and 2 times as many channels, and half the resolution each. Self-attention of
a single head is in the level of 16x16 px and in the middle. ``unet_mini_...`` has two levels of 1 and 2 times as many
channels, with attention in the lower one, for CPUs and small images.

Everything else is as in the original and in diffusers' port of its weights (``google/ddpm-cifar10-32``), except:

- Groups of the normalisation have at least 4 channels, so narrow networks have fewer than 32 groups (as in Karras et
  al. 2022).
- Dropout is 0, and weights start as diffusers starts them, none of them zero. Ho et al. start the last convolution of
  every residual block and of the network at zero; but a network that answers with zeros is of no use to somebody who
  tries it before it was trained, and who has trained with diffusers knows it like this.

Shape letters: N images, S px.
"""

import math
from typing import NamedTuple

from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from w2skd.errors import RecipeError
from w2skd.tasks.diffusion.recipe import unknown_denoiser


class DenoisingUNet(UNet2DModel):  # type: ignore[misc]  # without types
    """diffusers' U-Net, answering with a tensor. Its state dict is diffusers' own."""

    def forward(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        """What the network makes of noised images: their noise, or v, as it was trained.

        Args:
            noisy: [N, 3, S, S]; clean pixels are in [-1, 1].
            timesteps: int64 [N], 0 for the least noise.
            labels: classes, int64 [N], of a network that was built for classes; else None.

        Returns:
            [N, 3, S, S].
        """
        answer: Tensor = super().forward(noisy, timesteps, labels, return_dict=False)[0]
        return answer


class UNetSize(NamedTuple):
    """What tells one U-Net from another.

    Attributes:
        channels: of the first level.
        blocks: residual blocks of a level.
        multipliers: channels of each level, in multiples of the first's.
        attention_px: resolution of the level with attention, or of the level nearest to it by ratio; None: the lowest.
    """

    channels: int
    blocks: int
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    attention_px: int | None = 16


_MINI: tuple[tuple[int, ...], None] = ((1, 2), None)

DENOISERS: dict[str, UNetSize] = {
    "unet_nc64_rb2": UNetSize(64, 2),
    "unet_nc128_rb3": UNetSize(128, 3),
    "unet_nc160_rb3": UNetSize(160, 3),
    "unet_mini_nc16_rb1": UNetSize(16, 1, *_MINI),
    "unet_mini_nc24_rb1": UNetSize(24, 1, *_MINI),
    "unet_mini_nc32_rb1": UNetSize(32, 1, *_MINI),
    "unet_mini_nc32_rb2": UNetSize(32, 2, *_MINI),
    "unet_mini_nc64_rb2": UNetSize(64, 2, *_MINI),
}
"""Name -> size. `w2skd.tasks.diffusion.recipe` lists the same names."""


def build_unet(name: str, *, size_px: int, classes: int | None) -> DenoisingUNet:
    """A freshly initialised U-Net, drawn from torch's global generator.

    Args:
        name: a key of `DENOISERS`.
        size_px: S, side of the images.
        classes: how many classes it is told of; None: it is told of none.

    Raises:
        RecipeError: there is no such network, or it can't halve images of that size often enough.
    """
    if name not in DENOISERS:
        raise RecipeError(unknown_denoiser(name))
    size = DENOISERS[name]
    levels = len(size.multipliers)
    require_halving(name, size_px, levels)
    attention = _level_with_attention(size, size_px)
    down = ["AttnDownBlock2D" if level == attention else "DownBlock2D" for level in range(levels)]
    up = ["AttnUpBlock2D" if level == attention else "UpBlock2D" for level in reversed(range(levels))]
    return DenoisingUNet(
        sample_size=size_px,
        block_out_channels=tuple(size.channels * multiplier for multiplier in size.multipliers),
        layers_per_block=size.blocks,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        attention_head_dim=None,  # one head
        norm_num_groups=min(32, size.channels // 4),
        norm_eps=1e-6,
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
        num_class_embeds=classes,
    )


def require_halving(name: str, size_px: int, levels: int) -> None:
    """Refuse a side of images that a network with so many levels can't halve from each to the next.

    Raises:
        RecipeError: so it is; the message tells which would do.
    """
    multiple = 2 ** (levels - 1)
    if size_px % multiple:
        raise RecipeError(
            f"data.image_size: {name} halves images {levels - 1} times, so their side must be a multiple of "
            f"{multiple} px, not {size_px} px"
        )


def _level_with_attention(size: UNetSize, size_px: int) -> int:
    levels = range(len(size.multipliers))
    wanted_px = size.attention_px
    if wanted_px is None:
        return levels[-1]
    return min(levels, key=lambda level: abs(math.log2(size_px / 2**level / wanted_px)))
