"""Plans to grow vision transformers in depth and in width.

Depth: the teacher's blocks become the first blocks, and both residual branches of an added block output zero.

Width: all channels are repeated equally often, with copies next to each other, which keeps the statistics of LayerNorm.
Attention gets more heads of the same size, because the scale of the attention scores depends on the size of a head.
MLPs may grow to any number of hidden units.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from w2skd.errors import GrowthError
from w2skd.method.channels import ChannelMap, check_whole_multiple, concatenated, in_blocks, interleaved
from w2skd.method.grow import Added, Plan, Repeated, silent_branch
from w2skd.models.growth.matching import check_classes, check_same_layers
from w2skd.models.vit import CifarVit

Rules = dict[str, Repeated | Added]

_SIZES = (
    *("num_features", "head_hidden_size", "embed_dim", "num_heads", "attn_dim", "latent_dim"),  # of timm
    *("hidden_dim", "mlp_dim", "kdim", "vdim"),  # of torchvision and torch
)
"""Attributes that hold sizes, which may differ."""


class _Layout(NamedTuple):
    """Names in a vision transformer. All names but `blocks`, `heads` and `classifier` are relative to a block.

    Attributes:
        blocks: the sequence of blocks.
        types: types of the block (key: empty name) and of its parts.
        attention: the attention module.
        projection: the output projection of the attention.
        mlp: first and last layer of the MLP.
        heads: possible linear layers that read tokens after the blocks.
        classifier: the layer with one output per class.
        scales: optional LayerScale modules at the end of both residual branches.
    """

    blocks: str
    types: Mapping[str, str]
    attention: str
    projection: str
    mlp: tuple[str, str]
    heads: tuple[str, ...]
    classifier: str
    scales: tuple[str, str] | None = None


_OF_TIMM = _Layout(
    blocks="blocks",
    types={"": "Block", "attn": "Attention", "mlp": "Mlp"},
    attention="attn",
    projection="attn.proj",
    mlp=("mlp.fc1", "mlp.fc2"),
    heads=("head", "head_dist"),
    classifier="head",
    scales=("ls1", "ls2"),
)
_LAYOUTS: dict[type[nn.Module], _Layout] = {
    CifarVit: _Layout(
        blocks="blocks",
        types={"": "TransformerEncoderLayer", "self_attn": "MultiheadAttention"},
        attention="self_attn",
        projection="self_attn.out_proj",
        mlp=("linear1", "linear2"),
        heads=("head",),
        classifier="head",
    ),
    VisionTransformer: _Layout(
        blocks="encoder.layers",
        types={"": "EncoderBlock", "self_attention": "MultiheadAttention", "mlp": "MLPBlock"},
        attention="self_attention",
        projection="self_attention.out_proj",
        mlp=("mlp.0", "mlp.3"),
        heads=("heads.pre_logits", "heads.head"),
        classifier="heads.head",
    ),
}
"""Class -> layout. Subclasses may compute something else, so they don't count."""


def is_transformer(model: nn.Module) -> bool:
    """Return whether a model is a CIFAR ViT, or a ViT or DeiT of torchvision or timm."""
    return _layout(model) is not None


