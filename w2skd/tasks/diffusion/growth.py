"""Grow a trained U-Net into one with more channels, more residual blocks per level, or both.

Channels: every channel is repeated r times at every level, with copies next to each other. The concatenation of a
hidden state and a skip is then repeated in the same way as its parts. Two settings without tensors follow the teacher:

- The student's norms have as many groups as the teacher's. Some groups of the concatenation of 2 C and C channels hold
  channels of both parts. With more groups, these channels would be grouped differently, which no weights can undo.
- The student's ``freq_shift`` is r times the teacher's. Then every r-th frequency of its time embedding,
  ``10000 ** (-i / (half - freq_shift))``, is one of the teacher's. (With the same shift the frequencies differ: the
  best linear fit at 1000 timesteps leaves an rms error of 0.3 in sines and cosines.)

Both are settings of diffusers' own configuration. `DenoisingUNet.settings_beside_weights` returns them for checkpoints.

Blocks: on the way down, the teacher's blocks become the first blocks of each level. Added blocks output their input, so
their skips equal the skip of the teacher's last block. On the way up, the first block reads the last skip and changes
the number of channels, so it is the teacher's first block. Added blocks follow it and ignore their skips. The teacher's
other blocks come last.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from w2skd.errors import GrowthError
from w2skd.method.channels import NEW, ChannelMap, check_whole_multiple, interleaved
from w2skd.method.grow import Added, Growth, Plan, Repeated, apply_plan, silent_branch
from w2skd.tasks.diffusion.noise_schedule import Converted
from w2skd.tasks.diffusion.unet import DenoisingUNet

_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D", "UNetMidBlock2D")

_SUPPORTED = {
    "time_embedding_type": ("positional",),
    "class_embed_type": (None,),
    "resnet_time_scale_shift": ("default", "scale_shift"),
}
"""Setting -> values with which U-Nets can be grown."""

_FREE = (
    *("sample_size", "dropout", "block_out_channels", "layers_per_block", "time_embedding_dim"),
    *("norm_num_groups", "freq_shift", "attention_head_dim"),
)
"""Settings that may differ, because they have no effect on the function or because growing handles them."""

_ADDED = 1
"""Index of the first added block in a level on the way up."""

Rules = dict[str, Repeated | Added]


def grow_unet(student: DenoisingUNet, teacher: nn.Module, generator: torch.Generator) -> Growth:
    """Initialise a student from a trained teacher such that both compute the same function.

    Outputs agree up to rounding in eval mode, and also in train mode without dropout. If the student has r times as
    many channels and r is not a power of 2, the time embeddings, and therefore the outputs, agree only up to rounding
    in float32, whatever the precision of the weights.

    Args:
        student: freshly initialised. Its ``norm_num_groups`` and ``freq_shift`` change; see the module's docstring.
        teacher: a U-Net with the student's prediction type and number of classes. It is not changed.
        generator: random generator for the shares of repeated channels, on the CPU.

    Raises:
        GrowthError: the teacher cannot grow into the student. The student is then unchanged.
    """
    if isinstance(teacher, Converted):
        raise GrowthError(
            "teacher: its prediction type differs from the student's: set diffusion.prediction to the teacher's"
        )
    if not isinstance(teacher, DenoisingUNet):
        raise GrowthError(f"teacher: a {type(teacher).__name__} cannot grow into a U-Net: use a U-Net")
    _check_settings(student, teacher)
    ratio = _ratio(student, teacher)
    plan = _plan(student, teacher, ratio)
    growth = apply_plan(plan, student, teacher, generator)
    groups, shift = teacher.config.norm_num_groups, teacher.config.freq_shift * ratio
    if student.settings_beside_weights() != {"norm_num_groups": groups, "freq_shift": shift}:
        student.set_beside_weights(norm_num_groups=groups, freq_shift=shift)
    return growth


def _check_settings(student: DenoisingUNet, teacher: DenoisingUNet) -> None:
    ours, theirs = _settings(student), _settings(teacher)
    for key, value in ours.items():
        if value != theirs[key]:
            raise GrowthError(f"student: its {key} is {value}, the teacher's {theirs[key]}: use the same for both")
    for kind in (ours["mid_block_type"], *ours["down_block_types"], *ours["up_block_types"]):
        if kind is not None and kind not in _BLOCKS:
            raise GrowthError(f"student: blocks of type {kind} cannot be grown; supported: {', '.join(_BLOCKS)}")
    for key, supported in _SUPPORTED.items():
        if ours[key] not in supported:
            known = " or ".join(str(value) for value in supported)
            raise GrowthError(f"student: its {key} is {ours[key]}: only U-Nets with {known} can be grown")


def _settings(model: DenoisingUNet) -> dict[str, Any]:
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in model.config.items()
        if not key.startswith("_") and key not in _FREE
    }


def _ratio(student: DenoisingUNet, teacher: DenoisingUNet) -> int:
    """Return the student's number of channels per channel of the teacher.

    Raises:
        GrowthError: the ratio is not a whole number, or differs between levels.
    """
    ours, theirs = (tuple(each.config.block_out_channels) for each in (student, teacher))
    check_whole_multiple("student: its number of channels", theirs[0], ours[0])
    ratio = int(ours[0] // theirs[0])
    wanted = tuple(ratio * channels for channels in theirs)
    if ours != wanted:
        raise GrowthError(
            f"student: its levels have {_listed(ours)} channels, the teacher's {_listed(theirs)}: "
            f"use the same ratio at every level, such as {_listed(wanted)}"
        )
    if theirs[0] % 2 and ratio > 1:
        raise GrowthError(f"teacher: its number of channels, {theirs[0]}, is odd: its time embedding cannot be widened")
    return ratio


def _plan(student: DenoisingUNet, teacher: DenoisingUNet, ratio: int) -> Plan:
    ours, theirs = student.config, teacher.config
    more = ours.layers_per_block - theirs.layers_per_block
    if more < 0:
        raise GrowthError(
            f"student: it has {ours.layers_per_block} residual blocks per level, the teacher "
            f"{theirs.layers_per_block}: the student must be at least as deep"
        )
    rules: Rules = {}
    sources = dict(teacher.named_modules())
    for name, module in student.named_modules():
        source = _source(name, more, theirs.layers_per_block)
        if source is None:
            rules |= _added_block(student, name) if re.fullmatch(r".+\.(resnets|attentions)\.\d+", name) else {}
        elif isinstance(module, nn.Conv2d | nn.Linear | nn.GroupNorm | nn.Embedding):
            rules[name] = _repeated(module, source, sources[source])
    rules |= _attention_rules(student, sources, more, theirs.layers_per_block)
    if ratio > 1:
        name = "time_embedding.linear_1"
        outs = interleaved(*(each.get_submodule(name).out_features for each in (teacher, student)))
        rules[name] = Repeated(name, outs, _frequencies(theirs.block_out_channels[0], ratio))
    return Plan(rules, _notes(ours, theirs, ratio))


def _source(name: str, more: int, blocks: int) -> str | None:
    """Return the name of a module in the teacher, or None if the module belongs to an added block.

    Args:
        name: name of the module in the student.
        more: number of added blocks per level.
        blocks: number of the teacher's blocks per level.
    """
    found = re.match(r"(?P<way>down|up)_blocks\.\d+\.(resnets|attentions)\.(?P<index>\d+)", name)
    if found is None:
        return name
    index = int(found["index"])
    if found["way"] == "down":
        return name if index < blocks else None
    if _ADDED <= index < _ADDED + more:
        return None
    moved = index if index < _ADDED else index - more
    return f"{name[: found.start('index')]}{moved}{name[found.end('index') :]}"


def _added_block(student: DenoisingUNet, name: str) -> Rules:
    """Plan an added residual block or attention such that it outputs its input; on the way up it ignores its skip."""
    if ".attentions." in name:
        return {name: Added(), **silent_branch(student, f"{name}.to_out.0", None)}
    rules: Rules = {name: Added(), **silent_branch(student, f"{name}.conv2", None)}
    shortcut = student.get_submodule(name).conv_shortcut
    if isinstance(shortcut, nn.Conv2d):
        identity = torch.eye(shortcut.out_channels, shortcut.in_channels)[:, :, None, None]
        rules[f"{name}.conv_shortcut"] = Added({"weight": identity, "bias": 0.0})
    return rules


def _repeated(module: nn.Module, source: str, its: nn.Module) -> Repeated:
    (outs, ins), (its_outs, its_ins) = _sizes(module), _sizes(its)
    return Repeated(
        source,
        None if outs == its_outs else interleaved(its_outs, outs),
        None if ins == its_ins else interleaved(its_ins, ins),
        outs_axis=1 if isinstance(module, nn.Embedding) else 0,
    )


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Return the numbers of outputs and of inputs; 0 inputs if the layer has none that are repeated."""
    match module:
        case nn.Conv2d():
            return module.out_channels, module.in_channels
        case nn.Linear():
            return module.out_features, module.in_features
        case nn.GroupNorm():
            return module.num_channels, 0
        case nn.Embedding():
            return module.embedding_dim, 0
    raise AssertionError(module)


