"""Distillation losses of detection against float64 references, hand-computed values and finite differences."""

import math

import pytest
import torch

from w2skd.tasks.detection.losses import dense_distillation, proposal_distillation, region_distillation


def reference(student, teacher, temperature):
    p, q = (torch.exp(z / temperature) for z in (teacher.double(), student.double()))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    total = sum(
        p[n, c] * (torch.log(p[n, c]) - torch.log(q[n, c])) for n in range(p.shape[0]) for c in range(p.shape[1])
    )
    return temperature**2 * total / p.shape[0]


def draw(seed, *shape, scale=2.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def dense(seed, images=2, anchors=5, classes=3):
    """Student's and teacher's logits, then their deltas; the teacher is sure of few anchors."""
    logits = (images, anchors, classes)
    return [
        *(draw(seed, *logits) - 2, draw(seed + 1, *logits) - 2),
        *(draw(seed + 2, images, anchors, 4), draw(seed + 3, images, anchors, 4)),
    ]


def regions(seed, count=6, classes=3):
    logits, deltas = (count, classes + 1), (count, classes + 1, 4)
    return [draw(seed, *logits), draw(seed + 1, *logits), draw(seed + 2, *deltas), draw(seed + 3, *deltas)]


def in_float32(tensors):
    return [tensor.float() for tensor in tensors]


def sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


def smooth_l1(a, b, beta=1 / 9):
    distance = abs(a - b)
    return distance**2 / (2 * beta) if distance < beta else distance - beta / 2


def dense_reference(student_logits, teacher_logits, student_deltas, teacher_deltas, focus):
    images, anchors, classes = student_logits.shape
    total = of_class = of_box = 0.0
    for n in range(images):
        for a in range(anchors):
            weight = max(sigmoid(logit) for logit in teacher_logits[n, a].tolist()) ** focus
            total += weight
            for k in range(classes):
                p, q = sigmoid(teacher_logits[n, a, k].item()), sigmoid(student_logits[n, a, k].item())
                of_class += weight * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
            for ours, theirs in zip(student_deltas[n, a].tolist(), teacher_deltas[n, a].tolist(), strict=True):
                of_box += weight * smooth_l1(ours, theirs)
    return {"class": of_class / max(total, images), "box": of_box / max(total, images)}


def region_reference(student_logits, teacher_logits, student_deltas, teacher_deltas, temperature):
    of_box = 0.0
    for p, row in enumerate(teacher_logits.tolist()):
        exponentials = [math.exp(logit) for logit in row]
        likeliest = max(range(1, len(row)), key=row.__getitem__)
        foreground = sum(exponentials[1:]) / sum(exponentials)
        for ours, theirs in zip(student_deltas[p, likeliest], teacher_deltas[p, likeliest], strict=True):
            of_box += foreground * smooth_l1(ours.item(), theirs.item())
    of_class = reference(student_logits, teacher_logits, temperature).item()
    return {"class": of_class, "box": of_box / len(teacher_logits)}


def slopes(function, tensor, part):
    """Gradient of a reference by finite differences; restores the tensor."""
    gradient, step, flat = torch.zeros_like(tensor), 1e-6, tensor.view(-1)
    for place in range(flat.numel()):
        value = flat[place].item()
        flat[place] = value + step
        above = function()[part]
        flat[place] = value - step
        gradient.view(-1)[place] = (above - function()[part]) / (2 * step)
        flat[place] = value
    return gradient


@pytest.mark.parametrize("focus", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("anchors", [5, 40])
def test_dense_equals_the_float64_reference(focus, anchors):
    tensors = dense(20, anchors=anchors)
    losses = dense_distillation(*in_float32(tensors), focus=focus)
    assert {name: (loss.dtype, loss.shape) for name, loss in losses.items()} == dict.fromkeys(
        ("class", "box"), (torch.float32, ())
    )
    expected = dense_reference(*tensors, focus)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-5)


def test_dense_worked_out_by_hand():
    # One anchor an image, c = 1/2 and 1/4; KL(1/2 || 1/4) = 1/2 ln 2 + 1/2 ln 2/3 = 0.143841, KL(1/4 || 1/4) = 0.
    teacher = torch.tensor([[[0.5]], [[0.25]]]).logit()
    student = torch.tensor([[[0.25]], [[0.25]]]).logit()
    deltas = torch.zeros(2, 1, 4)
    losses = dense_distillation(student, teacher, deltas, deltas + torch.tensor([1.0, 0.0, 0.0, 0.0]), focus=1.0)
    # The weights' sum is 3/4, less than the two images.
    assert losses["class"].item() == pytest.approx(0.5 * 0.143841 / 2, abs=1e-6)
    assert losses["box"].item() == pytest.approx(0.75 * (1 - 1 / 18) / 2, abs=1e-6)


@pytest.mark.parametrize("part", ["class", "box"])
def test_dense_gradient_equals_finite_differences_of_the_reference(part):
    tensors = dense(24, anchors=3, classes=2)
    variables = [tensor.float().requires_grad_() for tensor in tensors]
    dense_distillation(*variables)[part].backward()
    place = {"class": 0, "box": 2}[part]
    expected = slopes(lambda: dense_reference(*tensors, 2.0), tensors[place], part)
    torch.testing.assert_close(variables[place].grad.double(), expected, atol=1e-5, rtol=1e-4)
    assert expected.abs().max() > 1e-3
    assert [variable.grad is None or not variable.grad.any() for variable in variables] == [
        place != each for each in range(4)
    ]


def test_dense_is_zero_where_both_agree():
    logits, _, deltas, _ = in_float32(dense(28))
    assert dense_distillation(logits, logits, deltas, deltas) == {"class": 0.0, "box": 0.0}


def test_anchors_without_an_object_change_nothing():
    tensors = in_float32(dense(32, anchors=40))
    plain = dense_distillation(*tensors)
    padding = [torch.full((2, 9, 3), -3.0), torch.full((2, 9, 3), -40.0), torch.ones(2, 9, 4), torch.zeros(2, 9, 4)]
    padded = dense_distillation(*(torch.cat(pair, dim=1) for pair in zip(tensors, padding, strict=True)))
    torch.testing.assert_close(padded, plain)


def test_the_order_of_images_and_anchors_and_repeated_images_change_nothing():
    tensors = in_float32(dense(36))
    plain = dense_distillation(*tensors)
    for changed in (
        [tensor.flip(0) for tensor in tensors],
        [tensor.flip(1) for tensor in tensors],
        [tensor.repeat(3, 1, 1) for tensor in tensors],
    ):
        torch.testing.assert_close(dense_distillation(*changed), plain)


def test_much_background_does_not_drown_the_objects():
    """The loss of a student that is right on objects is far below that of one that is right on background."""
    teacher = torch.full((1, 20_000, 1), 0.003).logit()
    teacher[:, :10] = torch.tensor(0.7).logit()
    background_right, objects_right = teacher.clone(), torch.full_like(teacher, 0.01).logit()
    background_right[:, :10] = torch.tensor(0.01).logit()
    objects_right[:, :10] = teacher[:, :10]
    deltas = torch.zeros(1, 20_000, 4)
    losses = [
        dense_distillation(student, teacher, deltas, deltas)["class"].item()
        for student in (background_right, objects_right)
    ]
    assert losses[0] > 100 * losses[1]


def test_a_teacher_without_confident_anchors_has_little_weight():
    student, teacher = torch.zeros(2, 7, 3, requires_grad=True), torch.full((2, 7, 3), -60.0)
    deltas = torch.ones(2, 7, 4, requires_grad=True)
    losses = dense_distillation(student, teacher, deltas, torch.zeros(2, 7, 4))
    (losses["class"] + losses["box"]).backward()
    assert max(loss.item() for loss in losses.values()) < 1e-12
    assert student.grad.isfinite().all()
    assert deltas.grad.isfinite().all()


def test_dense_stays_finite_at_extreme_logits():
    student = torch.tensor([[[200.0, -200.0, 0.0]]], requires_grad=True)
    deltas = torch.zeros(1, 1, 4)
    loss = dense_distillation(student, torch.tensor([[[-200.0, 200.0, 0.0]]]), deltas, deltas)["class"]
    loss.backward()
    assert loss.item() == pytest.approx(400.0)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(("loss", "draw_some"), [(dense_distillation, dense), (region_distillation, regions)])
def test_detection_in_bf16_under_autocast_is_computed_in_float32(loss, draw_some):
    tensors = [tensor.bfloat16() for tensor in draw_some(40)]
    with torch.autocast("cpu", torch.bfloat16):
        losses = loss(*tensors)
    assert {each.dtype for each in losses.values()} == {torch.float32}
    torch.testing.assert_close(losses, loss(*in_float32(tensors)))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_regions_equal_the_float64_reference(temperature):
    tensors = regions(44)
    losses = region_distillation(*in_float32(tensors), temperature)
    expected = region_reference(*tensors, temperature)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-5)
    assert {(loss.dtype, loss.shape) for loss in losses.values()} == {(torch.float32, ())}


