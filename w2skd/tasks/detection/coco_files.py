"""Read data sets in COCO format (https://cocodataset.org/#format-data): a JSON file and a folder of images.

The file holds the sizes of its images, so none is opened before its pixels are needed. Every record is checked at
startup, because silently skipped boxes look like a detector that trains badly. Checks run on whole columns; the records
are searched one by one only to name the first invalid one.

Shapes: N images, M annotations.
"""

import json
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from math import isfinite
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from w2skd.data.names import all_alike, composed
from w2skd.data.paths import TextList
from w2skd.errors import DataError
from w2skd.tasks.detection.image_files import CocoFiles, find_files
from w2skd.tasks.detection.listing import BoxTable, CocoListing

_KINDS = {"images": "image", "annotations": "annotation", "categories": "category"}

_ROUNDING_PX = 0.01
"""Tolerance at image edges: COCO's own files have two decimals."""

_WORDS = ("true", "false", "null", "NaN", "Infinity", "-Infinity", ".", "e+", "e-", "E+", "E-")
"""Tokens whose prefix at the end of the file means that it is truncated; the last five occur within numbers."""


def read_coco(annotations: Path, images: Path) -> CocoListing:
    """Read an annotation file and check that its images exist.

    For training, crowd regions and boxes without area or outside of their image are dropped, and boxes are clipped to
    their image. Images without boxes stay. Scoring uses the unmodified file (`CocoListing.ground_truth`).

    Args:
        annotations: the JSON file, ``instances_*.json``.
        images: folder to which its ``file_name`` entries are relative.

    Raises:
        DataError: the file is missing, truncated, empty, inconsistent, not in COCO format, or of other images. The
            message names the first invalid record.
    """
    document = _load(annotations, _without_outline)
    records = _Records(annotations)
    image_rows, box_rows, category_rows = (document[key] for key in _KINDS)

    image_ids = records.ids("images", image_rows)
    names = records.texts("images", image_rows, "file_name")
    sizes = records.sizes(image_rows)
    names = find_files(annotations, images, names)

    category_ids = records.ids("categories", category_rows)
    titles = [composed(title) for title in records.texts("categories", category_rows, "name")]
    _check_titles(annotations, titles, category_ids)
    by_id = np.argsort(category_ids)

    records.ids("annotations", box_rows)
    image_of = records.places(box_rows, "image_id", image_ids, "image")
    label_of = records.places(box_rows, "category_id", category_ids[by_id], "category")
    crowd = records.numbers("annotations", box_rows, "iscrowd", default=0) != 0
    records.numbers("annotations", box_rows, "area", default=0)
    xyxy, usable, notes = _clip(records.boxes(box_rows), crowd, sizes[image_of])

    boxes = torch.from_numpy(xyxy[usable])
    labels = torch.from_numpy(label_of[usable])
    table = BoxTable.grouped(boxes, labels, torch.from_numpy(image_of[usable]), len(image_ids))
    empty = int((table.starts.diff() == 0).sum())
    notes += [f"{empty:,} of {len(image_ids):,} images have no boxes for training"] if empty else []
    without = sum("area" not in row for row in box_rows)
    notes += [f"categories {alike}" for alike in all_alike(titles)]
    notes += [f"{without:,} annotations have no area: scoring uses the areas of their boxes"] if without else []
    return CocoListing(
        str(annotations),
        CocoFiles(images, TextList(names), torch.from_numpy(sizes)),
        torch.from_numpy(image_ids),
        torch.from_numpy(sizes),
        table,
        tuple(titles[place] for place in by_id),
        tuple(category_ids[by_id].tolist()),
        tuple(notes),
        partial(_truth, annotations),
    )


