"""The image files that an annotation file names: finding, opening, and counting the others."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from w2skd.data.decode import open_image, read_content
from w2skd.data.folder import describe_left_out
from w2skd.data.names import alike_in, composed
from w2skd.data.paths import TextList
from w2skd.errors import DataError
from w2skd.tasks.detection.listing import CocoListing

_NAMED = 3
"""Maximum number of missing images that an error names."""


@dataclass(frozen=True, eq=False)
class CocoFiles:
    """Image files of known sizes.

    Attributes:
        root: folder of the images.
        names: paths of the files relative to `root`.
        sizes: int64 [N, 2], (height, width) in px.
    """

    root: Path
    names: TextList
    sizes: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Image.Image:
        """Open an image, with its EXIF orientation applied if it then has its annotated size.

        Raises:
            DataError: the file cannot be read or decoded, or has another size.
        """
        height, width = self.sizes[index].tolist()
        return open_image(self.root / self.names[index], (width, height))

    def name(self, index: int) -> str:
        """Return the path relative to `root`, with slashes."""
        return self.names[index]

    def content(self, index: int) -> bytes:
        """Return the bytes of the file."""
        return read_content(self.root / self.names[index])

    def select(self, indices: Tensor) -> "CocoFiles":
        """Return the images at these indices, in this order."""
        return CocoFiles(self.root, TextList(self.names[index] for index in indices.tolist()), self.sizes[indices])


def find_files(annotations: Path, root: Path, names: Sequence[str]) -> list[str]:
    """Return the names of the image files as they are in the folder, which may write them otherwise.

    Names that differ in Unicode form or in the kind of slash are matched. The folders are listed, because a call per
    file takes minutes on network file systems.

    Raises:
        DataError: images are missing.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; it should contain the images of {annotations}")
    names = [name.replace("\\", "/") for name in names]
    folders = {name.rpartition("/")[0] for name in names}
    existing = {f"{folder}/{file}".removeprefix("/") for folder in folders for file in _files_in(root / folder)}
    if missing := [name for name in names if name not in existing]:
        by_form = {composed(name): name for name in existing}
        names = [name if name in existing else by_form.get(composed(name), name) for name in names]
        missing = [name for name in names if name not in existing]
    if not missing:
        return names
    some = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
    alike = alike_in(missing[0], existing)
    hint = f" ({alike})" if alike else ""
    if 2 * len(missing) > len(names) and not alike:
        raise DataError(
            f"{annotations}: does not belong to the images in {root}: {len(missing):,} of {len(names):,} are missing "
            f"({some})"
        )
    raise DataError(
        f"{root}: {len(missing):,} of the {len(names):,} images in {annotations} are missing: {some}{hint}; "
        "download or rename them, or remove them from the file"
    )


def describe_unlisted(listings: Sequence[CocoListing]) -> list[str]:
    """Count the files in the folders of images that no annotation file lists, one line per folder."""
    listed: dict[Path, set[str]] = {}
    for listing in listings:
        if isinstance(listing.examples, CocoFiles):
            listed.setdefault(listing.examples.root, set()).update(listing.examples.names)
    lines = []
    for root, names in listed.items():
        folders = {name.rpartition("/")[0] for name in names}
        found = {f"{folder}/{file}".removeprefix("/") for folder in folders for file in _files_in(root / folder)}
        # Folders that hold listed images are no files.
        others = [
            root / name for name in found - names if not any(each.startswith(f"{name}/") for each in folders | names)
        ]
        if others:
            lines.append(f"{root}: {describe_left_out(others, root)}, because no annotation lists them")
    return lines


def _files_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror or error}") from None
