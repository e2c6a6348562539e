"""Listings of images with boxes in COCO's terms; pixels are read on demand.

Shapes: N images, M boxes of all images, K categories.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from w2skd.data.counter import permutation
from w2skd.data.names import alike_in
from w2skd.errors import DataError
from w2skd.tasks.detection.batch import Boxes


class Pictures(Protocol):
    """Images of any sizes whose pixels are read on demand. Picklable, because data workers read them."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> Image.Image:
        """Decode one image in mode RGB at its own size.

        Raises:
            DataError: the file cannot be read or decoded, or its size differs from the annotations.
        """
        ...

    def name(self, index: int) -> str:
        """Return the name of an example for errors and predictions: the path of its file, or its index."""
        ...

    def content(self, index: int) -> bytes:
        """Return what identifies the image, see `w2skd.data.examples.Examples.content`."""
        ...

    def select(self, indices: Tensor) -> "Pictures":
        """Return the images at these int64 indices, in this order."""
        ...


@dataclass(frozen=True, eq=False)
class BoxTable:
    """The boxes of N images in a few tensors, which reach data workers quickly.

    Attributes:
        boxes: float32 [M, 4], xyxy in px of the original image, with positive area and within the image.
        labels: int64 [M], 0 to K - 1.
        starts: int64 [N + 1]; image i has the boxes ``starts[i]`` to ``starts[i + 1] - 1``.
    """

    boxes: Tensor
    labels: Tensor
    starts: Tensor

    def __post_init__(self) -> None:
        assert self.boxes.shape == (len(self.labels), 4), f"{tuple(self.boxes.shape)}, {tuple(self.labels.shape)}"
        assert int(self.starts[-1]) == len(self.labels), f"{self.starts[-1]} of {len(self.labels)} boxes"

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, index: int) -> Boxes:
        """Return the boxes of one image, as views."""
        start, end = self.starts[index : index + 2].tolist()
        return Boxes(self.boxes[start:end], self.labels[start:end])

    def select(self, indices: Tensor) -> "BoxTable":
        """Return the boxes of the images at these int64 indices, in this order."""
        counts = self.starts.diff()[indices]
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        image = torch.repeat_interleave(torch.arange(len(indices)), counts)
        rows = self.starts[indices][image] + torch.arange(len(image)) - starts[image]
        return BoxTable(self.boxes[rows], self.labels[rows], starts)

    @classmethod
    def grouped(cls, boxes: Tensor, labels: Tensor, images: Tensor, count: int) -> "BoxTable":
        """Sort boxes by image; boxes of the same image keep their order.

        Args:
            boxes: float32 [M, 4].
            labels: int64 [M].
            images: int64 [M], index of each box's image, below `count`.
            count: N.
        """
        order = torch.argsort(images, stable=True)
        counts = torch.bincount(images, minlength=count)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        return cls(boxes[order], labels[order], starts)


@dataclass(frozen=True, eq=False)
class CocoListing:
    """Images with boxes whose pixels are not read yet.

    Attributes:
        name: name of the set in errors.
        examples: N images.
        image_ids: int64 [N], their ids for scoring.
        sizes: int64 [N, 2], (height, width) in px.
        table: the boxes for training: without crowd regions, clipped to the image.
        categories: K names in the order of their ids.
        category_ids: ascending, gaps allowed; label i stands for ``category_ids[i]``.
        notes: what was changed in the source's boxes, one line each.
        source_truth: returns the complete ground truth of the source in COCO format, possibly with other images.
    """

    name: str
    examples: Pictures
    image_ids: Tensor
    sizes: Tensor
    table: BoxTable
    categories: tuple[str, ...]
    category_ids: tuple[int, ...]
    notes: tuple[str, ...]
    source_truth: Callable[[], dict[str, Any]]

    def __post_init__(self) -> None:
        lengths = (len(self.examples), len(self.image_ids), len(self.sizes), len(self.table))
        assert len(set(lengths)) == 1, f"{lengths} examples, ids, sizes, boxes"
        assert len(self.categories) == len(self.category_ids), f"{self.categories}, {self.category_ids}"

    def __len__(self) -> int:
        return len(self.image_ids)

    def boxes(self, index: int) -> Boxes:
        """Return the training boxes of one image, in px of the original."""
        return self.table.of(index)

    def select(self, indices: Tensor) -> "CocoListing":
        """Return the examples at these int64 indices, in this order."""
        return CocoListing(
            self.name,
            self.examples.select(indices),
            self.image_ids[indices],
            self.sizes[indices],
            self.table.select(indices),
            self.categories,
            self.category_ids,
            self.notes,
            self.source_truth,
        )

    def subset(self, count: int | None, seed: int) -> "CocoListing":
        """Return `count` random examples in the order of the listing; None returns all.

        A smaller subset with the same seed is part of a larger one.

        Raises:
            DataError: the listing has fewer examples.
        """
        if count is None or count == len(self):
            return self
        if count > len(self):
            raise DataError(f"{self.name}: {count} examples requested, but only {len(self)} exist")
        return self.select(permutation(len(self), seed, 0)[:count].sort().values)

    def ground_truth(self) -> dict[str, Any]:
        """Return the ground truth for scoring in COCO format: ``images``, ``annotations`` and ``categories``.

        It is restricted to these images, in this order. Crowd regions, masks and areas are kept; boxes are neither
        clipped nor dropped.

        Raises:
            DataError: the source cannot be read any more, or has changed.
        """
        truth = self.source_truth()
        images = {image["id"]: image for image in truth["images"]}
        listed = self.image_ids.tolist()
        if not set(listed) <= images.keys():
            raise DataError(f"{self.name}: changed since it was first read: images are missing; restart the command")
        chosen = set(listed)
        return truth | {
            "images": [images[image_id] for image_id in listed],
            "annotations": [one for one in truth["annotations"] if one["image_id"] in chosen],
        }

    @property
    def annotations(self) -> tuple[Tensor, ...]:
        """Everything that the annotations say about these images, as tensors."""
        return (self.image_ids, self.sizes, self.table.starts, self.table.labels, self.table.boxes)

    def fingerprint(self) -> str:
        """Return the SHA-256 (hexadecimal) of names, ids, sizes, boxes, labels and categories, without pixels."""
        digest = hashlib.sha256(repr((self.categories, self.category_ids)).encode())
        for index in range(len(self)):
            digest.update(f"{self.examples.name(index)}\n".encode(errors="surrogatepass"))
        for part in self.annotations:
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()


def check_same_categories(train: CocoListing, evaluation: CocoListing) -> None:
    """Check that two listings have the same categories in the same order.

    Raises:
        DataError: they differ; lists the categories that only one of them has, or the first difference in order.
    """
    if train.categories == evaluation.categories:
        return
    differences = [
        f"only in {here.name}: {', '.join(extra[:5])}{', ...' if len(extra) > 5 else ''}"
        for here, there in ((train, evaluation), (evaluation, train))
        if (extra := [name for name in here.categories if name not in there.categories])
    ]
    if not differences:
        place, pair = next(
            (place, pair)
            for place, pair in enumerate(zip(train.categories, evaluation.categories, strict=True))
            if len(set(pair)) > 1
        )
        differences = [
            f"in the order of ids, number {place + 1} is '{pair[0]}' in {train.name} "
            f"and '{pair[1]}' in {evaluation.name}"
        ]
    theirs = set(evaluation.categories) - set(train.categories)
    alike = next(filter(None, (alike_in(name, theirs) for name in train.categories)), None)
    advice = f"; {alike}: rename one" if alike else ""
    raise DataError(f"the categories of training and evaluation differ; {'; '.join(differences)}{advice}")
