"""Plain convolutional networks for demonstrations, which train in minutes on a CPU.

Shapes: N images, H and W pixels.
"""

from collections.abc import Sequence

from torch import Tensor, nn


class SmallCnn(nn.Module):
    """Blocks of convolution, batch normalisation, ReLU and 2x2 pooling, then global average pooling and a linear layer.

    Args:
        channels: output channels of each block.
        classes: number of classes.
    """

    def __init__(self, channels: Sequence[int], classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *channels[:-1]), channels, strict=True):
            # Pooling first gives the same values and reduces the work of ReLU to a quarter.
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
            layers += [nn.MaxPool2d(2), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1], classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, 3, H, W] to logits [N, classes]; H and W must be at least 2 ** number of blocks."""
        return self.head(self.features(images).mean(dim=(2, 3)))  # type: ignore[no-any-return]