def _attention_rules(student: DenoisingUNet, sources: Mapping[str, nn.Module], more: int, blocks: int) -> Rules:
    """Plan the projections of attention, head by head.

    With s times as many channels per head, attention scores grow by s / sqrt(s): the sum over channels has each product
    of query and key s times, and the sum is divided by the square root of the number of channels. To keep the scores,
    queries and keys are each divided by the fourth root of s.
    """
    rules: Rules = {}
    for name, module in student.named_modules():
        source = _source(name, more, blocks)
        if not hasattr(module, "to_q") or source is None:
            continue
        its: Any = sources[source]
        size, its_size = (each.to_q.out_features // each.heads for each in (module, its))
        check_whole_multiple(f"student: {name}: its number of heads", its.heads, module.heads)
        check_whole_multiple(f"student: {name}: its number of channels per head", its_size, size)
        inner = _heads(its.heads, module.heads, its_size, size)
        channels = _repeated(module.to_q, source, its.to_q).ins
        factor = (its_size / size) ** 0.25
        for part in ("to_q", "to_k", "to_v"):
            rules[f"{name}.{part}"] = Repeated(
                f"{source}.{part}", inner, channels, factor=1.0 if part == "to_v" else factor
            )
        rules[f"{name}.to_out.0"] = Repeated(f"{source}.to_out.0", channels, inner)
    return rules


def _heads(small: int, large: int, small_size: int, large_size: int) -> ChannelMap:
    """Return the map of the attention channels, given the numbers of heads and of channels per head."""
    within = interleaved(small_size, large_size)
    return (interleaved(small, large)[:, None] * small_size + within).flatten()


def _frequencies(channels: int, ratio: int) -> ChannelMap:
    """Return the map of the sines and cosines that the first layer of the time embedding reads."""
    positions = torch.arange(channels // 2 * ratio)
    is_old = positions % ratio == 0
    sines, cosines = (positions // ratio + offset for offset in (0, channels // 2))
    return torch.cat([sines.where(is_old, NEW), cosines.where(is_old, NEW)])


def _notes(ours: Mapping[str, Any], theirs: Mapping[str, Any], ratio: int) -> tuple[str, ...]:
    notes = []
    if ours["layers_per_block"] != theirs["layers_per_block"]:
        notes.append(f"residual blocks per level: {theirs['layers_per_block']} became {ours['layers_per_block']}")
    if ratio > 1:
        before, after = _listed(theirs["block_out_channels"]), _listed(ours["block_out_channels"])
        notes.append(f"channels per level: {before} became {after}")
    if not notes:
        notes.append("copied the teacher, which has the student's architecture")
    if ours["norm_num_groups"] != theirs["norm_num_groups"]:
        notes.append(f"norms have the teacher's {theirs['norm_num_groups']} groups, not {ours['norm_num_groups']}")
    if ours["freq_shift"] != theirs["freq_shift"] * ratio:
        shift = theirs["freq_shift"] * ratio
        notes.append(f"the time embedding has freq_shift {shift}, not {ours['freq_shift']}, to keep its frequencies")
    return tuple(notes)


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
