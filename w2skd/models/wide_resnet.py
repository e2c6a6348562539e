"""Wide residual networks for 32x32 images (Zagoruyko & Komodakis 2016, "Wide Residual Networks", table 1).

WRN-d-k has three stages of n = (d - 4) / 6 blocks with 16k, 32k and 64k channels. Normalisation and ReLU precede each
convolution. Where the number of channels changes, the shortcut is a 1x1 convolution of the first convolution's input.
There is no dropout.

Shapes: N images, C channels, H and W pixels.
"""

from torch import Tensor, nn
from torch.nn import functional


class WideBlock(nn.Module):
    """Two sequences of normalisation, ReLU and a 3x3 convolution, with a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        assert stride == 1 or in_channels != out_channels, (in_channels, out_channels, stride)
        projects = in_channels != out_channels
        self.projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if projects else None

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, C_in, H, W] to [N, C_out, H / stride, W / stride]."""
        activated = functional.relu(self.norm1(images), inplace=True)
        shortcut = images if self.projection is None else self.projection(activated)
        out = functional.relu(self.norm2(self.conv1(activated)), inplace=True)
        return self.conv2(out) + shortcut  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """WRN of `depth` = 6n + 4 layers and widening factor `width` for images [N, 3, 32, 32]."""

    def __init__(self, depth: int, width: int, classes: int):
        super().__init__()
        assert depth in range(10, 2000, 6), depth
        blocks = (depth - 4) // 6
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.stage1 = _stage(16, 16 * width, blocks, stride=1)
        self.stage2 = _stage(16 * width, 32 * width, blocks, stride=2)
        self.stage3 = _stage(32 * width, 64 * width, blocks, stride=2)
        self.norm = nn.BatchNorm2d(64 * width)
        self.head = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, 3, H, W] to logits [N, classes]."""
        out = self.stage3(self.stage2(self.stage1(self.conv(images))))
        out = functional.relu(self.norm(out), inplace=True)
        return self.head(out.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = WideBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(WideBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))
