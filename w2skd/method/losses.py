"""Distillation losses that tasks share.

Shapes: N examples of the batch, C classes.
"""

import torch
from torch import Tensor
from torch.nn import functional


def distillation_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Compute T^2 * KL(teacher || student) of softened class distributions (Hinton et al. 2015, section 2.1).

    The factor T^2 cancels the gradient's 1/T^2, so the balance with the task loss does not depend on the temperature.

    Args:
        student_logits: [N, C], any floating dtype.
        teacher_logits: [N, C], any floating dtype; receives no gradient.
        temperature: T, above 0.

    Returns:
        0-d float32 in nats, summed over classes and averaged over the batch. It is computed in float32 from
        log-probabilities of both models, even under autocast.

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
    """Check that a student's and a teacher's tensor have the same shape and the given number of dimensions.

    Args:
        what: name of the tensors, for the error.
        student: the student's tensor.
        teacher: the teacher's tensor.
        wanted: the required shape in letters, for the error.
        dimensions: the required number of dimensions.

    Raises:
        ValueError: the shapes differ, or have another number of dimensions.
    """
    if student.shape != teacher.shape or student.ndim != dimensions:
        shapes = f"{list(student.shape)} and {list(teacher.shape)}"
        raise ValueError(f"student and teacher {what} must share one shape {wanted}, not {shapes}")
