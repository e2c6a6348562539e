"""Images with boxes in COCO's format (https://cocodataset.org/#format-data): one JSON file beside a folder of images.

The file says all about its images, so that none is opened before its pixels are needed. It is checked as a whole, since
a detector trained on half-read boxes looks like one that learns badly. The columns are checked as arrays; only where
something is wrong are the records gone through one by one, to name the first.

Legend: M annotations.
"""

import json
import os
import reprlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from w2skd.data.folder import open_image
from w2skd.errors import DataError
from w2skd.tasks.detection.listing import BoxTable, CocoListing

_KINDS = {"images": "image", "annotations": "annotation", "categories": "category"}

_ROUNDING_PX = 0.01
"""COCO's own files have two decimals, so that a box at the edge may cross it by as much."""

_WORDS = ("true", "false", "null", "NaN", "Infinity", "-Infinity", ".", "e+", "e-", "E+", "E-")
"""What the reader of JSON stops at when it finds only the beginning of one, the last of them within numbers."""

_NAMED = 3
"""So many of several culprits are named."""


@dataclass(frozen=True, eq=False)
class CocoFiles:
    """Images in files whose sizes were said beforehand.

    Attributes:
        root: the folder of images.
        names: of the files, from there.
        sizes: int64 [N, 2], (height, width) in px.
    """

    root: Path
    names: tuple[str, ...]
    sizes: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Image.Image:
        """The image, as the camera was held where its annotations are of that, else as it lies in the file.

        Raises:
            DataError: the file cannot be read or decoded, or has another size than was said.
        """
        height, width = self.sizes[index].tolist()
        return open_image(self.root / self.names[index], (width, height))

    def name(self, index: int) -> str:
        """The path from `root`, with slashes."""
        return self.names[index]

    def select(self, indices: Tensor) -> "CocoFiles":
        """The images at these indices, in their order."""
        return CocoFiles(self.root, tuple(self.names[index] for index in indices.tolist()), self.sizes[indices])


def read_coco(annotations: Path, images: Path) -> CocoListing:
    """List what a file of annotations says, and see whether its images are there.

    Crowd regions are not trained on. Boxes that cross an image's edge are clipped to it; those that have no area or lie
    outside are dropped. Images without boxes stay. Scoring gets the file as it is (`CocoListing.ground_truth`).

    Args:
        annotations: the JSON file, ``instances_*.json``.
        images: the folder from which its ``file_name`` lead.

    Raises:
        DataError: the file is missing, cut off, not COCO's, contradictory or empty, or is of other images. The record
            is named.
    """
    document = _load(annotations)
    records = _Records(annotations)
    image_rows, box_rows, category_rows = (document[key] for key in _KINDS)

    image_ids = records.ids("images", image_rows)
    names = records.texts("images", image_rows, "file_name")
    sizes = records.sizes(image_rows)
    _check_files(annotations, images, names)

    category_ids = records.ids("categories", category_rows)
    titles = records.texts("categories", category_rows, "name")
    _check_titles(annotations, titles, category_ids)
    by_id = np.argsort(category_ids)

    records.ids("annotations", box_rows)
    image_of = records.places(box_rows, "image_id", image_ids, "image")
    label_of = records.places(box_rows, "category_id", category_ids[by_id], "category")
    crowd = records.numbers("annotations", box_rows, "iscrowd", default=0) != 0
    records.numbers("annotations", box_rows, "area", default=0)
    xyxy, usable, account = _clip(records.boxes(box_rows), crowd, sizes[image_of])

    boxes = torch.from_numpy(xyxy[usable])
    labels = torch.from_numpy(label_of[usable])
    table = BoxTable.grouped(boxes, labels, torch.from_numpy(image_of[usable]), len(image_ids))
    plain = int((table.starts.diff() == 0).sum())
    account += [f"{plain:,} of {len(image_ids):,} images have no boxes to train on"] if plain else []
    without = sum("area" not in row for row in box_rows)
    account += [f"{without:,} annotations say no area: it is taken to be that of their boxes"] if without else []
    return CocoListing(
        str(annotations),
        CocoFiles(images, tuple(names), torch.from_numpy(sizes)),
        torch.from_numpy(image_ids),
        torch.from_numpy(sizes),
        table,
        tuple(titles[place] for place in by_id),
        tuple(category_ids[by_id].tolist()),
        tuple(account),
        partial(_truth, annotations),
    )


