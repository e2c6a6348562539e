"""Grow a trained detector into one with a deeper body."""

import torch
from torch import nn

from w2skd.errors import GrowthError, RecipeError
from w2skd.method.grow import Growth, Plan, Repeated, apply_plan
from w2skd.models.growth.matching import check_same_layers, is_same_architecture
from w2skd.models.growth.residual import OF_FOUR_LAYERS, added_blocks, torchvision_end
from w2skd.tasks.detection.models.catalog import Detector, check_same_grid
from w2skd.tasks.detection.models.norm import FrozenBatchNorm

_BODY = "backbone.body"


def grow_detector(student: Detector, teacher: Detector, generator: torch.Generator) -> Growth:
    """Initialise a student from a trained teacher such that both compute the same function.

    Outputs agree up to rounding in eval mode. They also agree in train mode, unless batch normalisation is frozen in
    only one of the two.

    Args:
        student: freshly initialised. Its body has the teacher's architecture, or is a deeper ResNet of the same blocks.
        teacher: a detector of the student's family with the same anchors and classes. It is not changed.
        generator: random generator of growing, on the CPU. Growing in depth draws no numbers.

    Raises:
        GrowthError: the teacher cannot grow into the student. The student is then unchanged.
    """
    ours, theirs = type(student).__name__, type(teacher).__name__
    if ours != theirs:
        raise GrowthError(f"student: a {theirs} cannot grow into a {ours}: use one family for both")
    try:
        check_same_grid(student, teacher)
    except RecipeError as error:
        raise GrowthError(str(error)) from error
    return apply_plan(_plan(student, teacher), student, teacher, generator)


def _plan(student: Detector, teacher: Detector) -> Plan:
    notes = _notes_on_norm(student, teacher)
    if is_same_architecture(student, teacher):
        return Plan({"": Repeated("")}, ("copied the teacher, which has the student's architecture", *notes))
    stages = tuple(f"{_BODY}.{stage}" for stage in OF_FOUR_LAYERS)
    for who, detector in (("student", student), ("teacher", teacher)):
        if not hasattr(detector.backbone.body, OF_FOUR_LAYERS[0]):
            raise GrowthError(
                f"{who}: its body is not a ResNet, so it cannot grow: use the same body for student and teacher"
            )
    added, lines = added_blocks(student, teacher, stages, torchvision_end)
    check_same_layers(student, teacher)
    return Plan({"": Repeated(""), **added}, (*lines, *notes))


def _notes_on_norm(student: nn.Module, teacher: nn.Module) -> tuple[str, ...]:
    ours, theirs = (
        any(isinstance(module, FrozenBatchNorm) for module in each.modules()) for each in (student, teacher)
    )
    if ours == theirs:
        return ()
    frozen, other = ("student", "teacher") if ours else ("teacher", "student")
    return (f"batch normalisation is frozen in the {frozen} and not in the {other}: outputs agree in eval mode only",)
