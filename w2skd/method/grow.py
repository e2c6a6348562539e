"""Growing: initialise a larger network from a trained smaller one such that it computes the same function.

Width follows Net2Net (Chen et al. 2016, "Net2Net: Accelerating learning via knowledge transfer"): channels are
repeated, and the weights that read the copies of a channel share its weight. As in LEMON (Wang et al. 2023, "LEMON:
Lossless model expansion", arXiv 2310.07999), the shares differ, so that copies get different gradients. Depth adds
residual branches that output zero.

A `Plan` defines the initial value of each tensor of the student, and `apply_plan` writes the values. The plans for
families of models are next to the models. For two layers and a norm that become twice as wide:

    wider = interleaved(16, 32)
    plan = Plan({"": Repeated(""), "conv1": Repeated("conv1", outs=wider), "norm1": Repeated("norm1", outs=wider),
                 "conv2": Repeated("conv2", ins=wider)})
    growth = apply_plan(plan, student, teacher, torch.Generator().manual_seed(0))
    fill_running_statistics(student, growth.new_norms, lambda: student(next(batches)), passes=20)

Shapes: a layer of the student has O outputs and I inputs.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from w2skd.errors import GrowthError
from w2skd.method.channels import ChannelMap, fan_in_shares, small_size


@dataclass(frozen=True, eq=False)
class Repeated:
    """Rule for tensors that come from the teacher: one tensor, or all tensors of a module and its submodules.

    Attributes:
        source: name of the teacher's tensor or module; tensors in a module match by name.
        outs: map [O] of the outputs; None keeps them.
        ins: map [I] of the inputs of tensors with at least two dimensions; may contain `NEW`. None keeps them.
        outs_axis: axis of the outputs; tensors with one dimension use axis 0.
        ins_axis: axis of the inputs.
        factor: multiplies the tensors.
    """

    source: str
    outs: ChannelMap | None = None
    ins: ChannelMap | None = None
    outs_axis: int = 0
    ins_axis: int = 1
    factor: float = 1.0


@dataclass(frozen=True, eq=False)
class Added:
    """Rule for tensors that the teacher does not have: one tensor, or all tensors of a module and its submodules.

    Attributes:
        values: value by the tensor's name within the module, which is empty if the rule is for a tensor. All other
            tensors keep their initialisation.
    """

    values: Mapping[str, Tensor | float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Plan:
    """The initial values of a student's tensors.

    Attributes:
        rules: rule by name of a tensor or module of the student. The most specific name applies; the empty name stands
            for the whole student.
        notes: lines for the user.
    """

    rules: Mapping[str, Repeated | Added]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Growth:
    """What growing did to a student.

    Attributes:
        kind: ``warm start`` if all tensors are copies, else ``grown``.
        copied: number of tensors equal to the teacher's.
        widened: number of tensors whose channels are repeated or whose values are scaled.
        added: number of tensors that the teacher does not have.
        new_norms: names of the added norms whose running statistics `fill_running_statistics` should set.
        notes: lines for the user.
    """

    kind: Literal["grown", "warm start"]
    copied: int
    widened: int
    added: int
    new_norms: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The kind of growth and the number of tensors that were copied, widened and added, in one line."""
        what = "grown from the teacher" if self.kind == "grown" else "a warm start from the teacher"
        return f"{what}: {self.copied} tensors copied, {self.widened} widened, {self.added} added"


