"""torchvision's Faster R-CNN (Ren et al. 2015) with a feature pyramid, and one forward for losses and detections.

Shapes: N images, A anchors of one image over all levels, K classes, p proposals of one image, P of all images.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection import faster_rcnn
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign

from w2skd.tasks.detection.models.anchors import AnchorGrid, anchors_of
from w2skd.tasks.detection.models.output import Detections, DetectorOutput, Sizes, Truth

_REGION_CELLS = 7


class RegionSettings(NamedTuple):
    """Sizes of the stages of Faster R-CNN.

    Attributes:
        hidden: width of the box head's two layers.
        proposals: proposals that the first stage passes on per image in evaluation; twice as many in training.
        sampled: proposals per image that the box head trains on.
    """

    hidden: int = 1024
    proposals: int = 1000
    sampled: int = 512


class FasterRCNN(faster_rcnn.FasterRCNN):  # type: ignore[misc]
    """torchvision's Faster R-CNN without its image resizing, which the feed does.

    Heads: ``objectness`` [N, A] (logits) and ``rpn_deltas`` [N, A, 4]; ``proposals``, a list of [p, 4] in px, the input
    of the box head; and in the order of the proposals ``class_logits`` [P, K + 1], background first, and
    ``box_deltas`` [P, K + 1, 4]. Losses: ``objectness``, ``rpn_box``, ``class``, ``box``.

    Args:
        backbone: maps images to five levels of features; has ``out_channels``.
        classes: K.
        grid: its anchors.
        regions: sizes of its stages.
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
        regions: RegionSettings,
        max_detections: int = 100,
    ):
        super().__init__(
            backbone,
            rpn_anchor_generator=grid.generator(),
            rpn_pre_nms_top_n_train=2 * regions.proposals,
            rpn_post_nms_top_n_train=2 * regions.proposals,
            rpn_pre_nms_top_n_test=regions.proposals,
            rpn_post_nms_top_n_test=regions.proposals,
            box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=_REGION_CELLS, sampling_ratio=2),
            box_head=faster_rcnn.TwoMLPHead(backbone.out_channels * _REGION_CELLS**2, regions.hidden),
            box_predictor=faster_rcnn.FastRCNNPredictor(regions.hidden, classes + 1),
            box_batch_size_per_image=regions.sampled,
            box_detections_per_img=max_detections,
        )
        del self.transform
        self.classes, self.grid = classes, grid

    def forward(
        self,
        images: Tensor,
        sizes: Sizes,
        targets: Sequence[Truth] | None = None,
        proposals: Sequence[Tensor] | None = None,
        detect: bool = True,
    ) -> DetectorOutput:
        """Compute the head outputs, and losses (with targets) or detections (without).

        Args:
            images: [N, 3, H, W], normalised and padded at right and bottom; H and W are multiples of 32.
            sizes: (height, width) in px of each image within its padding.
            targets: ground truth per image. The box head then trains on a sample of proposals and targets.
            proposals: boxes [p, 4] per image that replace the first stage's own, so that a teacher evaluates its
                student's proposals. Not together with targets.
            detect: False skips detections.
        """
        assert targets is None or proposals is None, "targets require the detector's own proposals"
        features = self.backbone(images)
        levels = list(features.values())
        objectness_maps, delta_maps = self.rpn.head(levels)
        with _float32(images):
            anchors = [anchors_of(self.rpn.anchor_generator, images, levels)] * len(sizes)
            objectness, rpn_deltas = concat_box_prediction_layers(
                [values.float() for values in objectness_maps], [values.float() for values in delta_maps]
            )
            if proposals is None:
                lengths = [values[0].numel() for values in objectness_maps]
                proposals = self._own_proposals(objectness, rpn_deltas, anchors, lengths, sizes)
            losses: dict[str, Tensor] = {}
            if targets is not None:
                # The box head's class 0 is the background.
                truths = [{"boxes": target.boxes, "labels": target.labels + 1} for target in targets]
                losses |= self._rpn_losses(objectness, rpn_deltas, anchors, truths)
                proposals, _, labels, wanted = self.roi_heads.select_training_samples(list(proposals), truths)
        proposals = list(proposals)
        # torchvision infers strides from this size: only the padded one gives them exactly.
        regions = self.roi_heads.box_roi_pool(features, proposals, [tuple(images.shape[-2:])] * len(sizes))
        class_logits, box_deltas = self.roi_heads.box_predictor(self.roi_heads.box_head(regions))
        with _float32(images):
            class_logits, box_deltas = class_logits.float(), box_deltas.float()
            if targets is not None:
                losses["class"], losses["box"] = fastrcnn_loss(class_logits, box_deltas, labels, wanted)
            heads = {
                "objectness": objectness.view(len(sizes), -1),
                "rpn_deltas": rpn_deltas.view(len(sizes), -1, 4),
                "proposals": proposals,
                "class_logits": class_logits,
                "box_deltas": box_deltas.view(-1, self.classes + 1, 4),
            }
            if targets is not None or not detect:
                return DetectorOutput(losses, heads, [])
            found = self.roi_heads.postprocess_detections(class_logits, box_deltas, proposals, list(sizes))
            detections = [Detections(boxes, scores, labels - 1) for boxes, scores, labels in zip(*found, strict=True)]
            return DetectorOutput({}, heads, detections)

    def _own_proposals(
        self, objectness: Tensor, deltas: Tensor, anchors: list[Tensor], lengths: list[int], sizes: Sizes
    ) -> list[Tensor]:
        """Return the first stage's best proposals, per image [p, 4] in px, without gradient."""
        boxes = self.rpn.box_coder.decode(deltas.detach(), anchors).view(len(sizes), -1, 4)
        proposals: list[Tensor] = self.rpn.filter_proposals(boxes, objectness, list(sizes), lengths)[0]
        return proposals

    def _rpn_losses(
        self, objectness: Tensor, deltas: Tensor, anchors: list[Tensor], truths: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        labels, boxes = self.rpn.assign_targets_to_anchors(anchors, truths)
        wanted = self.rpn.box_coder.encode(boxes, anchors)
        of_objectness, of_boxes = self.rpn.compute_loss(objectness, deltas, labels, wanted)
        return {"objectness": of_objectness, "rpn_box": of_boxes}


def _float32(images: Tensor) -> torch.autocast:
    """Disable autocast: boxes are encoded, matched and scored in full precision."""
    return torch.autocast(images.device.type, enabled=False)