def _truth(path: Path) -> dict[str, Any]:
    """Read the whole file again for scoring, with defaults for a missing ``area`` or ``iscrowd``.

    It is not kept from the first reading, because it may be large: that of COCO's training set takes more than 2 GB,
    mostly for outlines.
    """
    document = _load(path)
    rows = document["annotations"]
    # Scorers store the id of the annotation that a detection matches, with 0 for no match.
    shift = 1 - min(0, *(row["id"] for row in rows)) if any(row["id"] == 0 for row in rows) else 0
    filled = [{"area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0} | row | {"id": row["id"] + shift} for row in rows]
    return {"images": document["images"], "annotations": filled, "categories": document["categories"]}


def _load(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> dict[str, Any]:
    """Parse the file, passing every object through `change`, and check that it has its three lists, none empty."""
    try:
        # No variable keeps the bytes, so that they are freed as soon as they are decoded.
        document = json.loads(path.read_bytes(), object_hook=change)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: {_why_not_json(error)}") from None
    except (UnicodeDecodeError, RecursionError):
        raise DataError(f"{path}: invalid JSON: not a text file, or nested too deeply") from None
    if not isinstance(document, dict):
        raise DataError(f"{path}: not in COCO format: expected an object with {', '.join(_KINDS)}")
    for key in _KINDS:
        if key not in document:
            raise DataError(f"{path}: not in COCO format: missing key '{key}'; keys: {', '.join(document) or 'none'}")
        if not isinstance(document[key], list):
            raise DataError(f"{path}: not in COCO format: '{key}' is {short_repr(document[key])}, not a list")
        if not document[key]:
            raise DataError(f"{path}: has no {key}")
    return document


def _without_outline(record: dict[str, Any]) -> dict[str, Any]:
    """Drop the mask of an annotation while the file is parsed: masks would take most of the memory."""
    if "bbox" in record:
        record.pop("segmentation", None)
    return record


def _why_not_json(error: json.JSONDecodeError) -> str:
    """Tell a truncated file from other syntax errors."""
    left = error.doc[error.pos :].rstrip()
    if not error.doc.strip():
        return "is empty"
    in_text = error.msg.startswith("Unterminated string") or (error.msg.startswith("Invalid \\") and len(left) < 6)
    if in_text or any(word.startswith(left) for word in _WORDS):
        return f"is truncated after {len(error.doc):,} characters; download or export it again"
    return f"invalid JSON: {error.msg} at line {error.lineno}, column {error.colno}"


class _Records:
    """Extract and check columns of the records of one file.

    Args:
        path: the file, for errors.
    """

    def __init__(self, path: Path):
        self._path = path

    def ids(self, kind: str, rows: Sequence[Any]) -> NDArray[np.int64]:
        """Return the records' ids, which must be unique."""
        ids = self._whole(kind, rows, "id")
        values, counts = np.unique(ids, return_counts=True)
        if len(values) < len(ids):
            twice = values[counts > 1]
            raise DataError(
                f"{self._path}: {_KINDS[kind]} id {twice[0]} occurs {counts[counts > 1][0]} times; "
                f"{len(twice):,} ids of {kind} are not unique"
            )
        return ids

    def texts(self, kind: str, rows: Sequence[Any], key: str) -> list[str]:
        """Return non-empty strings."""
        try:
            texts = [row[key] for row in rows]
        except (KeyError, TypeError):
            texts = [None]
        if not all(isinstance(text, str) and text for text in texts):
            self._refuse(kind, rows, key, lambda text: isinstance(text, str) and text != "", "expected a string")
        return texts

    def sizes(self, rows: Sequence[Any]) -> NDArray[np.int64]:
        """Return heights and widths in px, [N, 2]."""
        columns = []
        for key in ("height", "width"):
            numbers = self.numbers("images", rows, key)
            if not np.all((numbers >= 1) & (numbers == np.floor(numbers)) & (numbers < 2**31)):
                self._refuse("images", rows, key, _is_side, "expected an integer number of px, at least 1")
            columns.append(numbers.astype(np.int64))
        return np.stack(columns, 1)

    def places(self, rows: Sequence[Any], key: str, known: NDArray[np.int64], what: str) -> NDArray[np.int64]:
        """Return for every annotation the index of its `key` in `known`."""
        order = np.argsort(known)
        ids = self._whole("annotations", rows, key)
        places: NDArray[np.int64] = order[np.searchsorted(known, ids, sorter=order).clip(max=len(known) - 1)]
        if not np.array_equal(known[places], ids):
            ids_known = set(known.tolist())
            self._refuse("annotations", rows, key, ids_known.__contains__, f"the file has no {what} with this id")
        return places

    def boxes(self, rows: Sequence[Any]) -> NDArray[np.float64]:
        """Return the ``bbox`` of every annotation, [M, 4] as (x, y, width, height)."""
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
            expected = "expected [x, y, width, height] in px, four finite numbers, width and height at least 0"
            self._refuse("annotations", rows, "bbox", _is_box, expected)
        return numbers

    def numbers(self, kind: str, rows: Sequence[Any], key: str, default: float | None = None) -> NDArray[np.float64]:
        """Return finite numbers; `default`, unless it is None, replaces missing ones."""
        rows = rows if default is None else [{key: default} | row if key not in row else row for row in rows]
        try:
            numbers = np.array(array("d", [row[key] for row in rows]))
        except (KeyError, TypeError, OverflowError):
            numbers = np.array([np.nan])
        if not np.isfinite(numbers).all():
            self._refuse(kind, rows, key, _is_number, "expected a finite number")
        return numbers

    def _whole(self, kind: str, rows: Sequence[Any], key: str) -> NDArray[np.int64]:
        try:
            return np.array(array("q", [row[key] for row in rows]), dtype=np.int64)
        except (KeyError, TypeError, OverflowError):
            self._refuse(kind, rows, key, _is_whole, "expected an integer")

    def _refuse(self, kind: str, rows: Sequence[Any], key: str, fits: Callable[[Any], bool], expected: str) -> NoReturn:
        """Raise an error about the first record whose `key` is missing or invalid."""
        for place, row in enumerate(rows):
            if not isinstance(row, dict):
                raise DataError(f"{self._path}: {kind}[{place}] is {short_repr(row)}, not an object")
            name = _name_of(kind, row, place)
            if key not in row:
                raise DataError(f"{self._path}: {name} has no '{key}': {expected}")
            if not fits(row[key]):
                raise DataError(f"{self._path}: {name}: {key} {short_repr(row[key])}: {expected}")
        raise AssertionError(f"all values of {key} are valid in {kind} of {self._path}")


def _name_of(kind: str, row: dict[str, Any], place: int) -> str:
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


def _check_titles(path: Path, titles: Sequence[str], ids: NDArray[np.int64]) -> None:
    seen: dict[str, int] = {}
    for title, number in zip(titles, ids.tolist(), strict=True):
        if title in seen:
            raise DataError(f"{path}: two categories, {seen[title]} and {number}, have the same name '{title}'")
        seen[title] = number


def _clip(
    xywh: NDArray[np.float64], crowd: NDArray[np.bool_], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], list[str]]:
    """Clip boxes to their images and select those for training.

    Args:
        xywh: [M, 4], no side negative.
        crowd: [M].
        sizes: [M, 2], (height, width) of their images.

    Returns:
        Clipped boxes [M, 4] as xyxy; [M], True for those to train on; one line per kind of box that was changed or
        excluded.
    """
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
    edges = np.concatenate([sizes[:, ::-1]] * 2, 1)
    inside = corners.clip(0, edges)
    clipped = inside.astype(np.float32)
    flat = (xywh[:, 2:] == 0).any(1)
    outside = ~flat & (inside[:, 2:] <= inside[:, :2]).any(1)
    flat |= ~outside & (clipped[:, 2:] <= clipped[:, :2]).any(1)  # thinner than float32 resolves
    usable = ~(crowd | flat | outside)
    over = usable & (np.abs(inside - corners) > _ROUNDING_PX).any(1)
    counts = {
        "crowd regions are used for scoring only": crowd,
        "boxes without area are excluded from training": ~crowd & flat,
        "boxes outside of their images are excluded from training": ~crowd & outside,
        "boxes beyond the edges of their images are clipped for training": over,
    }
    return clipped, usable, [f"{count:,} {what}" for what, which in counts.items() if (count := int(which.sum()))]
