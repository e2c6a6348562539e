"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017) from IDX files, gzipped or not, in torchvision's or Debian's folder.

IDX is the format of MNIST (LeCun 1998): a magic number, the sizes of the dimensions, then the bytes.
"""

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import FashionMNIST

from w2skd.errors import DataError

CLASSES = tuple(FashionMNIST.classes)

_FOLDERS = (".", "FashionMNIST/raw")
"""Folders below the root that may contain the files."""


def find_files(root: Path) -> dict[str, tuple[Path, Path]] | None:
    """Return the image and label files of the ``train`` and ``test`` sets; None if any is missing."""
    for folder in _FOLDERS:
        found = {
            part: tuple(
                _packed_or_not(root / folder / f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")
            )
            for part, prefix in (("train", "train"), ("test", "t10k"))
        }
        if all(path is not None for paths in found.values() for path in paths):
            return found  # type: ignore[return-value]  # no path is None here
    return None


def read_part(images_path: Path, labels_path: Path) -> tuple[Tensor, Tensor]:
    """Read one set.

    Returns:
        uint8 [N, 28, 28, 3], grey repeated for all three colours, and int64 [N].

    Raises:
        DataError: a file is damaged, or the files do not match.
    """
    images, labels = _read_idx(images_path, 3), _read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise DataError(f"{images_path} has {len(images)} images, {labels_path} {len(labels)} labels")
    if len(labels) and int(labels.max()) >= len(CLASSES):
        raise DataError(f"{labels_path}: label {int(labels.max())}; expected 0 to {len(CLASSES) - 1}")
    return images[..., None].expand(-1, -1, -1, 3), labels.to(torch.int64)


def _packed_or_not(path: Path) -> Path | None:
    return next((file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """Read an IDX file of bytes as a tensor with this number of dimensions."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged or cannot be read ({error})") from None
    header = np.frombuffer(content[: 4 * (dimensions + 1)], dtype=">i4").tolist()
    if len(header) <= dimensions or header[0] != 0x800 + dimensions:
        raise DataError(f"{path}: not an IDX file of bytes with {dimensions} dimensions")
    sizes, body = header[1:], content[4 * (dimensions + 1) :]
    if len(body) != prod(sizes):
        raise DataError(f"{path}: truncated or damaged: {len(body):,} bytes, but its header states {prod(sizes):,}")
    return torch.from_numpy(np.frombuffer(bytearray(body), dtype=np.uint8).reshape(sizes))
