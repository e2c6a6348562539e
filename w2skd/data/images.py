"""Labelled images in memory, class-balanced subsets and hold-outs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from w2skd.data.counter import bits
from w2skd.errors import DataError

_FINGERPRINT_BLOCK = 1024
"""Images hashed at once, so that a set on a device is never copied as a whole."""


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation per channel of pixels scaled to [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images of one size.

    Attributes:
        images: uint8 [N, 3, H, W], RGB.
        labels: int64 [N], indices into `classes`.
        classes: names of the classes.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        assert len(shape) == 4, f"images {shape}"
        assert shape[1] == 3, f"images {shape}"
        assert self.labels.shape == shape[:1], f"labels {tuple(self.labels.shape)} of images {shape}"
        assert self.images.dtype is torch.uint8, f"images {self.images.dtype}"
        assert self.labels.dtype is torch.int64, f"labels {self.labels.dtype}"

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> "ImageSet":
        """Return the examples at these int64 indices, in this order."""
        return ImageSet(self.images[indices], self.labels[indices], self.classes)

    def to(self, device: torch.device) -> "ImageSet":
        """Return the same examples on a device, without copying those that are already on it."""
        return ImageSet(self.images.to(device), self.labels.to(device), self.classes)

    def fingerprint(self) -> str:
        """Return the SHA-256 (hexadecimal) of shape, pixels, labels and class names."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        for start in range(0, len(self), _FINGERPRINT_BLOCK):
            digest.update(self.images[start : start + _FINGERPRINT_BLOCK].cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def balanced_subset(labels: Tensor, count: int, seed: int) -> Tensor:
    """Draw `count` examples with equal numbers per class, as far as the classes suffice.

    A smaller subset with the same seed is a prefix of a larger one.

    Args:
        labels: int64 [N] on the CPU.
        count: size of the subset.
        seed: seed of the draw.

    Returns:
        int64 [count], indices in the order of the draw.

    Raises:
        DataError: there are fewer than `count` examples.
    """
    if count > len(labels):
        raise DataError(f"{count} examples requested, but only {len(labels)} exist")
    rounds = torch.empty_like(labels)
    for members in _shuffled_members(labels, seed):
        rounds[members] = torch.arange(len(members))
    # Stable sorts, least significant key first: the order of the classes differs from round to round.
    order = torch.argsort(bits(seed, rounds, labels), stable=True)
    order = order[torch.argsort(rounds[order], stable=True)]
    return order[:count]


def split_validation(labels: Tensor, classes: Sequence[str], share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out the same share of each class, at least one example.

    Args:
        labels: int64 [N] on the CPU.
        classes: names of the classes, for errors.
        share: share of each class to hold out, in (0, 1).
        seed: seed of the draw.

    Returns:
        int64 indices of the training examples and of the held-out examples, both ascending.

    Raises:
        DataError: a class has fewer than two examples.
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    for members in _shuffled_members(labels, seed):
        if len(members) < 2:
            name = classes[int(labels[members[0]])]
            raise DataError(f"class '{name}' has only one example; holding out for validation needs two")
        held[members[: min(max(1, round(share * len(members))), len(members) - 1)]] = True
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()


def _shuffled_members(labels: Tensor, seed: int) -> list[Tensor]:
    """Return the indices of each class, in a random order that depends only on seed and index."""
    order = torch.argsort(bits(seed, torch.arange(len(labels))), stable=True)
    return [order[labels[order] == label] for label in torch.unique(labels)]
