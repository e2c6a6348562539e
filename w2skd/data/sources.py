"""Sources of labelled images: CIFAR, Fashion-MNIST, image folders (one folder per class), packed folders, shapes.

A source lists its examples. Subset and hold-out are drawn from the labels, and only the pixels of the rest are read.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST
from torchvision.datasets.utils import check_integrity

from w2skd.data import fashion_mnist, shapes
from w2skd.data.counter import seed_from
from w2skd.data.examples import ChosenExamples, Examples, PixelExamples
from w2skd.data.folder import ClassFolders, FileExamples, check_same_classes, describe_unused, list_class_folders
from w2skd.data.identity import DataIdentity, identify, identify_set
from w2skd.data.images import ImageSet, Normalization, balanced_subset, split_validation
from w2skd.data.packed import PackedExamples, open_pack
from w2skd.errors import DataError
from w2skd.recipe.data import ImageDataSection

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Normalisation of torchvision's pretrained classifiers."""

_CIFAR_SIZE_PX = 32
_SHAPES_SIZE_PX = 32
_SHAPES_TRAIN_EXAMPLES = 4096
_SHAPES_EVAL_EXAMPLES = 1024


@dataclass(frozen=True, eq=False)
class Listing:
    """Labelled examples whose pixels are not read yet.

    Attributes:
        name: name of the set in errors.
        examples: N images.
        labels: int64 [N].
        classes: names of the classes.
        notes: remarks about the source, such as files that are not read, one line each.
    """

    name: str
    examples: Examples
    labels: Tensor
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> "Listing":
        """Return the examples at these indices, in this order."""
        return replace(self, examples=ChosenExamples(self.examples, indices), labels=self.labels[indices])

    def subset(self, count: int | None, seed: int) -> "Listing":
        """Return `count` class-balanced examples in the order of the listing; None returns all.

        Raises:
            DataError: the listing has fewer examples.
        """
        if count is None or count == len(self):
            return self
        try:
            return self.select(balanced_subset(self.labels, count, seed).sort().values)
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from None

    def load(self, size_px: int) -> ImageSet:
        """Read all pixels."""
        return ImageSet(self.examples.read(torch.arange(len(self)), size_px), self.labels, self.classes)

    def fingerprint(self) -> str:
        """Return the SHA-256 (hexadecimal) of names, labels and class names, without reading pixels."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for index in range(len(self)):
            digest.update(f"{self.examples.name(index)}\n".encode(errors="surrogatepass"))
        digest.update(self.labels.numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class ImageListing:
    """Training and evaluation examples whose pixels are not read yet.

    Attributes:
        train: training examples, after subset and hold-out.
        evaluation: evaluation examples, after subset.
        normalization: of pixels scaled to [0, 1].
        size_px: side of the squares that models see.
    """

    train: Listing
    evaluation: Listing
    normalization: Normalization
    size_px: int


@dataclass(frozen=True, eq=False)
class ImageData:
    """Training and evaluation images in memory."""

    train: ImageSet
    evaluation: ImageSet
    normalization: Normalization


_Source = tuple[Listing, Listing | None, Normalization, int]
"""Training examples, evaluation examples (None if a hold-out replaces them), normalisation and side in px."""


@lru_cache(maxsize=2)
def list_image_data(section: ImageDataSection) -> ImageListing:
    """List the examples of a recipe's ``data`` section without reading images.

    The hold-out is drawn from the whole training set before `train_examples` reduces the rest, so that runs on
    different amounts of data are scored on the same examples.

    Raises:
        DataError: files are missing, damaged, too few or inconsistent.
    """
    train, evaluation, normalization, size_px = SOURCES[section.source](section)
    if evaluation is None:
        share = section.preparation.validation_share
        assert share is not None
        kept, held = split_validation(train.labels, train.classes, share, section.split_seed)
        train, evaluation = train.select(kept), train.select(held)
    train = train.subset(section.train_examples, section.split_seed)
    evaluation = evaluation.subset(section.eval_examples, section.split_seed)
    own = section.preparation.normalization
    if own is not None:
        normalization = Normalization(own.mean, own.std)
    return ImageListing(train, evaluation, normalization, section.image_size or size_px)


@lru_cache(maxsize=2)
def load_image_data(section: ImageDataSection) -> ImageData:
    """Load the images of a recipe's ``data`` section; runs in one process share the result.

    Raises:
        DataError: files are missing, damaged, too few or inconsistent.
    """
    listing = list_image_data(section)
    train, evaluation = listing.train.load(listing.size_px), listing.evaluation.load(listing.size_px)
    return ImageData(train, evaluation, listing.normalization)


@lru_cache(maxsize=2)
def identify_image_data(section: ImageDataSection) -> DataIdentity:
    """Identify the sets of a recipe's ``data`` section; runs in one process share the result.

    Raises:
        DataError: an image cannot be read.
    """
    listing = list_image_data(section)
    training, evaluation = (
        identify_set(part.examples, part.classes, labels=part.labels) for part in (listing.train, listing.evaluation)
    )
    return identify(training, evaluation)


def _cifar10(section: ImageDataSection) -> _Source:
    return _cifar(section, CIFAR10, Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))


def _cifar100(section: ImageDataSection) -> _Source:
    return _cifar(section, CIFAR100, Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)))


def _cifar(section: ImageDataSection, dataset: type[CIFAR10], normalization: Normalization) -> _Source:
    """Open CIFAR (Krizhevsky 2009) with torchvision, which checks the MD5 of all files before unpickling."""
    try:
        try:
            parts = _open_cifar(dataset, section.root)
        except RuntimeError:
            # torchvision only unpacks an intact archive, without downloading.
            if not section.download and not check_integrity(section.root / dataset.filename, dataset.tgz_md5):
                raise
            _download_cifar(dataset, section.root)
            parts = _open_cifar(dataset, section.root)
    except RuntimeError:
        raise DataError(_cifar_problem(section.source, dataset, section.root.absolute())) from None
    except OSError as error:
        raise DataError(f"{error.filename or section.root}: {error.strerror or error}") from None
    train, evaluation = (
        Listing(
            f"the {name} set of {section.source}",
            PixelExamples(torch.from_numpy(part.data)),
            torch.tensor(part.targets),
            tuple(part.classes),
        )
        for name, part in zip(("training", "test"), parts, strict=True)
    )
    return train, None if section.preparation.validation_share else evaluation, normalization, _CIFAR_SIZE_PX


def _open_cifar(dataset: type[CIFAR10], root: Path) -> tuple[CIFAR10, CIFAR10]:
    return dataset(root, train=True), dataset(root, train=False)


def _download_cifar(dataset: type[CIFAR10], root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _folder_lock(root):
            dataset(root, download=True)
    except OSError as error:
        raise DataError(
            f"cannot download {dataset.url}: {error}; put {dataset.filename} into {root.absolute()} yourself"
        ) from None


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes of this machine, because all ranks of a run start at once."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not supported by some network file systems
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _cifar_problem(source: str, dataset: type[CIFAR10], root: Path) -> str:
    folder, archive = root / dataset.base_folder, root / dataset.filename
    fix = f"set data.download: true, or put {dataset.filename} from {dataset.url} into {root}"
    md5s = [*map(tuple, dataset.train_list + dataset.test_list), (dataset.meta["filename"], dataset.meta["md5"])]
    bad = [folder / name for name, md5 in md5s if not check_integrity(folder / name, md5)]
    if any(path.exists() for path in bad) or 0 < len(bad) < len(md5s):
        names = ", ".join(f"{path.name} is {'damaged' if path.exists() else 'missing'}" for path in bad)
        return f"{folder}: {names}; remove the folder, then {fix}"
    if archive.exists():
        return f"{archive} is damaged; remove it, then {fix}"
    return f"{source}: neither the folder {folder} nor the archive {archive} exists; {fix}"


def _fashion_mnist(section: ImageDataSection) -> _Source:
    files = fashion_mnist.find_files(section.root)
    if files is None and section.download:
        _download_fashion_mnist(section.root)
        files = fashion_mnist.find_files(section.root)
    if files is None:
        raise DataError(
            f"fashion_mnist: its four files (train-images-idx3-ubyte, ..., gzipped or not) are neither in "
            f"{section.root.absolute()} nor in {section.root.absolute() / 'FashionMNIST' / 'raw'}; set data.download: "
            "true, or set data.root to their folder (Debian's package dataset-fashion-mnist installs one)"
        )
    train, evaluation = (
        Listing(f"the {name} set of fashion_mnist", PixelExamples(pixels), labels, fashion_mnist.CLASSES)
        for name, (pixels, labels) in zip(
            ("training", "test"), (fashion_mnist.read_part(*files[part]) for part in ("train", "test")), strict=True
        )
    )
    normalization = Normalization((0.2860,) * 3, (0.3530,) * 3)
    return train, None if section.preparation.validation_share else evaluation, normalization, 28


def _download_fashion_mnist(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _folder_lock(root):
            FashionMNIST(root, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"cannot download Fashion-MNIST: {error}; put its four .gz files into {root.absolute()} yourself"
        ) from None


def _image_folder(section: ImageDataSection) -> _Source:
    root, size = section.root, section.image_size
    assert size is not None
    train = list_class_folders(root, section.train_folder, "data.train_folder")
    if section.preparation.validation_share:
        return _from_files(root, section.train_folder, train), None, IMAGENET, size
    evaluation = list_class_folders(root, section.eval_folder, "data.eval_folder")
    names = train.classes, root / section.train_folder, evaluation.classes, root / section.eval_folder
    check_same_classes(*names)
    if unused := describe_unused(root, (section.train_folder, section.eval_folder)):
        train = replace(train, notes=(*train.notes, unused))
    listings = _from_files(root, section.train_folder, train), _from_files(root, section.eval_folder, evaluation)
    return *listings, IMAGENET, size


def _from_files(root: Path, folder: str, found: ClassFolders) -> Listing:
    labels = torch.repeat_interleave(torch.tensor(found.counts))
    return Listing(str(root / folder), FileExamples(root, found.paths), labels, found.classes, found.notes)


def _packed(section: ImageDataSection) -> _Source:
    root, size = section.root, section.image_size
    assert size is not None
    record = open_pack(root)
    listings = {}
    for name, part in record.parts.items():
        notes = record.notes(part)
        if max(size, section.preparation.eval_resize or 0) > record.side_px:
            notes = (
                *notes,
                f"packed at {record.side_px} px, so images are enlarged; use w2skd pack with a larger --side",
            )
        examples = PackedExamples(root, part, record.format)
        listings[name] = Listing(str(root / name), examples, examples.labels, record.classes, notes)
    if section.preparation.validation_share:
        return listings["train"], None, IMAGENET, size
    if "eval" not in listings:
        raise DataError(
            f"{root}: contains no evaluation set, because it was packed with data.validation_share; set "
            "data.validation_share, or pack the folder without it"
        )
    return listings["train"], listings["eval"], IMAGENET, size


def _shapes(section: ImageDataSection) -> _Source:
    """Generate the requested number of shapes; `split_seed` is the seed of the shapes, too."""
    share = section.preparation.validation_share or 0.0
    count = section.train_examples or _SHAPES_TRAIN_EXAMPLES
    if section.train_examples and share:
        # Enough for a full training set after the hold-out, which may take one more per class by rounding.
        count = ceil((count + 2 * len(shapes.CLASSES)) / (1 - share))
    size = section.image_size or _SHAPES_SIZE_PX
    evaluation = None
    if not share:
        evaluation = _drawn("evaluation", section.eval_examples or _SHAPES_EVAL_EXAMPLES, size, section.split_seed)
    normalization = Normalization((0.4, 0.4, 0.4), (0.2, 0.2, 0.2))
    return _drawn("training", count, size, section.split_seed), evaluation, normalization, size


def _drawn(part: str, count: int, size: int, split_seed: int) -> Listing:
    examples = shapes.ShapeExamples(seed_from(split_seed, ("training", "evaluation").index(part)), count, size)
    return Listing(f"the {part} set of shapes", examples, shapes.labels_of(torch.arange(count)), shapes.CLASSES)


SOURCES: dict[str, Callable[[ImageDataSection], _Source]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "fashion_mnist": _fashion_mnist,
    "image_folder": _image_folder,
    "packed": _packed,
    "shapes": _shapes,
}
