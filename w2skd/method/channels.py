"""Channel maps: which channel of a small layer each channel of a larger layer copies, and how copies share weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from w2skd.errors import GrowthError

ChannelMap = Tensor
"""int64 [large]: for every channel of the larger layer, the channel of the smaller layer that it copies."""

NEW = -1
"""Marks an input without a counterpart in the smaller layer. The weights that read it start at zero."""

_LEAST_SHARE, _MOST_SHARE = 0.5, 1.5


def interleaved(small: int, large: int) -> ChannelMap:
    """Repeat every channel, with its copies next to each other: 2 to 4 gives 0, 0, 1, 1.

    If `large` is not a multiple of `small`, some channels are repeated once more than others.

    Raises:
        GrowthError: `large` is smaller.
    """
    _check_not_smaller(small, large)
    return torch.arange(large) * small // large


def tiled(small: int, large: int) -> ChannelMap:
    """Repeat all channels in turn: 2 to 4 gives 0, 1, 0, 1.

    Raises:
        GrowthError: `large` is smaller.
    """
    _check_not_smaller(small, large)
    return torch.arange(large) % small


def in_blocks(channels: ChannelMap, size: int) -> ChannelMap:
    """Repeat blocks of `size` consecutive channels, such as attention heads or flattened feature maps of `size` pixels.

    Args:
        channels: map of the blocks.
        size: channels per block.
    """
    return (channels[:, None] * size + torch.arange(size)).flatten()


def concatenated(parts: Sequence[ChannelMap]) -> ChannelMap:
    """Return the map of a concatenation of layers, each of which has its own map."""
    offset, moved = 0, []
    for part in parts:
        moved.append(part + offset)
        offset += small_size(part)
    return torch.cat(moved)


def small_size(channels: ChannelMap) -> int:
    """Return the number of channels of the smaller layer."""
    return int(channels.max()) + 1


def keeps_group_statistics(channels: ChannelMap, small_groups: int, large_groups: int) -> bool:
    """Return whether every group of the larger layer has the mean and variance of the group whose channels it repeats.

    That is the case if every larger group repeats the channels of one smaller group, each equally often. LayerNorm has
    one group.
    """
    small, large = small_size(channels), len(channels)
    if small % small_groups or large % large_groups:
        return False
    size = small // small_groups
    for group in channels.view(large_groups, -1):
        members, counts = group.unique(return_counts=True)
        is_one_group = len(members) == size and int(members[0]) % size == 0 and int(members[-1] - members[0]) < size
        if not (is_one_group and bool((counts == counts[0]).all())):
            return False
    return True


def check_whole_multiple(where: str, small: int, large: int) -> None:
    """Check that every channel can be repeated equally often.

    Args:
        where: name of the size for the message, such as ``student: blocks.0.norm1: its width``.
        small: the teacher's size.
        large: the student's size.

    Raises:
        GrowthError: the larger size is not a multiple of the smaller one. The message names the nearest valid sizes.
    """
    if large < small or large % small:
        multiple = max(large // small, 1)
        raise GrowthError(
            f"{where} is {large}, not a multiple of the teacher's {small}: "
            f"use {multiple * small} or {(multiple + 1) * small}"
        )


def fan_in_shares(outs: int, ins: ChannelMap, generator: torch.Generator) -> Tensor:
    """Draw the share of a channel's weight that each copy of the channel gets, independently for every output.

    With the same shares for all outputs, the copies would get proportional gradients, and Adam would keep them equal.

    Args:
        outs: number of outputs O.
        ins: map [I] of the inputs.
        generator: random generator on the CPU.

    Returns:
        float64 [O, I], zero for `NEW` inputs and positive elsewhere. For every output, the shares of the copies of a
        channel sum to 1; a channel that is not repeated has a share of exactly 1.
    """
    raw = torch.rand(outs, len(ins), dtype=torch.float64, generator=generator)
    raw = _LEAST_SHARE + (_MOST_SHARE - _LEAST_SHARE) * raw
    raw[:, ins == NEW] = 0.0
    sources = ins.clamp(min=0)
    sums = torch.zeros(outs, small_size(ins), dtype=torch.float64).index_add_(1, sources, raw)
    return raw / sums[:, sources]


def _check_not_smaller(small: int, large: int) -> None:
    if large < small:
        raise GrowthError(f"student: {large} channels cannot hold the teacher's {small}: use at least {small}")