@pytest.mark.parametrize("part", ["class", "box"])
def test_region_gradient_equals_finite_differences_of_the_reference(part):
    tensors = regions(48, count=3, classes=2)
    variables = [tensor.float().requires_grad_() for tensor in tensors]
    region_distillation(*variables, 2.0)[part].backward()
    place = {"class": 0, "box": 2}[part]
    expected = slopes(lambda: region_reference(*tensors, 2.0), tensors[place], part)
    torch.testing.assert_close(variables[place].grad.double(), expected, atol=1e-5, rtol=1e-4)
    assert expected.abs().max() > 1e-3
    assert variables[1].grad is None
    assert variables[3].grad is None


def test_boxes_of_regions_that_are_background_to_the_teacher_do_not_count():
    student, teacher, ours, theirs = in_float32(regions(52))
    teacher[:, 0] = 200.0
    assert region_distillation(student, teacher, ours, theirs)["box"].item() == 0
    teacher[:, 0] = -100.0
    likeliest = teacher[:, 1:].argmax(dim=1) + 1
    theirs = ours.clone()
    theirs[torch.arange(6), likeliest, 2] += 1.0
    assert region_distillation(student, teacher, ours, theirs)["box"].item() == pytest.approx(1 - 1 / 18)


def test_regions_are_a_mean_in_any_order():
    tensors = in_float32(regions(56))
    plain = region_distillation(*tensors)
    torch.testing.assert_close(region_distillation(*(tensor.flip(0) for tensor in tensors)), plain)
    torch.testing.assert_close(region_distillation(*(torch.cat([tensor] * 4) for tensor in tensors)), plain)