def apply_plan(plan: Plan, student: nn.Module, teacher: nn.Module, generator: torch.Generator) -> Growth:
    """Write a student's parameters and buffers in place.

    Args:
        plan: a rule for each of them.
        student: freshly initialised. Added tensors keep their values unless the plan sets them.
        teacher: the trained network. It is not changed.
        generator: random generator for the shares of repeated channels, on the CPU.

    Raises:
        GrowthError: the plan misses tensors of the student or of the teacher, or their sizes do not match. The student
            is then unchanged.
    """
    targets, sources = _tensors(student), _tensors(teacher)
    values: dict[str, Tensor] = {}
    counts = {"copied": 0, "widened": 0, "added": 0}
    used: set[str] = set()
    misnamed = {
        _joined(module, name) for module, rule in plan.rules.items() if isinstance(rule, Added) for name in rule.values
    }
    misnamed -= set(targets)
    assert not misnamed, f"the plan sets tensors that the student does not have: {misnamed}"
    for name, target in targets.items():
        rule, rest = _rule_of(name, plan)
        if isinstance(rule, Added):
            counts["added"] += 1
            if rest in rule.values:
                values[name] = torch.as_tensor(rule.values[rest], dtype=target.dtype).expand(target.shape)
            continue
        source = _joined(rule.source, rest)
        if source not in sources:
            raise GrowthError(f"student: {name} should come from {source}, which the teacher does not have")
        used.add(source)
        values[name], is_copy = _repeated(sources[source], rule, generator)
        counts["copied" if is_copy else "widened"] += 1
        if values[name].shape != target.shape:
            raise GrowthError(
                f"student: {name} has shape {list(target.shape)}, but {source} of the teacher gives "
                f"{list(values[name].shape)}: use models of one family"
            )
    if len(used) < len(sources):
        unused = [name for name in sources if name not in used]
        raise GrowthError(
            f"teacher: the student has no counterpart of {len(unused)} tensors, the first of which is {unused[0]}: "
            "use a student that is at least as large"
        )
    with torch.no_grad():
        for name, value in values.items():
            targets[name].copy_(value)
    grown = counts["widened"] + counts["added"] > 0
    return Growth(
        "grown" if grown else "warm start", **counts, new_norms=tuple(_new_norms(student, plan)), notes=plan.notes
    )


def silent_branch(student: nn.Module, last: str, norm: str | None) -> dict[str, Added]:
    """Plan the end of an added residual branch such that the branch outputs zero and can still be trained.

    The norm's scale starts at zero. If the norm has fixed statistics and no trained scale, the scale would stay zero
    forever, so the last layer's weights start at zero instead. The same holds for branches without a norm.

    Args:
        student: the network.
        last: name of the branch's last convolution or linear layer.
        norm: name of the norm after it, if any.

    Raises:
        GrowthError: the norm has neither a trained scale nor fixed statistics. It would normalise the branch's output
            to unit variance after one step.
    """
    layer_at_zero = _zeros(student.get_submodule(last), "weight", "bias")
    if norm is None:
        return {last: layer_at_zero}
    module = student.get_submodule(norm)
    scale = getattr(module, "weight", None)
    if isinstance(scale, Tensor) and scale.requires_grad:
        return {norm: _zeros(module, "weight", "bias")}
    if not _has_fixed_statistics(module):
        raise GrowthError(
            f"student: {norm} has no trained scale, so its block cannot start as the identity: use a norm with a scale"
        )
    identity = {**_zeros(module, "running_mean", "bias").values}
    identity |= {name: 1.0 for name in ("running_var", "weight") if name in _tensors(module)}
    return {last: layer_at_zero, norm: Added(identity)}


