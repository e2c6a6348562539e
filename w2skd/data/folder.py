"""Images in one folder per class: listing, and reading as squares of one size."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

from PIL import Image
from torch import Tensor

from w2skd.data.decode import colour_mode, open_image, read_content
from w2skd.data.examples import read_squares
from w2skd.data.names import alike_in, all_alike, composed
from w2skd.data.paths import PathList, TextList, prefix_of
from w2skd.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")

_LISTED = 4
"""Maximum number of endings or names that a remark lists."""

_LISTING_THREADS = 8
"""Number of class folders listed at the same time. Network file systems are slow, but answer requests in parallel."""


@dataclass(frozen=True)
class FileExamples:
    """Images in files.

    Attributes:
        root: folder that the names of the examples are relative to.
        paths: the files, below `root`.
    """

    root: Path
    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> Image.Image:
        """See `open_image`."""
        return open_image(self.paths[index])

    def mode(self, index: int) -> str:
        """See `colour_mode`."""
        return colour_mode(self.paths[index])

    def read(self, indices: Tensor, size_px: int) -> Tensor:
        """See `read_images`."""
        return read_images([self.paths[index] for index in indices.tolist()], size_px)

    def name(self, index: int) -> str:
        """Return the path relative to `root`, with slashes."""
        # Several times faster than `Path.relative_to`, which takes seconds for ImageNet.
        text = self.paths.text(index) if isinstance(self.paths, PathList) else str(self.paths[index])
        return text.removeprefix(f"{self.root}{os.sep}").replace(os.sep, "/")

    def content(self, index: int) -> bytes:
        """See `read_content`."""
        return read_content(self.paths[index])


@dataclass(frozen=True)
class ClassFolders:
    """The images of each class.

    Attributes:
        classes: names of the classes, sorted.
        counts: number of images of each class.
        paths: the images, class by class, sorted by name within a class.
        notes: which files are not read and other remarks, one line each.
    """

    classes: tuple[str, ...]
    counts: tuple[int, ...]
    paths: PathList
    notes: tuple[str, ...]

    @property
    def files(self) -> dict[str, PathList]:
        """Class -> its images."""
        ends = tuple(accumulate(self.counts))
        return {
            name: self.paths[end - count : end]
            for name, count, end in zip(self.classes, self.counts, ends, strict=True)
        }


def list_class_folders(root: Path, folder: str, key: str) -> ClassFolders:
    """List the images of each class below ``root/folder``, including those in subfolders of the class's folder.

    Hidden files and folders and files without one of `EXTENSIONS` are not read, but counted. Names of classes are
    returned in Unicode's composed form.

    Args:
        root: ``data.root``.
        folder: folder of one set, such as ``train``.
        key: recipe key of `folder`, for errors.

    Raises:
        DataError: a folder is missing, unreadable or has no classes, a class has no images, or two classes have the
            same name in different Unicode forms.
    """
    if not root.is_dir():
        raise DataError(f"data.root: no such folder: {root.absolute()}")
    path = root / folder
    if not path.is_dir():
        others = ", ".join(entry.name for entry in _visible(root) if entry.is_dir()) or "none"
        raise DataError(f"{key}: no folder '{folder}' in {root.absolute()}; its folders: {others}")
    folders, loose = _entries(str(path))
    if not folders:
        raise DataError(f"{path}: contains no folders; expected one per class")
    folders.sort(key=composed)
    names = [composed(folder) for folder in folders]
    unique = next((place for place in range(1, len(names)) if names[place] == names[place - 1]), len(names))
    counts, left_out = list[int](), [path / name for name in loose]

    def images_of_each() -> Iterator[TextList]:
        with ThreadPoolExecutor(_LISTING_THREADS) as pool:
            for images, not_read in pool.map(partial(_list_images, path), folders[:unique]):
                counts.append(len(images))
                left_out.extend(path / name for name in not_read)
                yield images

    paths = PathList.below(path, TextList.joined(images_of_each()))
    if unique < len(names):  # reported after problems of the folders before it
        raise DataError(
            f"{path}: two folders are named '{names[unique]}', in different Unicode forms; merge or rename them"
        )
    notes = [describe_left_out(left_out, path)] if left_out else []
    notes += [f"classes {alike}" for alike in all_alike(names)]
    if len(names) == 1:
        notes.append(f"contains a single class, '{names[0]}': there is nothing to tell apart")
    return ClassFolders(tuple(names), tuple(counts), paths, tuple(notes))


def describe_left_out(files: Sequence[Path], root: Path) -> str:
    """Count files that are not read, by ending, each with the first in its place relative to `root`."""
    by_ending: dict[str, list[Path]] = {}
    for file in sorted(files):
        hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
        by_ending.setdefault("hidden" if hidden else file.suffix.lower() or "without ending", []).append(file)
    most_first = sorted(by_ending.items(), key=lambda item: -len(item[1]))
    parts = [f"{len(found):,} {ending} ({found[0].relative_to(root)})" for ending, found in most_first[:_LISTED]]
    if rest := sum(len(found) for _, found in most_first[_LISTED:]):
        parts.append(f"{rest:,} others")
    return f"{len(files):,} {'file is' if len(files) == 1 else 'files are'} not read: {', '.join(parts)}"


def describe_unused(root: Path, folders: Sequence[str]) -> str | None:
    """List what a data set's root holds besides the folders that are read, in one line; None if nothing."""
    used = {Path(folder).parts[0] for folder in folders}
    others = [f"{entry.name}{'/' * entry.is_dir()}" for entry in _visible(root) if entry.name not in used]
    if not others or "." in used:
        return None
    return f"{root} also holds {', '.join(others[:_LISTED])}{', ...' if len(others) > _LISTED else ''}: not read"