def _truth(path: Path) -> dict[str, Any]:
    """The whole file once more, as scorers want it: what COCO requires and others leave out is filled in.

    It is read again, for it may be large (of COCO's training set more than 2 GB, mostly outlines) and is kept by the
    scorer only.
    """
    document = _load(path)
    rows = document["annotations"]
    # Scorers note the id of what a detection matches, and take 0 for nothing.
    shift = 1 - min(0, *(row["id"] for row in rows)) if any(row["id"] == 0 for row in rows) else 0
    filled = [{"area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0} | row | {"id": row["id"] + shift} for row in rows]
    return {"images": document["images"], "annotations": filled, "categories": document["categories"]}


def _load(path: Path) -> dict[str, Any]:
    """Parse the file, and see that it has its three lists, none empty."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: {_why_not_json(error)}") from None
    except (UnicodeDecodeError, RecursionError):
        raise DataError(f"{path}: not JSON: it is no text, or nested too deeply") from None
    if not isinstance(document, dict):
        raise DataError(f"{path}: not COCO's format: an object with {', '.join(_KINDS)} is expected, this is a list")
    for key in _KINDS:
        if key not in document:
            raise DataError(f"{path}: not COCO's format: it has no '{key}'; it has {', '.join(document) or 'nothing'}")
        if not isinstance(document[key], list):
            raise DataError(f"{path}: not COCO's format: '{key}' is {_short(document[key])}, and no list")
        if not document[key]:
            raise DataError(f"{path}: has no {key}, so there is nothing to learn or to score")
    return document


def _why_not_json(error: json.JSONDecodeError) -> str:
    left = error.doc[error.pos :].rstrip()
    if not error.doc.strip():
        return "is empty"
    in_text = error.msg.startswith("Unterminated string") or (error.msg.startswith("Invalid \\") and len(left) < 6)
    if in_text or any(word.startswith(left) for word in _WORDS):
        return f"is cut off: it ends in the middle, after {len(error.doc):,} characters; fetch or export it again"
    return f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}"


class _Records:
    """Columns of the records of one file, checked.

    Args:
        path: the file, for errors.
    """

    def __init__(self, path: Path):
        self._path = path

    def ids(self, kind: str, rows: Sequence[Any]) -> NDArray[np.int64]:
        """The records' own ids, each there once."""
        ids = self._whole(kind, rows, "id")
        values, counts = np.unique(ids, return_counts=True)
        if len(values) < len(ids):
            twice = values[counts > 1]
            raise DataError(
                f"{self._path}: {_KINDS[kind]} id {twice[0]} is there {counts[counts > 1][0]} times; "
                f"{len(twice):,} ids of {kind} are not unique"
            )
        return ids

    def texts(self, kind: str, rows: Sequence[Any], key: str) -> list[str]:
        """Texts, none empty."""
        try:
            texts = [row[key] for row in rows]
        except (KeyError, TypeError):
            texts = [None]
        if not all(isinstance(text, str) and text for text in texts):
            self._blame(kind, rows, key, lambda text: isinstance(text, str) and text != "", "a text is expected")
        return texts

    def sizes(self, rows: Sequence[Any]) -> NDArray[np.int64]:
        """Heights and widths in px, [N, 2]."""
        columns = []
        for key in ("height", "width"):
            numbers = self.numbers("images", rows, key)
            if not np.all((numbers >= 1) & (numbers == np.floor(numbers)) & (numbers < 2**31)):
                self._blame("images", rows, key, _is_side, "a whole number of px is expected, at least 1")
            columns.append(numbers.astype(np.int64))
        return np.stack(columns, 1)

    def places(self, rows: Sequence[Any], key: str, known: NDArray[np.int64], what: str) -> NDArray[np.int64]:
        """For every annotation the place of its `key` among the known ids."""
        order = np.argsort(known)
        ids = self._whole("annotations", rows, key)
        places: NDArray[np.int64] = order[np.searchsorted(known, ids, sorter=order).clip(max=len(known) - 1)]
        if not np.array_equal(known[places], ids):
            there = set(known.tolist())
            self._blame("annotations", rows, key, there.__contains__, f"the file has no {what} of this id")
        return places

    def boxes(self, rows: Sequence[Any]) -> NDArray[np.float64]:
        """The ``bbox`` of every annotation, [M, 4] as (x, y, width, height)."""
        try:
            boxes = [row["bbox"] for row in rows]
            fit = set(map(len, boxes)) == {4}
            numbers = np.array(array("d", chain.from_iterable(boxes)))
        except (KeyError, TypeError, OverflowError):
            fit, numbers = False, np.empty(0)
        if fit:
            numbers = numbers.reshape(-1, 4)
            fit = bool(np.isfinite(numbers).all() and (numbers[:, 2:] >= 0).all())
        if not fit:
            expected = "[x, y, width, height] in px is expected, four numbers, the last two not negative"
            self._blame("annotations", rows, "bbox", _is_box, expected)
        return numbers

    def numbers(self, kind: str, rows: Sequence[Any], key: str, default: float | None = None) -> NDArray[np.float64]:
        """Finite numbers; `default`, unless it is None, where a record has none."""
        rows = rows if default is None else [{key: default} | row if key not in row else row for row in rows]
        try:
            numbers = np.array(array("d", [row[key] for row in rows]))
        except (KeyError, TypeError, OverflowError):
            numbers = np.array([np.nan])
        if not np.isfinite(numbers).all():
            self._blame(kind, rows, key, _is_number, "a number is expected")
        return numbers

    def _whole(self, kind: str, rows: Sequence[Any], key: str) -> NDArray[np.int64]:
        try:
            return np.array(array("q", [row[key] for row in rows]), dtype=np.int64)
        except (KeyError, TypeError, OverflowError):
            self._blame(kind, rows, key, _is_whole, "a whole number is expected")

    def _blame(self, kind: str, rows: Sequence[Any], key: str, fits: Callable[[Any], bool], expected: str) -> NoReturn:
        """Name the first record whose `key` is missing or does not fit."""
        for place, row in enumerate(rows):
            if not isinstance(row, dict):
                raise DataError(f"{self._path}: {kind}[{place}] is {_short(row)}, and no object")
            if key not in row:
                raise DataError(f"{self._path}: {_called(kind, row, place)} has no '{key}'; {expected}")
            if not fits(row[key]):
                raise DataError(f"{self._path}: {_called(kind, row, place)}: {key} {_short(row[key])}: {expected}")
        raise AssertionError(f"nothing wrong with {key} of {kind} in {self._path}")


def _called(kind: str, row: dict[str, Any], place: int) -> str:
    name = f"{_KINDS[kind]} {row['id']}" if isinstance(row.get("id"), int) else f"{kind}[{place}]"
    return f"{name} (image {row['image_id']})" if isinstance(row.get("image_id"), int) else name


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and -(2**63) <= value < 2**63


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and isfinite(value)
    except OverflowError:  # an int beyond all floats
        return False


def _is_side(value: Any) -> bool:
    return _is_number(value) and 1 <= value < 2**31 and value == int(value)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)) and min(value[2:]) >= 0


