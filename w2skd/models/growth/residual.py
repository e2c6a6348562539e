"""Plans to grow convolutional residual networks in depth and in width.

Depth: the teacher's blocks become the first blocks of each stage, and added blocks start as the identity. Blocks with a
ReLU after the sum can be the identity too, because their input is the output of a ReLU and therefore not negative.

Width: copies of a channel are next to each other, so both sides of a sum and zero-padded shortcuts stay aligned.
"""

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import ResNet
from torchvision.ops import FrozenBatchNorm2d

from w2skd.errors import GrowthError
from w2skd.method.channels import ChannelMap, check_whole_multiple, interleaved, keeps_group_statistics
from w2skd.method.grow import Added, Plan, Repeated, silent_branch
from w2skd.models.cifar_resnet import CifarResNet
from w2skd.models.growth.matching import check_classes, check_same_layers
from w2skd.models.wide_resnet import WideResNet

Rules = dict[str, Repeated | Added]
BranchEnd = Callable[[nn.Module], tuple[str, str | None]]
"""Returns the names, within a block, of the last layer of its residual branch and of the norm after it."""

OF_THREE_STAGES = ("stage1", "stage2", "stage3")
OF_FOUR_LAYERS = ("layer1", "layer2", "layer3", "layer4")

_WITH_THESE_BLOCKS = {
    "BasicBlock": "a ResNet-18 can become a ResNet-34",
    "Bottleneck": "a ResNet-50 can become a ResNet-101, a ResNet-152 or a wide ResNet-50",
}


class _Layout(NamedTuple):
    """Names in a residual network: its stages, the ends of its residual branches, and its classifier."""

    stages: tuple[str, ...]
    branch_end: BranchEnd
    head: str


def torchvision_end(block: nn.Module) -> tuple[str, str | None]:
    """Return the names of the last convolution and norm of a residual block of torchvision or timm."""
    return ("conv3", "bn3") if hasattr(block, "conv3") else ("conv2", "bn2")


_LAYOUTS: dict[type[nn.Module], _Layout] = {
    CifarResNet: _Layout(OF_THREE_STAGES, lambda block: ("conv2", "norm2"), "head"),
    WideResNet: _Layout(OF_THREE_STAGES, lambda block: ("conv2", None), "head"),
    ResNet: _Layout(OF_FOUR_LAYERS, torchvision_end, "fc"),
}
"""Class -> layout. Subclasses may compute something else, so they don't count."""


def is_residual(model: nn.Module) -> bool:
    """Return whether a model is a CIFAR ResNet, a wide ResNet, or a ResNet of torchvision or timm."""
    return type(model) in _LAYOUTS or _is_from_timm(model)


def plan_residual(student: nn.Module, teacher: nn.Module) -> Plan:
    """Plan the initial values of a residual network.

    Args:
        student: a model for which `is_residual` is true.
        teacher: a model of the same type.

    Raises:
        GrowthError: the teacher cannot grow into the student.
    """
    if _is_from_timm(student):
        _check_plain(student)
    layout = _LAYOUTS.get(type(student), _LAYOUTS[ResNet])
    check_classes(student, teacher, layout.head)
    added, notes = added_blocks(student, teacher, layout.stages, layout.branch_end)
    check_same_layers(student, teacher)
    kept, widened = _widened(student, teacher, layout.head, tuple(added))
    if widened:
        notes = (*notes, f"repeated channels in {widened} layers")
    return Plan({**kept, **added}, notes)


def added_blocks(
    student: nn.Module, teacher: nn.Module, stages: tuple[str, ...], branch_end: BranchEnd
) -> tuple[Rules, tuple[str, ...]]:
    """Plan the blocks that follow the teacher's blocks at the end of each stage.

    Returns:
        The rules, and lines for the user.

    Raises:
        GrowthError: the student has fewer blocks, or blocks of another type.
    """
    rules: Rules = {}
    ours, theirs = ([_blocks(each, stage) for stage in stages] for each in (student, teacher))
    for stage, here, there in zip(stages, ours, theirs, strict=True):
        kind, its = type(here[0]).__name__, type(there[0]).__name__
        if kind != its:
            raise GrowthError(
                f"student: {stage} has blocks of type {kind}, the teacher's {its}: use the same type"
                + (f", {_WITH_THESE_BLOCKS[its]}" if its in _WITH_THESE_BLOCKS else "")
            )
        if len(here) < len(there):
            raise GrowthError(
                f"student: {stage} has {len(here)} blocks, the teacher's {len(there)}: "
                "the student must be at least as deep"
            )
        for index in range(len(there), len(here)):
            block = f"{stage}.{index}"
            last, norm = branch_end(here[index])
            rules[block] = Added()
            rules |= silent_branch(student, f"{block}.{last}", None if norm is None else f"{block}.{norm}")
    if not rules:
        return {}, ()
    depths = (", ".join(str(len(blocks)) for blocks in each) for each in (theirs, ours))
    return rules, ("blocks per stage: {} became {}".format(*depths),)


