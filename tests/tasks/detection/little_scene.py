"""A small picture with objects, and a training that memorises it."""

from types import SimpleNamespace

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def boxes_of(boxes, labels):
    return SimpleNamespace(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels=torch.tensor(labels, dtype=torch.int64)
    )


def scene():
    """[1, 3, 96, 96] with two bright squares and a dark bar, of two classes; and what it shows."""
    boxes, labels = [[10, 12, 34, 36], [60, 8, 84, 32], [20, 60, 76, 84]], [0, 0, 1]
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 0.2
    for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
        image[:, :, y1:y2, x1:x2] += (2.0, -2.0)[label]
    return image, boxes_of(boxes, labels)


def overfit(detector, image, truth, steps, learning_rate):
    """Take steps of AdamW with the task's losses, all at the same image."""
    detector.train()
    optimizer = torch.optim.AdamW(detector.parameters(), learning_rate)
    for _ in range(steps):
        losses = detector(image, (tuple(image.shape[-2:]),), [truth]).losses
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()


def ap50(detections, truth):
    """Average precision at an IoU of 0.5, by pycocotools."""
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": 1}],
        "categories": [{"id": label} for label in sorted(set(truth.labels.tolist()))],
        "annotations": [
            {"id": place, "image_id": 1, "category_id": label, "bbox": xywh, "area": xywh[2] * xywh[3], "iscrowd": 0}
            for place, (xywh, label) in enumerate(zip(_to_xywh(truth.boxes), truth.labels.tolist(), strict=True), 1)
        ],
    }
    coco.createIndex()
    found = [
        {"image_id": 1, "category_id": label, "bbox": xywh, "score": score}
        for xywh, score, label in zip(
            _to_xywh(detections.boxes), detections.scores.tolist(), detections.labels.tolist(), strict=True
        )
    ]
    evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[1]


def _to_xywh(boxes):
    return [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes.tolist()]
