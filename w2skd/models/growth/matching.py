"""Check that the layers of a teacher and of the student that it grows into agree in everything but their sizes."""

from collections.abc import Collection
from typing import Any

from torch import nn

from w2skd.errors import GrowthError

_FREE = {
    *("in_channels", "out_channels", "in_features", "out_features", "num_features", "num_channels"),
    *("normalized_shape", "training", "inplace", "momentum", "p", "drop_prob"),
    *("dropout", "attention_dropout", "drop_rate", "grad_checkpointing", "init_values", "weight_init_mode", "fix_init"),
}
"""Attributes that may differ: sizes, which the tensors show, and settings without effect in eval mode or after
initialisation."""

_PASS_IN_EVAL_MODE = ("Identity", "Dropout", "Dropout2d", "DropPath", "DropBlock2d", "StochasticDepth")


def check_same_layers(student: nn.Module, teacher: nn.Module, *, may_differ: Collection[str] | None = None) -> None:
    """Check that the student has every module of the teacher, of the same type and settings, such as strides.

    Sizes, dropout and momenta may differ. Batch normalisation may be frozen in one of them.

    Args:
        student: the larger network.
        teacher: the smaller one.
        may_differ: further attributes, such as sizes, that may differ in modules with submodules. None compares only
            the types of these modules.

    Raises:
        GrowthError: a module is missing or differs. The message names the first difference.
    """
    ours = dict(student.named_modules())
    for name, theirs in teacher.named_modules():
        if type(theirs).__name__ in _PASS_IN_EVAL_MODE:
            continue
        if name not in ours:
            raise GrowthError(
                f"teacher: the student has no counterpart of {name}: use a student of the same family that is at least "
                "as large"
            )
        here, there = (_traits(each, may_differ) for each in (ours[name], theirs))
        for trait in here:
            if here[trait] != there.get(trait):
                raise GrowthError(
                    f"student: {name or 'it'} has {trait} {here[trait]}, the teacher's {there.get(trait)}: "
                    "use models of one family"
                )


def is_same_architecture(student: nn.Module, teacher: nn.Module) -> bool:
    """Return whether two networks have the same modules, settings and tensor shapes."""
    if [name for name, _ in student.named_modules()] != [name for name, _ in teacher.named_modules()]:
        return False
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (student, teacher)]
    if shapes[0] != shapes[1]:
        return False
    try:
        check_same_layers(student, teacher, may_differ=())  # finds what no shape shows, such as the number of heads
    except GrowthError:
        return False
    return True


def check_classes(student: nn.Module, teacher: nn.Module, head: str) -> None:
    """Check that the classifiers of both networks have the same number of outputs.

    Args:
        student: the larger network.
        teacher: the smaller one.
        head: name of the classifier layer in both.

    Raises:
        GrowthError: the numbers differ.
    """
    ours, theirs = (getattr(each.get_submodule(head), "out_features", None) for each in (student, teacher))
    if ours != theirs:
        raise GrowthError(
            f"student: it has {ours} classes, the teacher {theirs}: use a teacher with the student's classes"
        )


def _traits(module: nn.Module, may_differ: Collection[str] | None) -> dict[str, Any]:
    """Return the type of a module and its simple public attributes; see `check_same_layers` for `may_differ`."""
    is_batch_norm = isinstance(module, nn.BatchNorm2d)
    traits: dict[str, Any] = {"type": "BatchNorm2d" if is_batch_norm else type(module).__name__}
    is_leaf = next(module.children(), None) is None
    if is_leaf or may_differ is not None:
        free = _FREE if is_leaf or may_differ is None else _FREE.union(may_differ)
        traits |= {
            name: value
            for name, value in vars(module).items()
            if not name.startswith("_") and name not in free and isinstance(value, bool | int | float | str | tuple)
        }
    return traits
