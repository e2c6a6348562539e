"""Conversion between image bytes and normalised tensors."""

import torch
from torch import Tensor

from w2skd.data.images import Normalization
from w2skd.data.transfer import to_device


class Normalizer:
    """Normalises images: uint8 [n, 3, H, W] of any strides to dense float32, (pixel / 255 - mean) / std.

    Args:
        normalization: mean and standard deviation of pixels scaled to [0, 1].
        device: device of the pixels and of the result.
        channels_last: memory format of the result.
    """

    def __init__(self, normalization: Normalization, device: torch.device, channels_last: bool):
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.device = device
        self._normalization = normalization
        self._by_size: dict[torch.Size, tuple[Tensor, Tensor]] = {}

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return a new tensor, which the caller may modify."""
        size = pixels.shape[2:]
        if size not in self._by_size:
            self._by_size[size] = self._scale_and_shift(size)
        scale, shift = self._by_size[size]
        images = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device, memory_format=self.memory_format)
        images.copy_(pixels)
        return torch.addcmul(shift, images, scale, out=images)

    def _scale_and_shift(self, size: torch.Size) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self._normalization.mean, dtype=torch.float64)
        std = torch.tensor(self._normalization.std, dtype=torch.float64)
        return self._full(1 / (255 * std), size), self._full(-mean / std, size)

    def _full(self, colours: Tensor, size: torch.Size) -> Tensor:
        # Expanded to the full image: a multiply-add that broadcasts over the colours only is 4 times slower.
        full = to_device(colours.float(), self.device)[None, :, None, None].expand(1, 3, *size)
        return full.contiguous(memory_format=self.memory_format)


def to_bytes(images: Tensor, normalization: Normalization) -> Tensor:
    """Undo the normalisation: float [..., 3, H, W] on any device to uint8 of the same shape on the CPU."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (normalization.mean, normalization.std))
    return (images.cpu() * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