def plan_transformer(student: nn.Module, teacher: nn.Module) -> Plan:
    """Plan the initial values of a vision transformer.

    Args:
        student: a model for which `is_transformer` is true.
        teacher: a model of the same type.

    Raises:
        GrowthError: the teacher cannot grow into the student.
    """
    layout = _layout(student)
    assert layout is not None, type(student)
    check_classes(student, teacher, layout.classifier)
    _check_tokens(student, teacher)
    added, notes = _added_blocks(student, teacher, layout)
    width, widths = _width(student, teacher, layout)
    heads = {
        name: _heads(f"{name}.{layout.attention}", _blocks(student, layout)[name], block, layout)
        for name, block in _blocks(teacher, layout).items()
    }
    check_same_layers(student, teacher, may_differ=_SIZES)
    rules: Rules = {}
    sources = dict(teacher.named_modules())
    for name, module in _owners(student):
        block = next((each for each in (*heads, *added) if name.startswith(f"{each}.")), None)
        if block in added:
            continue
        pair = module, sources.get(name, nn.Identity())
        ours, theirs = (", ".join(_shapes(each)) or "nothing" for each in pair)
        if ours != theirs:
            raise GrowthError(f"student: {name or 'it'} has {ours}, the teacher's {theirs}: use models of one family")
        if _shapes(pair[0]) == _shapes(pair[1]):
            tensors = [f"{name}.{tensor}" if name else tensor for tensor in _shapes(module)]
            rules |= {tensor: Repeated(tensor) for tensor in tensors}
        elif block is None:
            rules |= _outside(name, pair, width, layout)
        else:
            rules |= _in_block(name, name.removeprefix(f"{block}."), pair, (width, heads[block]), layout)
    if width is not None:
        notes = (*notes, "width: {} became {}".format(*widths))
    hidden = [_first_block(each, layout).get_submodule(layout.mlp[0]).out_features for each in (teacher, student)]
    if hidden[0] != hidden[1]:
        notes = (*notes, "hidden units: {} became {}".format(*hidden))
    return Plan({**rules, **added}, notes)


def _layout(model: nn.Module) -> _Layout | None:
    for module, name in (
        ("timm.models.vision_transformer", "VisionTransformer"),
        ("timm.models.deit", "VisionTransformerDistilled"),
    ):
        loaded = sys.modules.get(module)  # loaded if the model is from there; timm is optional
        if loaded is not None and type(model) is getattr(loaded, name):
            return _OF_TIMM
    return _LAYOUTS.get(type(model))


def _check_tokens(student: nn.Module, teacher: nn.Module) -> None:
    """Check that the embeddings outside the blocks have the same number of tokens.

    Raises:
        GrowthError: the numbers differ.
    """
    theirs = dict(teacher.named_parameters())
    for name, parameter in student.named_parameters():
        if parameter.dim() == 3 and name in theirs and parameter.shape[1] != theirs[name].shape[1]:
            raise GrowthError(
                f"student: its {name} is for {parameter.shape[1]} tokens, the teacher's for {theirs[name].shape[1]}: "
                "use the same image size and the same patch size"
            )


def _added_blocks(student: nn.Module, teacher: nn.Module, layout: _Layout) -> tuple[Rules, tuple[str, ...]]:
    ours, theirs = _blocks(student, layout), _blocks(teacher, layout)
    for name, block in ours.items():
        for part, expected in layout.types.items():
            kind = type(block.get_submodule(part)).__name__
            if kind != expected:
                raise GrowthError(f"student: {name} has a {kind}, which cannot be grown: use a model with {expected}")
    if len(ours) < len(theirs):
        raise GrowthError(
            f"student: it has {len(ours)} blocks, the teacher {len(theirs)}: the student must be at least as deep"
        )
    rules: Rules = {}
    for name in list(ours)[len(theirs) :]:
        rules[name] = Added()
        for index, last in enumerate((layout.projection, layout.mlp[1])):
            scale = None if layout.scales is None else f"{name}.{layout.scales[index]}"
            if scale is not None and hasattr(student.get_submodule(scale), "gamma"):
                rules[scale] = Added({"gamma": 0.0})
            else:
                rules |= silent_branch(student, f"{name}.{last}", None)
    return rules, (f"blocks: {len(theirs)} became {len(ours)}",) if rules else ()


def _width(student: nn.Module, teacher: nn.Module, layout: _Layout) -> tuple[ChannelMap | None, tuple[int, int]]:
    """Return the map of the tokens' channels (None if their number is equal), and both numbers, the teacher's first."""
    small, large = (
        _first_block(each, layout).get_submodule(layout.projection).out_features for each in (teacher, student)
    )
    check_whole_multiple("student: its width", small, large)
    return (None if small == large else interleaved(small, large)), (small, large)


