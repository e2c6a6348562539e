"""The denoising U-Nets of Ho et al. 2020, "Denoising diffusion probabilistic models", built with diffusers.

``unet_nc64_rb2`` has 64 channels at its first level and two residual blocks per level. It has four levels with 1, 2, 2
and 2 times as many channels, each at half the resolution of the one before. Single-head self-attention is in the level
of 16x16 px and in the middle block. ``unet_mini_...`` is for CPUs and small images: two levels with 1 and 2 times as
many channels, and attention in the lower one.

Everything else follows the original and diffusers' port of its weights (``google/ddpm-cifar10-32``), except:

- Normalisation groups have at least 4 channels, so narrow networks have fewer than 32 groups (as in Karras et al.
  2022).
- Dropout is 0, and diffusers' default initialisation is used. Ho et al. initialise the last convolution of every
  residual block and of the network to zero. An untrained network would then output zeros, which is useless for trying
  it out and unexpected for users of diffusers.

Shapes: N images, S px.
"""

import math
from typing import NamedTuple

from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from w2skd.errors import RecipeError
from w2skd.tasks.diffusion.recipe import unknown_denoiser


class DenoisingUNet(UNet2DModel):  # type: ignore[misc]  # without types
    """diffusers' U-Net with a forward that returns a tensor. Its state dict is diffusers' own."""

    def forward(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict the noise, or v, of noised images.

        Args:
            noisy: [N, 3, S, S]; clean images are in [-1, 1].
            timesteps: int64 [N]; 0 has the least noise.
            labels: classes, int64 [N], if the network is class-conditional; else None.

        Returns:
            [N, 3, S, S].
        """
        prediction: Tensor = super().forward(noisy, timesteps, labels, return_dict=False)[0]
        return prediction

    def settings_beside_weights(self) -> dict[str, float]:
        """Return the settings that affect the output but no tensor's shape, which checkpoints must therefore record.

        Growing changes them; see `w2skd.tasks.diffusion.growth`.

        Returns:
            Keyword arguments of `set_beside_weights`.
        """
        return {name: self.config[name] for name in ("norm_num_groups", "freq_shift")}

    def set_beside_weights(self, *, norm_num_groups: int, freq_shift: float) -> None:
        """Change settings of diffusers' configuration that have no effect on the state dict.

        Args:
            norm_num_groups: number of groups of every GroupNorm without a setting of its own. It must divide the
                number of channels of every level.
            freq_shift: shift s of the frequencies of the time embedding, ``10000 ** (-i / (half - s))`` for i from 0 to
                half - 1, where half is half the number of channels of the first level.

        Raises:
            ValueError: the number of groups does not divide the channels of a level, or a value is not a number.
        """
        numbers = type(norm_num_groups) is int and norm_num_groups > 0 and isinstance(freq_shift, int | float)
        if not numbers or any(channels % norm_num_groups for channels in self.config.block_out_channels):
            raise ValueError(f"invalid for this U-Net: norm_num_groups {norm_num_groups!r}, freq_shift {freq_shift!r}")
        own = "mid_block.attentions." if self.config.attn_norm_num_groups is not None else None
        for name, module in self.named_modules():
            if isinstance(module, nn.GroupNorm) and (own is None or not name.startswith(own)):
                module.num_groups = norm_num_groups
        self.time_proj.downscale_freq_shift = freq_shift
        self.register_to_config(norm_num_groups=norm_num_groups, freq_shift=freq_shift)


class UNetSize(NamedTuple):
    """The size of a U-Net.

    Attributes:
        channels: of the first level.
        blocks: residual blocks per level.
        multipliers: channels of each level as a multiple of `channels`.
        attention_px: attention is in the level whose resolution is closest to this, by ratio; 1 selects the lowest.
    """

    channels: int
    blocks: int
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    attention_px: int = 16


_MINI: tuple[tuple[int, ...], int] = ((1, 2), 1)

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
    """Build a U-Net, initialised from torch's global random generator.

    Args:
        name: a key of `DENOISERS`.
        size_px: S, side of the images.
        classes: number of classes if it is class-conditional, else None.

    Raises:
        RecipeError: the name is unknown, or images of that size cannot be halved often enough.
    """
    if name not in DENOISERS:
        raise RecipeError(unknown_denoiser(name))
    size = DENOISERS[name]
    levels = range(len(size.multipliers))
    require_halving(name, size_px, len(levels))
    attention = min(levels, key=lambda level: abs(math.log2(size_px / 2**level / size.attention_px)))
    down = ["AttnDownBlock2D" if level == attention else "DownBlock2D" for level in levels]
    up = ["AttnUpBlock2D" if level == attention else "UpBlock2D" for level in reversed(levels)]
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
    """Check that a network can halve images of this size from each level to the next.

    Raises:
        RecipeError: it cannot.
    """
    multiple = 2 ** (levels - 1)
    if size_px % multiple:
        raise RecipeError(
            f"data.image_size: {name} halves images {levels - 1} times, so their side must be a multiple of "
            f"{multiple} px, not {size_px} px"
        )