def check_same_classes(train: Sequence[str], train_path: Path, evaluation: Sequence[str], eval_path: Path) -> None:
    """Check that two folders have the same classes.

    Raises:
        DataError: they differ; lists the classes that only one of them has.
    """
    differences = [
        f"only in {path}: {', '.join(extra[:5])}{', ...' if len(extra) > 5 else ''}"
        for path, extra in (
            (train_path, sorted(set(train) - set(evaluation))),
            (eval_path, sorted(set(evaluation) - set(train))),
        )
        if extra
    ]
    if differences:
        alike = next(filter(None, (alike_in(name, set(evaluation) - set(train)) for name in train)), None)
        advice = f"; {alike}: rename one" if alike else ""
        raise DataError(f"the classes of training and evaluation differ; {'; '.join(differences)}{advice}")


def read_images(paths: Sequence[Path], size: int) -> Tensor:
    """Decode images and apply their EXIF orientation, see `w2skd.data.examples.read_squares`."""
    return read_squares(lambda index: open_image(paths[index]), len(paths), size)


def _visible(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{path}: cannot list the folder: {error.strerror}") from None


def _list_images(root: Path, name: str) -> tuple[TextList, list[str]]:
    """Return the images in the folder of a class, sorted, and the files that are not read, relative to `root`."""
    images, left_out, seen = list[str](), list[str](), set[tuple[int, int]]()
    waiting, prefix = [name], prefix_of(root)
    while waiting:
        folder = waiting.pop()
        status = os.stat(prefix + folder)
        if (status.st_dev, status.st_ino) in seen:  # a symbolic link to a folder that contains it
            continue
        seen.add((status.st_dev, status.st_ino))
        folders, files = _entries(prefix + folder)
        waiting += [f"{folder}{os.sep}{inner}" for inner in folders]
        for file in files:
            readable = file.lower().endswith(EXTENSIONS) and not file.startswith(".")
            (images if readable else left_out).append(f"{folder}{os.sep}{file}")
    if not images:
        reason = f"none of its {len(left_out)} files ends in" if left_out else "the folder is empty; expected"
        raise DataError(f"{root / name}: class '{name}' has no images: {reason} {', '.join(EXTENSIONS)}")
    return TextList(sorted(images, key=lambda image: image.split(os.sep))), left_out


def _entries(path: str) -> tuple[list[str], list[str]]:
    """Return the names of the visible folders in a folder, and of its files; a hidden folder counts as a file."""
    folders, files = list[str](), list[str]()
    try:
        with os.scandir(path) as entries:  # knows the kind of an entry without a further call for each
            for entry in entries:
                is_class = entry.is_dir() and not entry.name.startswith(".")
                (folders if is_class else files).append(entry.name)
    except OSError as error:
        raise DataError(f"{path}: cannot list the folder: {error.strerror}") from None
    return folders, files