def _short(value: Any) -> str:
    return reprlib.repr(value)


def _check_titles(path: Path, titles: Sequence[str], ids: NDArray[np.int64]) -> None:
    seen: dict[str, int] = {}
    for title, number in zip(titles, ids.tolist(), strict=True):
        if title in seen:
            raise DataError(f"{path}: two categories, {seen[title]} and {number}, have the same name '{title}'")
        seen[title] = number


def _check_files(annotations: Path, root: Path, names: Sequence[str]) -> None:
    """See that the images are there, by listing their folders: asking for every file takes minutes on a network."""
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; the images of {annotations} are expected in it")
    there: dict[str, set[str]] = {}
    missing = []
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder not in there:
            there[folder] = _files_in(root / folder)
        if file not in there[folder]:
            missing.append(name)
    if not missing:
        return
    some = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
    if 2 * len(missing) > len(names):
        raise DataError(
            f"{annotations}: is of other images than those in {root}: {len(missing):,} of {len(names):,} are not there "
            f"({some})"
        )
    raise DataError(
        f"{root}: {len(missing):,} of the {len(names):,} images in {annotations} are missing: {some}; fetch them, or "
        "take them out of the file"
    )


def _files_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror or error}") from None


def _clip(
    xywh: NDArray[np.float64], crowd: NDArray[np.bool_], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], list[str]]:
    """Bring boxes to what can be trained on.

    Args:
        xywh: [M, 4], no side negative.
        crowd: [M].
        sizes: [M, 2], (height, width) of their images.

    Returns:
        [M, 4] as xyxy within the images; [M], which of them are fit for training; what was done.
    """
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
    edges = np.concatenate([sizes[:, ::-1]] * 2, 1)
    inside = corners.clip(0, edges)
    clipped = inside.astype(np.float32)
    flat = (xywh[:, 2:] == 0).any(1)
    outside = ~flat & (inside[:, 2:] <= inside[:, :2]).any(1)
    flat |= ~outside & (clipped[:, 2:] <= clipped[:, :2]).any(1)  # thinner than float32 can tell
    usable = ~(crowd | flat | outside)
    over = usable & (np.abs(inside - corners) > _ROUNDING_PX).any(1)
    counts = {
        "crowd regions are scored, not trained on": crowd,
        "boxes have no area and are not trained on": ~crowd & flat,
        "boxes lie outside of their images and are not trained on": ~crowd & outside,
        "boxes reach over the edge of their images and are clipped to it for training": over,
    }
    return clipped, usable, [f"{count:,} {what}" for what, which in counts.items() if (count := int(which.sum()))]
