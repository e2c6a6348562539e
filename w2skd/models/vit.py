"""A vision transformer (Dosovitskiy et al. 2020) for small images.

Patch size, width, depth and heads follow Lee et al. 2021, "Vision Transformer for Small-Size Datasets", who train from
scratch on CIFAR. The head classifies the mean over patches instead of a class token: this is at least as accurate
(Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k"), and attention kernels are faster with 64 tokens than
with 65.

Shapes: N images, T patches ("tokens"), C channels, H and W pixels.
"""

import torch
from torch import Tensor, nn


class CifarVit(nn.Module):
    """Pre-norm transformer over 4x4 patches with learned position embeddings and no dropout.

    Args:
        classes: number of classes.
        image_size_px: side of the images, a multiple of `PATCH_PX`.
    """

    PATCH_PX = 4
    WIDTH = 192
    DEPTH = 9
    HEADS = 12
    MLP_WIDTH = 384

    def __init__(self, classes: int, image_size_px: int = 32):
        super().__init__()
        assert image_size_px in range(self.PATCH_PX, 2**16, self.PATCH_PX), image_size_px
        patches = (image_size_px // self.PATCH_PX) ** 2
        self.patches = nn.Conv2d(3, self.WIDTH, self.PATCH_PX, stride=self.PATCH_PX)
        self.position_embedding = nn.Parameter(torch.zeros(1, patches, self.WIDTH))
        self.blocks = nn.Sequential(*(self._block() for _ in range(self.DEPTH)))
        self.norm = nn.LayerNorm(self.WIDTH)
        self.head = nn.Linear(self.WIDTH, classes)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def _block(self) -> nn.TransformerEncoderLayer:
        return nn.TransformerEncoderLayer(
            self.WIDTH, self.HEADS, self.MLP_WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, 3, H, W] of the constructed size to logits [N, classes]."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)  # [N, C, H / 4, W / 4] to [N, T, C]
        tokens = self.norm(self.blocks(tokens + self.position_embedding))
        return self.head(tokens.mean(dim=1))  # type: ignore[no-any-return]

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters to exclude from weight decay, which would shrink the position embeddings."""
        return {"position_embedding"}
