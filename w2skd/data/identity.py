"""What identifies a data set, and which of its images occur more than once.

A set is identified by its names, labels and classes, and by the content of its images: of all of them if they are small
enough to read in seconds, else of a sample that is spread evenly over the set.

Shapes: N images of a set, n of them read.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_ALL_BYTES = 2**30
"""Sets up to this size are read as a whole."""

_PROBED = 64
"""Images whose size tells that of a set."""

_SAMPLED = 4096
"""Images read of a larger set."""

_THREADS = 8
_CHUNK = 256

_WORDS = {
    "images": "the number of images",
    "names": "their names",
    "classes": "the classes",
    "labels": "the labels",
    "boxes": "the boxes",
    "content": "the content of the images",
}


class Contents(Protocol):
    """Images with names and contents, as in `w2skd.data.examples.Examples`."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the name of an image."""
        ...

    def content(self, index: int) -> bytes:
        """Return what identifies an image."""
        ...


@dataclass(frozen=True)
class DataIdentity:
    """Identity of the training and the evaluation set.

    Attributes:
        facts: part (``training``, ``evaluation``) -> what identifies it -> number or hash.
        notes: how much was read, and images that occur more than once; one line each.
    """

    facts: Mapping[str, Mapping[str, int | str]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class IdentifiedSet:
    """One set with the digests of its images.

    Attributes:
        examples: N images.
        labels: int64 [N]; None if images have no single label.
        facts: what identifies the set.
        digests: of the images that were read.
        indices: of these images.
    """

    examples: Contents
    labels: Tensor | None
    facts: Mapping[str, int | str]
    digests: Sequence[bytes]
    indices: Sequence[int]

    @property
    def is_whole(self) -> bool:
        """Whether all images were read."""
        return len(self.indices) == len(self.examples)


def identify(training: IdentifiedSet, evaluation: IdentifiedSet) -> DataIdentity:
    """Combine the identities of both sets and search for repeated images, where all were read."""
    notes = []
    for part, one in (("training", training), ("evaluation", evaluation)):
        if one.is_whole:
            notes += _repeated(part, one)
        else:
            notes.append(
                f"the {len(one.examples):,} {part} images are identified by all names and the content of "
                f"{len(one.indices):,}, spread evenly; repeated images were not searched for"
            )
    if training.is_whole and evaluation.is_whole:
        notes += _shared(training, evaluation)
    return DataIdentity({"training": training.facts, "evaluation": evaluation.facts}, tuple(notes))


def identify_set(
    examples: Contents, classes: Sequence[str], *, labels: Tensor | None = None, boxes: Iterable[Tensor] = ()
) -> IdentifiedSet:
    """Read and hash a set.

    Args:
        examples: N images.
        classes: names of the classes.
        labels: int64 [N]; None if images have no single label.
        boxes: tensors with all that the annotations say.

    Raises:
        DataError: an image cannot be read.
    """
    indices = _read_indices(examples)
    digests = _digests(examples, indices)
    names = hashlib.sha256()
    for index in range(len(examples)):
        names.update(f"{examples.name(index)}\n".encode(errors="surrogatepass"))
    facts: dict[str, int | str] = {
        "images": len(examples),
        "names": names.hexdigest()[:16],
        "classes": hashlib.sha256(repr(tuple(classes)).encode()).hexdigest()[:16],
        "content": hashlib.sha256(b"".join(digests)).hexdigest()[:16],
        "content_of": len(indices),
    }
    for key, tensors in (("labels", [] if labels is None else [labels]), ("boxes", list(boxes))):
        if tensors:
            digest = hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors))
            facts[key] = digest.hexdigest()[:16]
    return IdentifiedSet(examples, labels, facts, digests, indices)


def differing_data(
    before: Mapping[str, Mapping[str, int | str]], after: Mapping[str, Mapping[str, int | str]]
) -> str | None:
    """Describe in what two identities differ, in words; None if they are equal."""
    parts = []
    for part in before.keys() & after.keys():
        keys = [key for key in _WORDS if before[part].get(key) != after[part].get(key)]
        if keys:
            parts.append(f"{part} set: {', '.join(_WORDS[key] for key in keys)}")
    return "; ".join(sorted(parts, reverse=True)) or None


def _read_indices(examples: Contents) -> Sequence[int]:
    """Return the images to read: all of them, or a sample of a large set."""
    count = len(examples)
    probes = _spread(count, _PROBED)
    mean = sum(len(examples.content(index)) for index in probes) / max(1, len(probes))
    return range(count) if mean * count <= _ALL_BYTES else _spread(count, _SAMPLED)


def _spread(count: int, most: int) -> Sequence[int]:
    if count <= most:
        return range(count)
    return [(count - 1) * place // (most - 1) for place in range(most)]


def _digests(examples: Contents, indices: Sequence[int]) -> list[bytes]:
    def digest(chunk: Sequence[int]) -> list[bytes]:
        return [hashlib.sha256(examples.content(index)).digest()[:16] for index in chunk]

    chunks = [indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as pool:  # network file systems answer slowly, but many at once
        return [found for part in pool.map(digest, chunks) for found in part]


def _repeated(part: str, one: IdentifiedSet) -> list[str]:
    known: dict[bytes, int] = {}
    pairs = [(i, known[digest]) for i, digest in enumerate(one.digests) if known.setdefault(digest, i) != i]
    if not pairs:
        return []
    line = f"{len(pairs):,} of {len(one.examples):,} {part} images repeat another one {_example(pairs[0], one, one)}"
    other_label = 0
    if one.labels is not None:
        repeated, first = torch.tensor(pairs).unbind(1)
        other_label = int((one.labels[repeated] != one.labels[first]).sum())
    return [line + (f"; {other_label:,} of them under another class" if other_label else "")]


def _shared(training: IdentifiedSet, evaluation: IdentifiedSet) -> list[str]:
    known = {digest: index for index, digest in enumerate(training.digests)}
    pairs = [(index, known[digest]) for index, digest in enumerate(evaluation.digests) if digest in known]
    if not pairs:
        return []
    return [
        f"{len(pairs):,} of {len(evaluation.examples):,} evaluation images are training images too "
        f"{_example(pairs[0], evaluation, training)}: their scores measure memorisation; remove them from one set"
    ]


def _example(pair: tuple[int, int], one: IdentifiedSet, other: IdentifiedSet) -> str:
    return f"(same content, such as {one.examples.name(pair[0])} and {other.examples.name(pair[1])})"