def test_no_regions_give_zero_loss_with_gradients():
    tensors = [tensor[:0].float().requires_grad_() for tensor in regions(60)]
    losses = region_distillation(*tensors)
    assert losses == {"class": 0.0, "box": 0.0}
    (losses["class"] + losses["box"]).backward()
    assert tensors[0].grad is not None


def test_parts_of_both_stages_have_their_names():
    first, second = in_float32(dense(64, classes=1)), in_float32(regions(68))
    student, teacher = (
        {
            "objectness": first[who][..., 0],
            "rpn_deltas": first[2 + who],
            "class_logits": second[who],
            "box_deltas": second[2 + who],
            "proposals": [],
        }
        for who in (0, 1)
    )
    losses = proposal_distillation(student, teacher, temperature=2.0, focus=1.0)
    of_first, of_second = dense_distillation(*first, focus=1.0), region_distillation(*second, 2.0)
    assert losses == {"objectness": of_first["class"], "rpn_box": of_first["box"], **of_second}


@pytest.mark.parametrize(
    ("loss", "shapes", "message"),
    [
        (dense_distillation, [(2, 5, 3), (2, 6, 3), (2, 5, 4), (2, 5, 4)], "logits must share one shape"),
        (dense_distillation, [(5, 3), (5, 3), (5, 4), (5, 4)], "logits must share one shape"),
        (dense_distillation, [(2, 5, 3), (2, 5, 3), (2, 5, 4), (1, 5, 4)], "deltas must have the shape"),
        (dense_distillation, [(2, 5, 3), (2, 5, 3), (2, 6, 4), (2, 6, 4)], "deltas must have the shape"),
        (region_distillation, [(6, 4), (5, 4), (6, 4, 4), (6, 4, 4)], "logits must share one shape"),
        (region_distillation, [(6, 4), (6, 4), (6, 16), (6, 16)], "deltas must have the shape"),
        (region_distillation, [(6, 1), (6, 1), (6, 1, 4), (6, 1, 4)], "no class beside the background"),
    ],
)
def test_mismatched_shapes_are_refused(loss, shapes, message):
    with pytest.raises(ValueError, match=message):
        loss(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("focus", [-1.0, float("nan")])
def test_an_invalid_focus_is_refused(focus):
    with pytest.raises(ValueError, match="focus"):
        dense_distillation(*in_float32(dense(72)), focus=focus)
