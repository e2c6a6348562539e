"""Convolutional network for fast training on 32x32 images, with a frozen first layer that whitens 2x2 patches.

The architecture is that of Jordan (2024), "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498), which
goes back to the whitened ResNet of Page (2019). It is implemented here from the paper. Unlike in the paper, the
whitening layer's bias is learned during the whole run, and all biases have the learning rate of the weights.

Shapes: N images, C channels, H and W pixels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

_PATCH_PX = 2
_PATCH_VALUES = 3 * _PATCH_PX**2

_EIGENVALUE_OFFSET = 5e-4
"""Added to the variances of patches, to bound the amplification of directions with little variance."""

_LOGIT_SCALE = 1 / 9

_NORM_MOMENTUM = 0.4  # a run has only a few hundred steps

_CHUNK = 250


class WhitenedCnn(nn.Module):
    """A whitening layer, three blocks of two convolutions, and a linear layer on the maximum of each channel.

    Without `initialize_from` the first layer stays frozen at its random initial weights.

    Args:
        width: channels of the first block; the others have four times as many.
        classes: number of classes.
    """

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.whiten = nn.Conv2d(3, 2 * _PATCH_VALUES, _PATCH_PX)
        self.whiten.weight.requires_grad_(False)
        self.block1 = _Block(2 * _PATCH_VALUES, width)
        self.block2 = _Block(width, 4 * width)
        self.block3 = _Block(4 * width, 4 * width)
        self.head = nn.Linear(4 * width, classes, bias=False)
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]

    def initialize_from(self, images: Tensor) -> None:
        """Set the first layer's filters to the whitening directions of 2x2 patches, each with both signs.

        The filters are the eigenvectors of the patches' covariance, divided by the standard deviation along them.

        Args:
            images: float32 [N, 3, H, W], normalised training images.
        """
        filters = whitening_filters(images).to(self.whiten.weight)
        with torch.no_grad():
            self.whiten.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, 3, H, W] to logits [N, classes]."""
        out = functional.gelu(self.whiten(images))
        out = self.block3(self.block2(self.block1(out)))
        return self.head(out.amax(dim=(2, 3))) * _LOGIT_SCALE  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Two 3x3 convolutions, each with batch normalisation and GELU, and 2x2 max pooling after the first.

    The first `in_channels` filters of a convolution start as the identity and pass their inputs on.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = _identity_conv(in_channels, out_channels)
        self.norm1 = _norm(out_channels)
        self.conv2 = _identity_conv(out_channels, out_channels)
        self.norm2 = _norm(out_channels)

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, C_in, H, W] to [N, C_out, H // 2, W // 2]."""
        out = functional.gelu(self.norm1(functional.max_pool2d(self.conv1(images), 2)))
        return functional.gelu(self.norm2(self.conv2(out)))


def _identity_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight[:in_channels])
    return conv


def _norm(channels: int) -> nn.BatchNorm2d:
    """Return a batch normalisation that learns an offset but no scale."""
    norm = nn.BatchNorm2d(channels, momentum=_NORM_MOMENTUM)
    norm.weight.requires_grad_(False)
    return norm


def whitening_filters(images: Tensor) -> Tensor:
    """Return filters whose responses on 2x2 patches are uncorrelated and have a variance of about 1.

    They are computed on the CPU in float64 and sorted by decreasing variance. The sign of an eigenvector depends on the
    library, so filters are flipped to make the weight of largest magnitude positive.

    Args:
        images: float [N, 3, H, W], with H, W >= 2.

    Returns:
        float64 [12, 3, 2, 2].
    """
    count, total, products = 0, torch.zeros(_PATCH_VALUES).double(), torch.zeros(_PATCH_VALUES, _PATCH_VALUES).double()
    for chunk in torch.split(images, _CHUNK):
        patches = functional.unfold(chunk.cpu().double(), _PATCH_PX).transpose(1, 2).reshape(-1, _PATCH_VALUES)
        count += len(patches)
        total += patches.sum(0)
        products += patches.T @ patches
    mean = total / count
    variances, directions = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    filters = (directions / (variances.clamp_min(0) + _EIGENVALUE_OFFSET).sqrt()).T.flip(0)
    largest = filters.gather(1, filters.abs().argmax(dim=1, keepdim=True))
    return torch.reshape(filters * largest.sign(), (-1, 3, _PATCH_PX, _PATCH_PX))
