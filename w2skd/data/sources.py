"""Where labelled images come from: CIFAR's files, a folder a class, or generated shapes.

A source first lists its examples; subset and hold-out are drawn from the labels; pixels are read only for what is left.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from w2skd.data import shapes
from w2skd.data.counter import seed_from
from w2skd.data.folder import check_same_classes, list_class_folders, read_images
from w2skd.data.images import ImageSet, Normalization, balanced_subset, split_validation
from w2skd.errors import DataError
from w2skd.recipe.classification import ClassificationData

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""What torchvision's pretrained classifiers were trained with."""

_SHAPES_SIZE_PX = 32
_SHAPES_TRAIN_EXAMPLES = 4096
_SHAPES_EVAL_EXAMPLES = 1024


@dataclass(frozen=True, eq=False)
class ImageData:
    """What a model is trained and scored on."""

    train: ImageSet
    evaluation: ImageSet
    normalization: Normalization


@dataclass(frozen=True, eq=False)
class Listing:
    """Examples whose pixels are not read yet.

    Attributes:
        name: what to call them in an error.
        labels: int64 [N].
        classes: names.
        read: int64 indices [n] to uint8 [n, 3, H, W].
    """

    name: str
    labels: Tensor
    classes: tuple[str, ...]
    read: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> "Listing":
        """Return the examples at these indices, in their order."""
        return Listing(self.name, self.labels[indices], self.classes, lambda chosen: self.read(indices[chosen]))

    def subset(self, count: int | None, seed: int) -> "Listing":
        """Return `count` examples, balanced, in the order of the listing; all if `count` is None or there are as many.

        Raises:
            DataError: there are fewer.
        """
        if count is None or count == len(self):
            return self
        try:
            return self.select(balanced_subset(self.labels, count, seed).sort().values)
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from None

    def load(self) -> ImageSet:
        """Read all pixels."""
        return ImageSet(self.read(torch.arange(len(self))), self.labels, self.classes)


@dataclass(frozen=True, eq=False)
class Listings:
    """A source's training and evaluation sets; the latter is None where a hold-out takes its place."""

    train: Listing
    evaluation: Listing | None
    normalization: Normalization


@lru_cache(maxsize=2)
def load_image_data(section: ClassificationData) -> ImageData:
    """Load what a recipe's ``data`` section asks for; runs in one process share the result.

    The hold-out is drawn from the whole training set, whatever `train_examples` then takes of the rest, so that runs
    on different amounts of data are scored on the same examples.

    Raises:
        DataError: files are missing, damaged, too few or contradictory.
    """
    listings = SOURCES[section.source](section)
    train, evaluation = listings.train, listings.evaluation
    if evaluation is None:
        assert section.validation_share is not None
        kept, held = split_validation(train.labels, train.classes, section.validation_share, section.split_seed)
        train, evaluation = train.select(kept), train.select(held)
    train = train.subset(section.train_examples, section.split_seed)
    evaluation = evaluation.subset(section.eval_examples, section.split_seed)
    return ImageData(train.load(), evaluation.load(), listings.normalization)


def _cifar10(section: ClassificationData) -> Listings:
    return _cifar(section, CIFAR10, Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))


def _cifar100(section: ClassificationData) -> Listings:
    return _cifar(section, CIFAR100, Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)))


def _cifar(section: ClassificationData, dataset: type[CIFAR10], normalization: Normalization) -> Listings:
    """CIFAR (Krizhevsky 2009) by torchvision, which checks every file's MD5 before it unpickles any."""
    try:
        try:
            parts = _open_cifar(dataset, section.root)
        except RuntimeError:
            # An intact archive needs no download: torchvision then only unpacks it.
            if not section.download and not check_integrity(section.root / dataset.filename, dataset.tgz_md5):
                raise
            _fetch_cifar(dataset, section.root)
            parts = _open_cifar(dataset, section.root)
    except RuntimeError:
        raise DataError(_why_no_cifar(section.source, dataset, section.root.absolute())) from None
    except OSError as error:
        raise DataError(f"{error.filename or section.root}: {error.strerror or error}") from None
    train, evaluation = (
        _in_memory(f"{section.source}'s {name} set", torch.from_numpy(part.data), part.targets, part.classes)
        for name, part in zip(("training", "test"), parts, strict=True)
    )
    return Listings(train, None if section.validation_share else evaluation, normalization)