def fill_running_statistics(
    model: nn.Module, norms: Collection[str], forward: Callable[[], object], passes: int
) -> None:
    """Set the running mean and variance of the given norms to their average over forward passes in train mode.

    If these norms are frozen, they use batch statistics during the passes, so that the norms after them get normalised
    inputs. No other state changes: other buffers, gradients, train and eval modes and random generators stay the same
    bit for bit. After an error, the given norms are restored as well.

    Args:
        model: the network.
        norms: names of norms with running statistics, such as `Growth.new_norms`. Their ``num_batches_tracked`` becomes
            `passes`.
        forward: runs the model on the next training batch.
        passes: number of batches.
    """
    if not norms:
        return
    assert passes > 0, passes
    chosen = [norm for norm in map(model.get_submodule, norms) if isinstance(norm, _NormBase)]
    assert len(chosen) == len(norms), norms
    assert all(norm.running_mean is not None for norm in chosen), norms
    own = {id(buffer) for norm in chosen for buffer in norm.buffers(recurse=False)}
    kept = [(buffer, buffer.clone()) for buffer in model.buffers() if id(buffer) not in own]
    before = [(buffer, buffer.clone()) for norm in chosen for buffer in norm.buffers(recurse=False)]
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in chosen]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    try:
        with torch.no_grad(), torch.random.fork_rng(list(devices)):
            model.train()
            for norm in chosen:
                norm.training, norm.momentum = True, None  # no momentum: PyTorch averages over all passes
                norm.reset_running_stats()
            for _ in range(passes):
                forward()
    except BaseException:
        kept += before
        raise
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
        for module, training in modes.items():
            module.training = training
        for norm, momentum in zip(chosen, momenta, strict=True):
            norm.momentum = momentum


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a state dict without detaching them."""
    return {name: each for name, each in network.state_dict(keep_vars=True).items() if isinstance(each, Tensor)}


def _rule_of(name: str, plan: Plan) -> tuple[Repeated | Added, str]:
    """Return the rule for a tensor, and the tensor's name within the module of the rule."""
    parts = name.split(".")
    for count in range(len(parts), -1, -1):
        rule = plan.rules.get(".".join(parts[:count]))
        if rule is not None:
            return rule, ".".join(parts[count:])
    raise GrowthError(f"student: the teacher has no counterpart of {name}")


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _repeated(tensor: Tensor, rule: Repeated, generator: torch.Generator) -> tuple[Tensor, bool]:
    """Return the student's tensor on the CPU (float64 if its values were scaled) and whether it is a plain copy."""
    outs_axis = rule.outs_axis if tensor.dim() > 1 else 0
    value, is_copy = tensor.detach().cpu(), rule.factor == 1.0
    if rule.outs is not None and tensor.dim() > 0 and not _is_identity(rule.outs, tensor.shape[outs_axis]):
        value, is_copy = _select(value, outs_axis, rule.outs, rule.source), False
    if rule.ins is not None and tensor.dim() > 1 and not _is_identity(rule.ins, tensor.shape[rule.ins_axis]):
        value, is_copy = _select(value, rule.ins_axis, rule.ins.clamp(min=0), rule.source), False
        shares = fan_in_shares(value.shape[outs_axis], rule.ins, generator)
        value = value.double() * _along(shares, value.dim(), rule)
    return value if rule.factor == 1.0 else value.double() * rule.factor, is_copy


def _is_identity(channels: ChannelMap, size: int) -> bool:
    return torch.equal(channels, torch.arange(size))


def _select(tensor: Tensor, axis: int, channels: ChannelMap, source: str) -> Tensor:
    if small_size(channels) != tensor.shape[axis]:
        raise GrowthError(
            f"teacher: {source} has {tensor.shape[axis]} channels on axis {axis}, not {small_size(channels)}"
        )
    return tensor.index_select(axis, channels)


def _along(shares: Tensor, dimensions: int, rule: Repeated) -> Tensor:
    """Reshape shares [O, I] so that they broadcast to a weight."""
    first, second = rule.outs_axis, rule.ins_axis
    shape = [1] * dimensions
    shape[first], shape[second] = shares.shape
    if second % dimensions < first % dimensions:
        shares = shares.T
    return shares.reshape(shape)


def _zeros(module: nn.Module, *names: str) -> Added:
    return Added({name: 0.0 for name in names if name in _tensors(module)})


def _has_fixed_statistics(norm: nn.Module) -> bool:
    """Return whether a norm uses its running statistics in train mode as well."""
    if "running_mean" not in _tensors(norm):
        return False
    if not isinstance(norm, _NormBase):
        return True
    before = norm.training
    norm.train()
    fixed, norm.training = not norm.training, before
    return fixed


def _new_norms(student: nn.Module, plan: Plan) -> list[str]:
    """Return the names of the added norms whose running statistics the plan does not set."""
    found = []
    for name, module in student.named_modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            rule, rest = _rule_of(_joined(name, "running_mean"), plan)
            if isinstance(rule, Added) and rest not in rule.values:
                found.append(name)
    return found