def _heads(name: str, block: Any, its: Any, layout: _Layout) -> ChannelMap:
    """Return the map of the attention channels of a block.

    Raises:
        GrowthError: the student's heads have another size, or are fewer.
    """
    heads, its_heads = (each.get_submodule(layout.attention).num_heads for each in (block, its))
    channels, its_channels = (each.get_submodule(layout.projection).in_features for each in (block, its))
    size, its_size = channels // heads, its_channels // its_heads
    if size != its_size:
        raise GrowthError(
            f"student: {name} has {heads} heads of {size} channels, the teacher's {its_heads} of {its_size}: "
            f"heads must keep their size: use {channels // its_size} heads of {its_size} channels"
        )
    if heads < its_heads:
        raise GrowthError(f"student: {name} has {heads} heads, the teacher's {its_heads}: use at least as many")
    return in_blocks(interleaved(its_heads, heads), size)


def _in_block(
    name: str, within: str, pair: tuple[Any, Any], maps: tuple[ChannelMap | None, ChannelMap], layout: _Layout
) -> Rules:
    """Plan a layer within a block, if the size of the layer changes.

    Args:
        name: name of the layer.
        within: its name within the block.
        pair: the student's layer and the teacher's.
        maps: maps of the tokens' channels and of the attention channels.
        layout: names in the network.
    """
    module, its = pair
    width, inner = maps
    queries_keys_values = concatenated([inner] * 3)
    if within == layout.mlp[0]:
        return {name: Repeated(name, _hidden(name, its.out_features, module.out_features), width)}
    if within == layout.mlp[1]:
        return {name: Repeated(name, width, _hidden(name, its.in_features, module.in_features))}
    if within == layout.projection:
        return {name: Repeated(name, width, inner)}
    if within == f"{layout.attention}.qkv":
        return {name: Repeated(name, queries_keys_values, width)}
    if within == layout.attention:
        tensors = (f"{name}.in_proj_weight", f"{name}.in_proj_bias")
        return {tensor: Repeated(tensor, queries_keys_values, width) for tensor in tensors}
    if "." not in within and _has_vectors_only(module):
        return {name: Repeated(name, width)}
    raise _cannot_be_widened(name, module)


def _outside(name: str, pair: tuple[nn.Module, nn.Module], width: ChannelMap | None, layout: _Layout) -> Rules:
    """Plan a layer, embeddings or extra tokens outside the blocks, if their size changes."""
    module, its = pair
    shapes = _shapes(module)
    if all(len(shape) == 3 for shape in shapes.values()):
        tensors = [f"{name}.{tensor}" if name else tensor for tensor in shapes]
        return {tensor: Repeated(tensor, width, outs_axis=-1) for tensor in tensors}
    if name in layout.heads:
        return {name: Repeated(name, ins=width)}
    is_stem = isinstance(module, nn.Conv2d) and module.in_channels == getattr(its, "in_channels", None)
    if is_stem or _has_vectors_only(module):
        return {name: Repeated(name, width)}
    raise _cannot_be_widened(name, module)


def _hidden(name: str, small: int, large: int) -> ChannelMap:
    if large < small:
        raise GrowthError(f"student: {name} has {large} hidden units, the teacher's {small}: use at least as many")
    return interleaved(small, large)


def _blocks(model: nn.Module, layout: _Layout) -> dict[str, nn.Module]:
    children = model.get_submodule(layout.blocks).named_children()
    return {f"{layout.blocks}.{name}": block for name, block in children}


def _first_block(model: nn.Module, layout: _Layout) -> Any:
    return next(iter(_blocks(model, layout).values()))


def _owners(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules with parameters or buffers of their own."""
    return ((name, module) for name, module in model.named_modules() if _shapes(module))


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return {name: tuple(tensor.shape) for name, tensor in tensors}


def _has_vectors_only(module: nn.Module) -> bool:
    return all(len(shape) == 1 for shape in _shapes(module).values())


def _cannot_be_widened(name: str, module: nn.Module) -> GrowthError:
    kind = type(module).__name__
    return GrowthError(f"student: {name}, a {kind}, cannot be widened: use a student of the teacher's width")
