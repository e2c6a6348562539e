import math

import pytest
import torch
from little_scene import ap50, boxes_of, overfit, scene
from torchvision.models.detection.retinanet import RetinaNet as Reference

from w2skd.tasks.detection.models.anchors import anchors_of
from w2skd.tasks.detection.models.catalog import build_detector

SIZES = ((64, 96), (50, 70))
ANCHORS = 3 * 3 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1)


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return build_detector("retinanet_slim", 3, anchor_scale=0.25).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def sure(detector, monkeypatch):
    """The detector, but sure of some things wherever it looks."""
    bias = torch.randn(27, generator=torch.Generator().manual_seed(2)) * 2 - 2
    monkeypatch.setattr(detector.head.classification_head.cls_logits.bias, "data", bias)
    return detector


def test_training_gives_losses_and_heads(detector, images):
    targets = [boxes_of([[5, 5, 30, 40], [20, 20, 60, 60]], [0, 2]), boxes_of([[3, 3, 20, 20]], [1])]
    losses, heads, detections = detector.train()(images, SIZES, targets)
    detector.eval()
    assert {name: loss.shape for name, loss in losses.items()} == {"class": (), "box": ()}
    assert {name: head.shape for name, head in heads.items()} == {
        "class_logits": (2, ANCHORS, 3),
        "box_deltas": (2, ANCHORS, 4),
    }
    assert detections == []
    sum(losses.values()).backward()
    assert [name for name, parameter in detector.named_parameters() if parameter.grad is None] == []
    detector.zero_grad()


def test_losses_are_torchvisions(detector, images):
    targets = [boxes_of([[5, 5, 30, 40], [20, 20, 60, 60]], [0, 2]), boxes_of([], [])]
    losses, heads, _ = detector(images, SIZES, targets)
    anchors = anchors_of(detector.anchor_generator, images, list(detector.backbone(images).values()))
    truths = [{"boxes": target.boxes, "labels": target.labels} for target in targets]
    raw = {"cls_logits": heads["class_logits"], "bbox_regression": heads["box_deltas"]}
    expected = Reference.compute_loss(detector, truths, raw, [anchors, anchors])
    assert losses == {"class": expected["classification"], "box": expected["bbox_regression"]}


def test_a_fresh_detector_finds_nothing(detector, images):
    losses, _, detections = detector(images, SIZES)
    assert losses == {}
    assert [(each.boxes.shape, each.scores.shape, each.labels.shape) for each in detections] == [
        ((0, 4), (0,), (0,))
    ] * 2
    assert [each.labels.dtype for each in detections] == [torch.int64] * 2


def test_detections_are_heads_decoded_by_hand(sure, images):
    with torch.no_grad():
        _, heads, detections = sure(images, SIZES)
        anchors = anchors_of(sure.anchor_generator, images, list(sure.backbone(images).values()))
    assert anchors.shape == (ANCHORS, 4)
    for n, (boxes, scores, labels) in enumerate(detections):
        assert len(boxes) > 10
        height, width = SIZES[n]
        assert (scores[:-1] >= scores[1:]).all()
        for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
            alike = torch.where((heads["class_logits"][n, :, label].sigmoid() - score).abs() < 1e-6)[0]
            decoded = [decode(anchors[a].tolist(), heads["box_deltas"][n, a].tolist()) for a in alike]
            clipped = [
                (min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height))
                for x1, y1, x2, y2 in decoded
            ]
            assert any(box == pytest.approx(each, abs=1e-3) for each in clipped)


def decode(anchor, deltas):
    x1, y1, x2, y2 = anchor
    dx, dy, dw, dh = deltas
    width, height = (x2 - x1) * math.exp(dw), (y2 - y1) * math.exp(dh)
    x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def test_outputs_are_computed_only_on_request(sure, images):
    assert sure(images, SIZES, None, None, False).detections == []
    assert len(sure(images, SIZES).detections) == 2


def test_no_more_detections_than_asked_for(images):
    torch.manual_seed(0)
    few = build_detector("retinanet_slim", 3, anchor_scale=0.25, max_detections=7).eval()
    torch.nn.init.zeros_(few.head.classification_head.cls_logits.bias)
    assert [len(each.scores) for each in few(images, SIZES).detections] == [7, 7]


def test_images_without_boxes_train(detector, images):
    losses, _, _ = detector(images, SIZES, [boxes_of([], [])] * 2)
    assert losses["box"].item() == 0
    assert 0 < losses["class"].item() < math.inf
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in detector.parameters())
    detector.zero_grad()


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_lower_precision_is_for_convolutions_only(sure, images, precision):
    targets = [boxes_of([[5, 5, 30, 40]], [0]), boxes_of([], [])]
    with torch.no_grad(), torch.autocast("cpu", precision):
        losses, heads, _ = sure(images, SIZES, targets)
        found = sure(images, SIZES).detections
    dtypes = {tensor.dtype for tensor in (*losses.values(), *heads.values(), *(each.boxes for each in found))}
    assert dtypes == {torch.float32}
    with torch.no_grad():
        full = sure(images, SIZES, targets)
    torch.testing.assert_close(losses, full.losses, rtol=0.02, atol=0.02)
    torch.testing.assert_close(heads, full.heads, rtol=0.1, atol=0.1)


def test_anchors_are_exact_in_lower_precision(detector):
    images, level = torch.empty(1, 3, 1024, 1024, dtype=torch.bfloat16), torch.empty(1, 1, 128, 128)
    levels = [level] + [torch.empty(1, 1, 64 >> shift, 64 >> shift) for shift in range(4)]
    exact = anchors_of(detector.anchor_generator, images, levels)
    coarse = anchors_of(detector.anchor_generator, images, [each.bfloat16() for each in levels])
    assert coarse.dtype == torch.float32
    assert torch.equal(coarse, exact)


def test_one_image_is_learned_by_heart():
    image, truth = scene()
    torch.manual_seed(0)
    detector = build_detector("retinanet_slim", 2, anchor_scale=0.25)
    overfit(detector, image, truth, steps=80, learning_rate=2e-3)
    assert ap50(detector.eval()(image, ((96, 96),)).detections[0], truth) == 1.0
