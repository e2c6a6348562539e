"""Distillation losses that tasks share: pure functions of the student's and the teacher's tensors.

Shape letters: N examples of the batch, C classes.
"""

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
    require_same_shape("logits", student_logits, teacher_logits, "[N, C]", 2)
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} is not above 0")
    with torch.autocast(student_logits.device.type, enabled=False):
        student = functional.log_softmax(student_logits.float() / temperature, dim=1)
        teacher = functional.log_softmax(teacher_logits.detach().float() / temperature, dim=1)
        return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def require_same_shape(what: str, student: Tensor, teacher: Tensor, wanted: str, dimensions: int) -> None:
    """Check that student and teacher tensors share one shape with that many dimensions.

    Raises:
        ValueError: they don't; the message names `what` they are and the `wanted` shape.
    """
    if student.shape != teacher.shape or student.ndim != dimensions:
        shapes = f"{list(student.shape)} and {list(teacher.shape)}"
        raise ValueError(f"student and teacher {what} must share one shape {wanted}, not {shapes}")