def _open_cifar(dataset: type[CIFAR10], root: Path) -> tuple[CIFAR10, CIFAR10]:
    return dataset(root, train=True), dataset(root, train=False)


def _in_memory(name: str, pixels: Tensor, labels: list[int], classes: list[str]) -> Listing:
    """List examples that are there: uint8 [N, H, W, 3]."""
    return Listing(
        name, torch.tensor(labels), tuple(classes), lambda indices: pixels[indices].permute(0, 3, 1, 2).contiguous()
    )


def _fetch_cifar(dataset: type[CIFAR10], root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _alone_in(root):
            dataset(root, download=True)
    except OSError as error:
        raise DataError(
            f"cannot fetch {dataset.url}: {error}; put {dataset.filename} into {root.absolute()} by hand"
        ) from None


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time into a folder: the ranks of a run all start at once."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot lock folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _why_no_cifar(source: str, dataset: type[CIFAR10], root: Path) -> str:
    folder, archive = root / dataset.base_folder, root / dataset.filename
    mend = f"set data.download: true, or put {dataset.filename} from {dataset.url} into {root}"
    md5s = [*map(tuple, dataset.train_list + dataset.test_list), (dataset.meta["filename"], dataset.meta["md5"])]
    bad = [folder / name for name, md5 in md5s if not check_integrity(folder / name, md5)]
    if any(path.exists() for path in bad) or 0 < len(bad) < len(md5s):
        names = ", ".join(f"{path.name} is {'damaged' if path.exists() else 'missing'}" for path in bad)
        return f"{folder}: {names}; remove the folder, then {mend}"
    if archive.exists():
        return f"{archive} is damaged; remove it, then {mend}"
    return f"{source} is neither unpacked in {folder} nor there as {archive}; {mend}"


def _image_folder(section: ClassificationData) -> Listings:
    root = section.root
    assert section.image_size is not None
    train = list_class_folders(root, section.train_folder, "data.train_folder")
    listing = _from_files(root / section.train_folder, train, section.image_size)
    if section.validation_share:
        return Listings(listing, None, IMAGENET)
    evaluation = list_class_folders(root, section.eval_folder, "data.eval_folder")
    check_same_classes(list(train), root / section.train_folder, list(evaluation), root / section.eval_folder)
    return Listings(listing, _from_files(root / section.eval_folder, evaluation, section.image_size), IMAGENET)


def _from_files(folder: Path, files: dict[str, list[Path]], size: int) -> Listing:
    paths = [path for members in files.values() for path in members]
    labels = torch.tensor([label for label, members in enumerate(files.values()) for _ in members])

    def read(indices: Tensor) -> Tensor:
        return read_images([paths[index] for index in indices.tolist()], size)

    return Listing(str(folder), labels, tuple(files), read)


def _shapes(section: ClassificationData) -> Listings:
    """As many as are asked for; `split_seed` draws the shapes themselves too."""
    share = section.validation_share or 0.0
    count = section.train_examples or _SHAPES_TRAIN_EXAMPLES
    if section.train_examples and share:
        # Enough for a full training set after the hold-out, which takes up to one more of every class by rounding.
        count = ceil((count + 2 * len(shapes.CLASSES)) / (1 - share))
    size = section.image_size or _SHAPES_SIZE_PX
    return Listings(
        _drawn("training", count, size, section.split_seed),
        None
        if share
        else _drawn("evaluation", section.eval_examples or _SHAPES_EVAL_EXAMPLES, size, section.split_seed),
        Normalization((0.4, 0.4, 0.4), (0.2, 0.2, 0.2)),
    )


def _drawn(part: str, count: int, size: int, split_seed: int) -> Listing:
    seed = seed_from(split_seed, ("training", "evaluation").index(part))
    return Listing(
        f"the {part} set of shapes",
        shapes.labels_of(torch.arange(count)),
        shapes.CLASSES,
        lambda indices: shapes.render(seed, indices, size).images,
    )


SOURCES: dict[str, Callable[[ClassificationData], Listings]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "image_folder": _image_folder,
    "shapes": _shapes,
}
