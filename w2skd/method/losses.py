"""The distillation losses: pure functions of a student's and a teacher's tensors.

Shape letters: N examples of the batch, C classes; S x S px; of detectors A anchors of one image, K classes without the
background, P proposals of all images.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def distillation_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) between softened class distributions (Hinton et al. 2015, section 2.1).

    T^2 makes up for the gradient's 1/T^2, so that the loss keeps its place beside the task loss at any temperature.

    Args:
        student_logits: [N, C], any floating dtype.
        teacher_logits: [N, C]; no gradient flows to it.
        temperature: T, above 0.

    Returns:
        0-d float32 in nats: the sum over classes, the mean over the batch. Computed in float32 from log-probabilities
        on both sides, also within autocast.

    Raises:
        ValueError: the shapes differ or are not [N, C], or the temperature is not above 0.
    """
    _require_shape("logits", student_logits, teacher_logits, "[N, C]", 2)
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} is not above 0")
    with torch.autocast(student_logits.device.type, enabled=False):
        student = functional.log_softmax(student_logits.float() / temperature, dim=1)
        teacher = functional.log_softmax(teacher_logits.detach().float() / temperature, dim=1)
        return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


_SMOOTH_L1_BETA = 1 / 9
"""Where torchvision's box losses turn from squared to absolute differences, in units of deltas."""


def dense_distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_deltas: Tensor,
    teacher_deltas: Tensor,
    *,
    focus: float = 2.0,
) -> dict[str, Tensor]:
    """What a teacher says of every anchor: class by class, and where the box is.

    An anchor counts w = c^focus, c being the teacher's confidence there: its highest class probability. Of a hundred
    thousand anchors nearly all are background, and with c of a few thousandths each would together outweigh the few
    with an object at focus 1; at 2 they don't. The sums are divided by the sum of w, but at least by N, one sure anchor
    an image: a teacher that is confident nowhere says little, instead of little being blown up.

    Args:
        student_logits: [N, A, K], of sigmoids, any floating dtype.
        teacher_logits: [N, A, K]; no gradient flows to it.
        student_deltas: [N, A, 4], offsets in the units in which the box loss has them.
        teacher_deltas: [N, A, 4]; no gradient flows to it.
        focus: 0 or more; 0 lets all anchors count the same.

    Returns:
        ``class``, the KL divergence from the student's to the teacher's Bernoulli distribution (the binary
        cross-entropy minus its least possible value), in nats, summed over classes; and ``box``, smooth L1 of the
        deltas, summed over the four. Both 0-d float32 and 0 where student and teacher agree, computed in float32 also
        within autocast.

    Raises:
        ValueError: the shapes don't fit, or `focus` is below 0.
    """
    _require_shape("logits", student_logits, teacher_logits, "[N, A, K]", 3)
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
    """What a teacher's box head says of the regions that the student's box head saw.

    Args:
        student_logits: [P, K + 1], of a softmax, the background first; any floating dtype. P may be 0.
        teacher_logits: [P, K + 1]; no gradient flows to it.
        student_deltas: [P, K + 1, 4], offsets for each class, in the units in which the box loss has them.
        teacher_deltas: [P, K + 1, 4]; no gradient flows to it.
        temperature: of ``class``, above 0.

    Returns:
        ``class``, the distributions' `distillation_kl`, a mean over P; and ``box``, smooth L1 of the deltas of the
        class that the teacher finds likeliest, the background aside, weighed by the probability that it gives to all
        classes but the background; summed over the four and, as Faster R-CNN's own box loss, divided by P. Both 0-d
        float32, computed in float32 also within autocast.

    Raises:
        ValueError: the shapes don't fit, or the temperature is not above 0.
    """
    _require_shape("logits", student_logits, teacher_logits, "[P, K + 1]", 2)
    _require_deltas(student_deltas, teacher_deltas, student_logits.shape)
    regions, classes = student_logits.shape
    if classes < 2:
        raise ValueError("logits hold no class beside the background")
    with torch.autocast(student_logits.device.type, enabled=False):
        if not regions:
            nothing = student_logits.float().sum() + student_deltas.float().sum()
            return {"class": nothing, "box": nothing}
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
    """What a two-stage teacher says, in both stages; its second one must have seen the student's proposals.

    Args:
        student: by name ``objectness`` [N, A], ``rpn_deltas`` [N, A, 4], ``class_logits`` [P, K + 1] and ``box_deltas``
            [P, K + 1, 4].
        teacher: the same; no gradient flows to it.
        temperature: see `region_distillation`.
        focus: see `dense_distillation`, the first stage's objectness being the only class.

    Returns:
        ``objectness`` and ``rpn_box`` of the first stage, ``class`` and ``box`` of the second.

    Raises:
        ValueError: as they do.
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
    """KL divergences from one Bernoulli distribution to another, summed over classes: [N, A, K] to [N, A].

    With q the student's probability and p the teacher's, p log(p/q) + (1 - p) log((1-p)/(1-q)) = p (t - s) +
    softplus(s) - softplus(t) in terms of logits, where no probability can round to 0 or 1. Written out, since on CPUs
    two softplus of all anchors took most of the time of this loss, and on all devices its derivative q - p needs a
    fraction of the memory that operation by operation would be kept.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, confidence: Tensor) -> Tensor:
        ctx.save_for_backward(student, confidence)
        # softplus(x) = max(x, 0) - log(sigmoid(|x|)), whose sigmoid is 1/2 at least.
        ratio = teacher.abs().sigmoid_().div_(student.abs().sigmoid_()).log_()
        excess = ratio.add_(student.clamp(min=0)).sub_(teacher.clamp(min=0))
        return excess.addcmul_(confidence, teacher - student).sum(dim=2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        student, confidence = ctx.saved_tensors
        return student.sigmoid().sub_(confidence).mul_(gradient[..., None]), None, None


def _box_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 [...] between deltas [..., 4], summed over the four."""
    between = functional.smooth_l1_loss(
        student.float(), teacher.detach().float(), reduction="none", beta=_SMOOTH_L1_BETA
    )
    return between.sum(dim=-1)


def _require_shape(what: str, student: Tensor, teacher: Tensor, wanted: str, dimensions: int) -> None:
    if student.shape != teacher.shape or student.ndim != dimensions:
        shapes = f"{list(student.shape)} and {list(teacher.shape)}"
        raise ValueError(f"student and teacher {what} must share one shape {wanted}, not {shapes}")


def _require_deltas(student: Tensor, teacher: Tensor, of: torch.Size) -> None:
    if student.shape != teacher.shape or student.shape != (*of, 4):
        shapes = f"{list(student.shape)} and {list(teacher.shape)}"
        raise ValueError(f"student and teacher deltas must have the shape {[*of, 4]} of their logits, not {shapes}")
