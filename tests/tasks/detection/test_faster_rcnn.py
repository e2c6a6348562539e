import math

import pytest
import torch
from little_scene import ap50, boxes_of, overfit, scene
from torchvision.ops import box_iou

from w2skd.method.teacher import FrozenTeacher
from w2skd.tasks.detection.models.anchors import anchors_of
from w2skd.tasks.detection.models.catalog import build_detector

SIZES = ((64, 96), (50, 70))
ANCHORS = 3 * (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2)
TARGETS = [boxes_of([[5, 5, 30, 40], [20, 20, 60, 60]], [0, 2]), boxes_of([], [])]


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return build_detector("fasterrcnn_slim", 3, anchor_scale=0.25).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def test_training_gives_losses_and_heads(detector, images):
    losses, heads, detections = detector.train()(images, SIZES, TARGETS)
    detector.eval()
    assert {name: loss.shape for name, loss in losses.items()} == dict.fromkeys(
        ("objectness", "rpn_box", "class", "box"), ()
    )
    proposals = heads.pop("proposals")
    assert [len(each) for each in proposals] == [64, 64]
    assert {name: head.shape for name, head in heads.items()} == {
        "objectness": (2, ANCHORS),
        "rpn_deltas": (2, ANCHORS, 4),
        "class_logits": (128, 4),
        "box_deltas": (128, 4, 4),
    }
    assert detections == []
    sum(losses.values()).backward()
    assert [name for name, parameter in detector.named_parameters() if parameter.grad is None] == []
    detector.zero_grad()


def test_training_samples_hold_the_targets(detector, images):
    proposals = detector(images, SIZES, TARGETS).heads["proposals"]
    assert box_iou(TARGETS[0].boxes, proposals[0]).amax(dim=1).tolist() == pytest.approx([1.0, 1.0])


def test_images_without_boxes_train(detector, images):
    losses = detector(images, SIZES, [boxes_of([], [])] * 2).losses
    assert losses["box"].item() == losses["rpn_box"].item() == 0
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in detector.parameters())
    detector.zero_grad()


def test_the_class_loss_is_the_cross_entropy_with_the_background_first(detector, images):
    """With one image that shows nothing, all samples are background, class 0."""
    losses, heads, _ = detector(images[:1], SIZES[:1], [boxes_of([], [])])
    expected = -heads["class_logits"].log_softmax(dim=1)[:, 0].mean()
    torch.testing.assert_close(losses["class"], expected)


def test_proposals_are_the_first_stages_heads_decoded_by_hand(detector, images):
    with torch.no_grad():
        heads = detector(images, SIZES).heads
        anchors = anchors_of(detector.rpn.anchor_generator, images, list(detector.backbone(images).values()))
    assert anchors.shape == (ANCHORS, 4)
    for n, (height, width) in enumerate(SIZES):
        best = heads["objectness"][n].argmax()
        decoded = decode(anchors[best].tolist(), heads["rpn_deltas"][n, best].tolist(), (1, 1))
        assert heads["proposals"][n][0].tolist() == pytest.approx(clipped(decoded, height, width), abs=1e-3)


def test_detections_are_the_second_stages_heads_decoded_by_hand(detector, images):
    with torch.no_grad():
        _, heads, detections = detector(images, SIZES)
    first = 0
    for (boxes, scores, labels), proposals, (height, width) in zip(detections, heads["proposals"], SIZES, strict=True):
        assert len(boxes) > 10
        assert (scores[:-1] >= scores[1:]).all()
        assert set(labels.tolist()) <= {0, 1, 2}
        shares = heads["class_logits"][first : first + len(proposals)].softmax(dim=1)
        for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
            alike = torch.where((shares[:, label + 1] - score).abs() < 1e-6)[0].tolist()
            candidates = [
                clipped(
                    decode(proposals[p].tolist(), heads["box_deltas"][first + p, label + 1].tolist(), (10, 5)),
                    height,
                    width,
                )
                for p in alike
            ]
            assert any(box == pytest.approx(each, abs=1e-3) for each in candidates)
        first += len(proposals)


