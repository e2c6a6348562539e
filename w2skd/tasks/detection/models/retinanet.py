"""torchvision's RetinaNet (Lin et al. 2017, "Focal loss for dense object detection"), one forward for losses and boxes.

Shapes: N images, A anchors of one image over all levels, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import retinanet

from w2skd.tasks.detection.models.anchors import AnchorGrid, anchors_of
from w2skd.tasks.detection.models.bodies import Norm
from w2skd.tasks.detection.models.output import Detections, DetectorOutput, Sizes, Truth


class RetinaNet(retinanet.RetinaNet):  # type: ignore[misc]
    """torchvision's RetinaNet without its image resizing, which the feed does.

    Heads: ``class_logits`` [N, A, K] (of sigmoids, without a background class) and ``box_deltas`` [N, A, 4].
    Losses: ``class`` (focal) and ``box`` (L1 of the deltas).

    Args:
        backbone: maps images to features; has ``out_channels``.
        classes: K.
        grid: its anchors.
        head_depth: convolutions before the last one in each head.
        head_norm: their normalisation; None means none, as published.
        max_detections: highest-scoring detections kept per image.

    Attributes:
        classes: K.
        grid: its anchors.
    """

    def __init__(
        self,
        backbone: Any,
        classes: int,
        grid: AnchorGrid,
        *,
        head_depth: int = 4,
        head_norm: Norm | None = None,
        max_detections: int = 100,
    ):
        generator = grid.generator()
        anchors_per_cell = generator.num_anchors_per_location()[0]
        head = retinanet.RetinaNetHead(backbone.out_channels, anchors_per_cell, classes, norm_layer=head_norm)
        for part in (head.classification_head, head.regression_head):
            part.conv = part.conv[:head_depth]
        super().__init__(backbone, classes, anchor_generator=generator, head=head, detections_per_img=max_detections)
        del self.transform
        self.classes, self.grid = classes, grid

    def forward(
        self,
        images: Tensor,
        sizes: Sizes,
        targets: Sequence[Truth] | None = None,
        proposals: None = None,
        detect: bool = True,
    ) -> DetectorOutput:
        """Compute the head outputs, and losses (with targets) or detections (without).

        Args:
            images: [N, 3, H, W], normalised and padded at right and bottom; H and W are multiples of 32.
            sizes: (height, width) in px of each image within its padding.
            targets: ground truth per image.
            proposals: always None, as there is no second stage.
            detect: False skips detections.
        """
        assert proposals is None, "a RetinaNet takes no proposals"
        levels = list(self.backbone(images).values())
        raw = self.head(levels)
        with torch.autocast(images.device.type, enabled=False):
            raw = {name: values.float() for name, values in raw.items()}
            heads = {"class_logits": raw["cls_logits"], "box_deltas": raw["bbox_regression"]}
            anchors = anchors_of(self.anchor_generator, images, levels)
            if targets is not None:
                truths = [{"boxes": target.boxes, "labels": target.labels} for target in targets]
                losses = self.compute_loss(truths, raw, [anchors] * len(truths))
                return DetectorOutput({"class": losses["classification"], "box": losses["bbox_regression"]}, heads, [])
            return DetectorOutput({}, heads, self._detections(raw, anchors, levels, sizes) if detect else [])

    def _detections(
        self, raw: dict[str, Tensor], anchors: Tensor, levels: Sequence[Tensor], sizes: Sizes
    ) -> list[Detections]:
        per_cell = self.anchor_generator.num_anchors_per_location()
        lengths = [each * features[0, 0].numel() for each, features in zip(per_cell, levels, strict=True)]
        by_level = {name: torch.split(values, lengths, dim=1) for name, values in raw.items()}
        found = self.postprocess_detections(by_level, [torch.split(anchors, lengths)] * len(sizes), list(sizes))
        return [Detections(each["boxes"], each["scores"], each["labels"]) for each in found]
