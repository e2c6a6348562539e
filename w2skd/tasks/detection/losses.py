"""Distillation losses of object detection: pure functions of the student's and the teacher's head outputs.

Shapes: N images of the batch, A anchors per image, K classes without the background, P proposals of all images.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from w2skd.method.losses import distillation_kl, require_same_shape

_SMOOTH_L1_BETA = 1 / 9
"""Where torchvision's box losses switch from squared to absolute differences, in units of deltas."""


def dense_distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_deltas: Tensor,
    teacher_deltas: Tensor,
    *,
    focus: float = 2.0,
) -> dict[str, Tensor]:
    """Distill class probabilities and box offsets at every anchor.

    An anchor has the weight w = c^focus, where c is the teacher's confidence there: its highest class probability.
    Nearly all of a hundred thousand anchors are background with c of a few thousandths. At focus 1 they would together
    outweigh the few anchors with an object; at 2 they don't. The sums are divided by the sum of w, but at least by N
    (one confident anchor per image), so that the weak signal of a teacher without confident anchors is not amplified.

    Args:
        student_logits: [N, A, K], of sigmoids, any floating dtype.
        teacher_logits: [N, A, K]; no gradient flows to it.
        student_deltas: [N, A, 4], offsets in the units of the box loss.
        teacher_deltas: [N, A, 4]; no gradient flows to it.
        focus: 0 or more; 0 weights all anchors equally.

    Returns:
        ``class``, the KL divergence from the student's to the teacher's Bernoulli distribution (the binary
        cross-entropy minus its minimum) in nats, summed over classes; and ``box``, the smooth L1 loss of the deltas,
        summed over the four. Both are 0-d float32, 0 where student and teacher agree, and computed in float32 even
        within autocast.

    Raises:
        ValueError: the shapes don't match, or `focus` is below 0.
    """
    require_same_shape("logits", student_logits, teacher_logits, "[N, A, K]", 3)
    _require_deltas(student_deltas, teacher_deltas, student_logits.shape[:2])
    if not focus >= 0:
        raise ValueError(f"focus {focus} is below 0")
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = student_logits.float(), teacher_logits.detach().float()
        confidence = teacher.sigmoid()
        weights = confidence.amax(dim=2) ** focus
        total = weights.sum().clamp(min=len(weights))
        divergence: Tensor = _BernoulliKl.apply(student, teacher, confidence)
        distance = _box_distance(student_deltas, teacher_deltas)
        return {"class": (weights * divergence).sum() / total, "box": (weights * distance).sum() / total}


def region_distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_deltas: Tensor,
    teacher_deltas: Tensor,
    temperature: float = 1.0,
) -> dict[str, Tensor]:
    """Distill the box head's class probabilities and box offsets on the student's proposals.

    Args:
        student_logits: [P, K + 1], of a softmax, background first; any floating dtype. P may be 0.
        teacher_logits: [P, K + 1]; no gradient flows to it.
        student_deltas: [P, K + 1, 4], offsets per class in the units of the box loss.
        teacher_deltas: [P, K + 1, 4]; no gradient flows to it.
        temperature: of ``class``, above 0.

    Returns:
        ``class``, the `distillation_kl` of the distributions, a mean over P; and ``box``, the smooth L1 loss of the
        deltas of the teacher's most likely foreground class, weighted by the teacher's total foreground probability,
        summed over the four and divided by P like Faster R-CNN's own box loss. Both are 0-d float32 and computed in
        float32 even within autocast.

    Raises:
        ValueError: the shapes don't match, or the temperature is not above 0.
    """
    require_same_shape("logits", student_logits, teacher_logits, "[P, K + 1]", 2)
    _require_deltas(student_deltas, teacher_deltas, student_logits.shape)
    regions, classes = student_logits.shape
    if classes < 2:
        raise ValueError("logits hold no class beside the background")
    with torch.autocast(student_logits.device.type, enabled=False):
        if not regions:
            zero = student_logits.float().sum() + student_deltas.float().sum()
            return {"class": zero, "box": zero}
        teacher = teacher_logits.detach().float()
        likeliest = teacher[:, 1:].argmax(dim=1) + 1
        foreground = teacher.softmax(dim=1)[:, 1:].sum(dim=1)
        rows = torch.arange(regions, device=likeliest.device)
        distance = _box_distance(student_deltas[rows, likeliest], teacher_deltas[rows, likeliest])
        return {
            "class": distillation_kl(student_logits, teacher_logits, temperature),
            "box": (foreground * distance).sum() / regions,
        }


def proposal_distillation(
    student: Mapping[str, Any], teacher: Mapping[str, Any], *, temperature: float = 1.0, focus: float = 2.0
) -> dict[str, Tensor]:
    """Distill both stages of a two-stage detector; the teacher's second stage must have used the student's proposals.

    Args:
        student: head outputs by name: ``objectness`` [N, A], ``rpn_deltas`` [N, A, 4], ``class_logits`` [P, K + 1] and
            ``box_deltas`` [P, K + 1, 4].
        teacher: the same; no gradient flows to it.
        temperature: see `region_distillation`.
        focus: see `dense_distillation`, with objectness as the only class.

    Returns:
        ``objectness`` and ``rpn_box`` of the first stage, ``class`` and ``box`` of the second.

    Raises:
        ValueError: see `dense_distillation` and `region_distillation`.
    """
    first = dense_distillation(
        student["objectness"][..., None],
        teacher["objectness"][..., None],
        student["rpn_deltas"],
        teacher["rpn_deltas"],
        focus=focus,
    )
    second = region_distillation(
        student["class_logits"], teacher["class_logits"], student["box_deltas"], teacher["box_deltas"], temperature
    )
    return {"objectness": first["class"], "rpn_box": first["box"], **second}


class _BernoulliKl(torch.autograd.Function):
    """KL divergence between Bernoulli distributions, summed over classes: [N, A, K] to [N, A].

    With the student's probability q and the teacher's p, p log(p/q) + (1 - p) log((1-p)/(1-q)) = p (t - s) +
    softplus(s) - softplus(t) in terms of logits, where no probability can round to 0 or 1. The derivative q - p is
    written out because autograd keeps several times the memory, and because on CPUs two softplus over all anchors
    dominate the cost of this loss.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, confidence: Tensor) -> Tensor:
        ctx.save_for_backward(student, confidence)
        # softplus(x) = max(x, 0) - log(sigmoid(|x|)), where the sigmoid is at least 1/2.
        ratio = teacher.abs().sigmoid_().div_(student.abs().sigmoid_()).log_()
        excess = ratio.add_(student.clamp(min=0)).sub_(teacher.clamp(min=0))
        return excess.addcmul_(confidence, teacher - student).sum(dim=2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        student, confidence = ctx.saved_tensors
        return student.sigmoid().sub_(confidence).mul_(gradient[..., None]), None, None


def _box_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 loss [...] of deltas [..., 4], summed over the four."""
    between = functional.smooth_l1_loss(
        student.float(), teacher.detach().float(), reduction="none", beta=_SMOOTH_L1_BETA
    )
    return between.sum(dim=-1)


def _require_deltas(student: Tensor, teacher: Tensor, of: torch.Size) -> None:
    if student.shape != teacher.shape or student.shape != (*of, 4):
        shapes = f"{list(student.shape)} and {list(teacher.shape)}"
        raise ValueError(f"student and teacher deltas must have the shape {[*of, 4]} of their logits, not {shapes}")
