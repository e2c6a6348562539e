"""Plain convolutional networks that train in minutes on a CPU: a weak one and a strong one for demonstrations.

Shape letters: N images, H and W pixels.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn


class SmallCnn(nn.Module):
    """Blocks of convolution, batch normalisation, ReLU and 2x2 pooling, then the mean over pixels and a linear layer.

    Args:
        channels: of each block.
        classes: of the logits.
    """

    def __init__(self, channels: Sequence[int], classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *channels[:-1]), channels, strict=True):
            # Pooling before ReLU gives the same values for a quarter of its work.
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
            layers += [nn.MaxPool2d(2), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1], classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W], with sides of at least 2 to the power of the number of blocks, to logits [N, classes]."""
        return self.head(self.features(images).mean(dim=(2, 3)))  # type: ignore[no-any-return]


small_cnn_weak = partial(SmallCnn, (16, 32, 64))
small_cnn_strong = partial(SmallCnn, (24, 48, 112, 240))
