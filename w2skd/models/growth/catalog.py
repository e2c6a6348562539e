"""Grow a trained network into a larger one of its family."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from w2skd.errors import GrowthError
from w2skd.method.grow import Growth, Plan, Repeated, apply_plan
from w2skd.models.growth.matching import is_same_architecture
from w2skd.models.growth.residual import is_residual, plan_residual
from w2skd.models.growth.transformer import is_transformer, plan_transformer


class Family(NamedTuple):
    """Networks that can grow into each other.

    Attributes:
        name: plural noun for messages.
        includes: returns whether a network belongs to the family.
        plan: returns the plan for a student and a teacher of the same type; raises `GrowthError`.
    """

    name: str
    includes: Callable[[nn.Module], bool]
    plan: Callable[[nn.Module, nn.Module], Plan]


FAMILIES = (
    Family("residual networks", is_residual, plan_residual),
    Family("vision transformers", is_transformer, plan_transformer),
)


def grow(student: nn.Module, teacher: nn.Module, generator: torch.Generator) -> Growth:
    """Initialise a student from a trained teacher such that both compute the same function.

    Outputs agree up to rounding in eval mode, and also in train mode without dropout and stochastic depth.

    Args:
        student: freshly initialised, of the teacher's family and at least as large.
        teacher: has the student's number of classes. It is not changed.
        generator: random generator for the shares of repeated channels, on the CPU.

    Raises:
        GrowthError: the teacher cannot grow into the student. The student is then unchanged.
    """
    return apply_plan(_plan(student, teacher), student, teacher, generator)


def _plan(student: nn.Module, teacher: nn.Module) -> Plan:
    if is_same_architecture(student, teacher):
        return Plan({"": Repeated("")}, ("copied the teacher, which has the student's architecture",))
    for family in FAMILIES:
        if family.includes(student) and type(student) is type(teacher):
            return family.plan(student, teacher)
    kinds = [f"{type(each).__module__.partition('.')[0]}'s {type(each).__name__}" for each in (teacher, student)]
    if kinds[0] != kinds[1]:
        raise GrowthError(f"student: {kinds[0]} cannot grow into {kinds[1]}: use a teacher of the student's type")
    known = ", ".join(family.name for family in FAMILIES)
    raise GrowthError(f"student: {kinds[1]} cannot be grown; supported families: {known}")