def decode(box, deltas, weights):
    x1, y1, x2, y2 = box
    dx, dy, dw, dh = (
        delta / weight for delta, weight in zip(deltas, (weights[0],) * 2 + (weights[1],) * 2, strict=True)
    )
    width, height = (x2 - x1) * math.exp(dw), (y2 - y1) * math.exp(dh)
    x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def clipped(box, height, width):
    x1, y1, x2, y2 = box
    return [min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)]


def test_a_teacher_is_asked_about_its_students_proposals(detector, images):
    torch.manual_seed(5)
    teacher = FrozenTeacher(build_detector("fasterrcnn_slim", 3, anchor_scale=0.25), device="cpu")
    student = detector(images, SIZES, TARGETS).heads
    losses, heads, detections = teacher(images, SIZES, None, student["proposals"], False)
    assert (losses, detections) == ({}, [])
    assert {name: heads[name].shape for name in heads if name != "proposals"} == {
        name: student[name].shape for name in student if name != "proposals"
    }
    for ours, theirs in zip(student["proposals"], heads["proposals"], strict=True):
        assert torch.equal(ours, theirs)
    assert not any(head.requires_grad or head.is_inference() for head in (heads["class_logits"], heads["objectness"]))


def test_the_same_detector_says_the_same_of_the_same_proposals(detector, images):
    with torch.no_grad():
        own = detector(images, SIZES)
        asked = detector(images, SIZES, None, own.heads["proposals"])
    torch.testing.assert_close(asked.heads, own.heads, rtol=0, atol=0)
    torch.testing.assert_close(asked.detections, own.detections, rtol=0, atol=0)


def test_a_first_stage_without_proposals_finds_nothing(detector, images):
    found = detector(images, SIZES, None, [torch.zeros(0, 4)] * 2).detections
    assert [(each.boxes.shape, each.labels.shape) for each in found] == [((0, 4), (0,))] * 2


def test_regions_are_cut_at_the_right_place_from_images_much_smaller_than_their_padding(detector):
    """Images of 33 px within 64 px: judged by the former, strides of 4 px would look like 2."""
    image = torch.zeros(1, 3, 64, 64)
    image[:, :, :33, :33] = torch.randn(1, 3, 33, 33, generator=torch.Generator().manual_seed(3))
    proposals = [torch.tensor([[2.0, 3.0, 20.0, 30.0], [8.0, 8.0, 16.0, 24.0]])]
    logits = []
    for size_px in (33, 64):
        torch.manual_seed(0)
        fresh = build_detector("fasterrcnn_slim", 3, anchor_scale=0.25).eval()
        with torch.no_grad():
            logits.append(fresh(image, ((size_px, size_px),), None, proposals, False).heads["class_logits"])
    assert torch.equal(*logits)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_lower_precision_is_for_convolutions_only(detector, images, precision):
    proposals = [torch.tensor([[2.0, 3.0, 20.0, 30.0]]), torch.tensor([[8.0, 8.0, 16.0, 24.0]])]
    with torch.no_grad(), torch.autocast("cpu", precision):
        losses = detector(images, SIZES, TARGETS).losses
        _, heads, found = detector(images, SIZES, None, proposals)
    with torch.no_grad():
        full = detector(images, SIZES, None, proposals)
    tensors = (heads["class_logits"], heads["box_deltas"], heads["objectness"], *(each.boxes for each in found))
    assert {tensor.dtype for tensor in (*losses.values(), *tensors)} == {torch.float32}
    assert all(loss.isfinite() for loss in losses.values())
    torch.testing.assert_close(heads, full.heads, rtol=0.1, atol=0.1)


def test_each_model_trains_on_its_own_proposals(detector, images):
    with pytest.raises(AssertionError, match="own proposals"):
        detector(images, SIZES, TARGETS, [torch.zeros(0, 4)] * 2)


def test_one_image_is_learned_by_heart():
    image, truth = scene()
    torch.manual_seed(0)
    detector = build_detector("fasterrcnn_slim", 2, anchor_scale=0.25)
    overfit(detector, image, truth, steps=80, learning_rate=2e-3)
    assert ap50(detector.eval()(image, ((96, 96),)).detections[0], truth) == 1.0