def _blocks(network: nn.Module, stage: str) -> list[nn.Module]:
    return list(network.get_submodule(stage).children())


def _widened(student: nn.Module, teacher: nn.Module, head: str, added: tuple[str, ...]) -> tuple[Rules, int]:
    """Plan the layers that both networks have; return the rules and the number of layers with repeated channels."""
    rules: Rules = {}
    widened = 0
    sources = dict(_layers(teacher))
    stem = next(name for name, module in _layers(student) if isinstance(module, nn.Conv2d))
    for name, layer in _layers(student):
        if any(name == each or name.startswith(f"{each}.") for each in added):
            continue
        if name not in sources:
            raise GrowthError(
                f"student: the teacher has no {name}, because it does not change the number of channels there: "
                "use a wider teacher, or a student of the teacher's width"
            )
        (outs, ins), (its_outs, its_ins) = _sizes(layer), _sizes(sources[name])
        if (outs, ins) == (its_outs, its_ins):
            rules[name] = Repeated(name)
            continue
        _check_can_widen(name, layer)
        outs_map = None if name == head else _map(f"{name}: its width", its_outs, outs)
        ins_map = None if name == stem or ins is None or its_ins is None else _map(f"{name}: its input", its_ins, ins)
        if isinstance(layer, nn.GroupNorm) and not keeps_group_statistics(
            interleaved(its_outs, outs), layer.num_groups, layer.num_groups
        ):
            check_whole_multiple(f"student: {name}: its width", its_outs, outs)
        rules[name] = Repeated(name, outs_map, ins_map)
        widened += 1
    return rules, widened


def _layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules with parameters or buffers of their own."""
    for name, module in network.named_modules():
        if any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False)):
            yield name, module


def _sizes(layer: nn.Module) -> tuple[int, int | None]:
    """Return the numbers of outputs and inputs of a layer; a norm has no separate inputs."""
    for name in ("weight", "running_mean"):
        tensor = getattr(layer, name, None)
        if tensor is not None:
            return tensor.shape[0], tensor.shape[1] if tensor.dim() > 1 else None
    return 0, None


def _check_can_widen(name: str, layer: nn.Module) -> None:
    known = (nn.Conv2d, nn.Linear, _BatchNorm, FrozenBatchNorm2d, nn.GroupNorm)
    if not isinstance(layer, known) or getattr(layer, "groups", 1) > 1:
        kind = "grouped convolution" if isinstance(layer, nn.Conv2d) else type(layer).__name__
        raise GrowthError(f"student: {name}, a {kind}, cannot be widened: use a student of the teacher's width")


def _map(what: str, small: int, large: int) -> ChannelMap:
    if large < small:
        raise GrowthError(
            f"student: {what} is {large}, less than the teacher's {small}: the student must be at least as wide"
        )
    return interleaved(small, large)


def _is_from_timm(model: nn.Module) -> bool:
    module = sys.modules.get("timm.models.resnet")  # loaded if the model is from there; timm is optional
    return module is not None and type(model) is module.ResNet


def _check_plain(model: nn.Module) -> None:
    """Check that a ResNet of timm differs from torchvision's only in its stem and shortcuts.

    Raises:
        GrowthError: it has channel attention, an activation other than ReLU, or concatenated pooling. Added blocks can
            be the identity only with an activation that does not change its own output.
    """
    for name, module in model.named_modules():
        if getattr(module, "se", None) is not None:
            raise GrowthError(f"student: {name} has channel attention: only timm's plain ResNets can be grown")
        last = name.rpartition(".")[2]
        if last.startswith("act") and not isinstance(module, nn.ReLU | nn.Identity):
            kind = type(module).__name__
            raise GrowthError(f"student: {name} is a {kind}, so an added block cannot start as the identity: use ReLU")
    if "cat" in str(getattr(model.global_pool, "pool_type", "")):
        raise GrowthError("student: its head reads concatenated poolings: only timm's plain ResNets can be grown")
