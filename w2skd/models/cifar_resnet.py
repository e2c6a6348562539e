"""Residual networks for 32x32 images (He et al. 2015, "Deep Residual Learning", section 4.2).

Three stages of n blocks with 16, 32 and 64 channels, 6n + 2 layers in total. Shortcuts have no parameters (option A):
at the start of a stage they take every second pixel and zero-pad the new channels.

Shapes: N images, C channels, H and W pixels.
"""

from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.added_channels = out_channels - in_channels

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, C_in, H, W] to [N, C_out, H / stride, W / stride]."""
        out = functional.relu(self.norm1(self.conv1(images)), inplace=True)
        return functional.relu(self.norm2(self.conv2(out)) + self._shortcut(images), inplace=True)

    def _shortcut(self, images: Tensor) -> Tensor:
        if self.stride == 1 and self.added_channels == 0:
            return images
        before = self.added_channels // 2
        padding = (0, 0, 0, 0, before, self.added_channels - before)
        return functional.pad(images[:, :, :: self.stride, :: self.stride], padding)


class CifarResNet(nn.Module):
    """ResNet of `depth` = 6n + 2 layers for images [N, 3, 32, 32]."""

    def __init__(self, depth: int, classes: int):
        super().__init__()
        assert depth in range(8, 2000, 6), depth
        blocks = (depth - 2) // 6
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.stage1 = _stage(16, 16, blocks, stride=1)
        self.stage2 = _stage(16, 32, blocks, stride=2)
        self.stage3 = _stage(32, 64, blocks, stride=2)
        self.head = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, 3, H, W] to logits [N, classes]."""
        out = functional.relu(self.norm(self.conv(images)), inplace=True)
        out = self.stage3(self.stage2(self.stage1(out)))
        return self.head(out.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))
