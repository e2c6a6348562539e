"""COCO's scores of a detector: boxes in, average precision out, by pycocotools, the reference, or faster-coco-eval.

Both are handed one array of all detections. What they print is not for the user, and is held back. Their numbers
differ by rounding alone, in the last digit: to pycocotools the precision of a first hit is 1 - 2^-52, so that a perfect
detector need not score 1.0 exactly.

Legend: N images, D detections, d of them in one image, K categories.
"""

import io
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from w2skd.errors import DataError, UsageError
from w2skd.platform.files import atomic_file, writing
from w2skd.platform.ranks import Ranks

NUMBERS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
"""COCO's twelve, in its order: average precision over IoU 0.50 to 0.95, at 0.50, at 0.75, and by area (small up to
32^2 px, large from 96^2 px on); average recall with 1, 10 and 100 detections an image and category, and by area."""

_PACKAGES = {"pycocotools": "pycocotools", "faster": "faster-coco-eval"}

_CHUNK = 10_000  # detections in memory as text


@dataclass(frozen=True)
class CocoResult:
    """How the detections scored.

    Attributes:
        numbers: each of `NUMBERS`, in 0..1; NaN where there is nothing to find, for instance no large boxes.
        classes: one row a category in the order of labels: ``class`` is its name, ``boxes`` how many there are without
            crowd regions, ``ap`` and ``ap50`` as above (NaN without boxes).
        backend: which package scored, and its version.
        account: what a reader of the numbers must know; a line each, often none.
    """

    numbers: dict[str, float]
    classes: list[dict[str, Any]]
    backend: str
    account: tuple[str, ...]


def choose_backend(backend: str) -> str:
    """Say which package scores: ``pycocotools``, or ``faster`` where it is installed and not forbidden.

    Args:
        backend: ``auto``, ``pycocotools`` or ``faster``.

    Raises:
        UsageError: the faster one is asked for and not installed.
    """
    assert backend in ("auto", *_PACKAGES), backend
    installed = find_spec("faster_coco_eval") is not None
    if backend == "faster" and not installed:
        raise UsageError("eval.backend is faster, but faster-coco-eval is not installed: pip install 'w2skd[coco]'")
    return ("faster" if installed else "pycocotools") if backend == "auto" else backend


def check_results_path(path: Path) -> None:
    """Say before hours of work what would go wrong after them.

    Raises:
        UsageError: the file is not named ``.json``.
        OutputError: its folder is missing or read-only.
    """
    if path.suffix.lower() != ".json":
        raise UsageError(f"cannot write results to {path}: COCO's results are JSON; name it {path.stem}.json")
    with writing(path), tempfile.TemporaryFile(dir=path.parent):
        pass


class CocoScorer:
    """Collects what a detector found and has it scored.

    The scorer numbers images, categories and annotations by itself, in the order of their ids, so that what packages
    make of ids does not show: pycocotools takes whatever matches an annotation of id 0 for an error, and its arrays
    hold ids as floating-point numbers.

    Args:
        ground_truth: COCO's ``annotations`` and ``categories``, at least of the listed images. Crowd regions are
            neither hit nor missed. Without ``area`` it is that of the box, without ``iscrowd`` it is no crowd.
        category_ids: K rising ids; label i stands for ``category_ids[i]``.
        image_ids: N ids, all different, of the images to be scored; `add` knows them by their places in this order.
    """

    def __init__(self, ground_truth: Mapping[str, Any], category_ids: Sequence[int], image_ids: Sequence[int] | Tensor):
        self._category_ids = tuple(category_ids)
        self._image_ids = image_ids.tolist() if isinstance(image_ids, Tensor) else list(image_ids)
        assert list(self._category_ids) == sorted(set(self._category_ids)), self._category_ids
        numbers = {image_id: number for number, image_id in enumerate(sorted(self._image_ids), start=1)}
        assert len(numbers) == len(self._image_ids), f"{len(self._image_ids)} images, {len(numbers)} ids"
        labels = {category_id: label for label, category_id in enumerate(self._category_ids)}
        names = {category["id"]: str(category["name"]) for category in ground_truth["categories"]}
        self._classes = [names[category_id] for category_id in self._category_ids]
        # By the order of their ids, in which the packages break ties between detections of equal score.
        self._numbers = np.array([numbers[image_id] for image_id in self._image_ids], dtype=np.int64)
        listed = (one for one in ground_truth["annotations"] if one["image_id"] in numbers)
        self._truth = [
            {
                "id": number,
                "image_id": numbers[one["image_id"]],
                "category_id": labels[one["category_id"]],
                "bbox": one["bbox"],
                "area": one["area"] if "area" in one else one["bbox"][2] * one["bbox"][3],
                "iscrowd": int(one.get("iscrowd", 0)),
            }
            for number, one in enumerate(listed, start=1)
        ]
        self._seen: list[int] = []
        self._places = np.empty(0, dtype=np.int64)
        self._rows = np.empty((0, 6))  # x, y, width, height, score, label
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        self._dropped = 0

    def add(
        self, places: Tensor, detections: Sequence[tuple[Tensor, Tensor, Tensor]], scales: Tensor | None = None
    ) -> None:
        """Take in what was found in some images, on any device; an image without detections must be added too.

        What is not finite is dropped and counted: pycocotools takes a box of NaN for a hit, whatever it is compared
        with.

        Args:
            places: int64 [n], places of the images among `image_ids`; each is added once.
            detections: of each, boxes [d, 4] (xyxy, px), scores [d] and labels int64 [d] in 0..K-1.
            scales: [n, 2], (y, x), by which boxes are divided to come to px of the original image; None where they are
                in these already.
        """
        assert len(places) == len(detections), (len(places), len(detections))
        self._seen += places.tolist()
        if not detections:
            return
        counts = torch.tensor([len(scores) for _, scores, _ in detections])
        # A transfer a batch, not one an image.
        boxes, scores, labels = (torch.cat(parts).detach().cpu() for parts in zip(*detections, strict=True))
        shapes = (boxes.shape, scores.shape, labels.shape)
        assert shapes == ((len(scores), 4), (len(scores),), (len(scores),)), shapes
        assert not len(labels) or 0 <= int(labels.min()) <= int(labels.max()) < len(self._category_ids), labels
        boxes = boxes.double()
        if scales is not None:
            assert scales.shape == (len(places), 2), scales.shape
            boxes /= scales.cpu().double()[:, [1, 0, 1, 0]].repeat_interleave(counts, dim=0)
        boxes[:, 2:] -= boxes[:, :2]
        rows = torch.cat([boxes, scores.double()[:, None], labels.double()[:, None]], dim=1)
        finite = rows.isfinite().all(dim=1)
        self._dropped += len(rows) - int(finite.sum())
        self._parts.append((places.cpu().repeat_interleave(counts)[finite].numpy(), rows[finite].numpy()))

    def merge(self, ranks: Ranks) -> None:
        """Bring together what all ranks have added, on every rank. All of them call it once, after the last `add`."""
        self._join()
        parts = ranks.gather((self._seen, self._places, self._rows, self._dropped))
        self._seen = [place for seen, _, _, _ in parts for place in seen]
        self._parts = [(places, rows) for _, places, rows, _ in parts]
        self._dropped = sum(dropped for _, _, _, dropped in parts)
        self._places, self._rows = self._places[:0], self._rows[:0]

    def result(self, backend: str = "auto") -> CocoResult:
        """Score what was found, on one rank or on each.

        Finding nothing is 0, nothing to find is NaN.

        Args:
            backend: see `choose_backend`.

        Raises:
            UsageError: the backend is not installed.
        """
        chosen = choose_backend(backend)
        self._join()
        with redirect_stdout(io.StringIO()):
            evaluated = self._evaluate(chosen)
        numbers = dict(zip(NUMBERS, (_or_nan(value) for value in evaluated.stats[: len(NUMBERS)]), strict=True))
        package = _PACKAGES[chosen]
        return CocoResult(numbers, self._per_class(evaluated), f"{package} {version(package)}", self._account())

    def write_results(self, path: Path) -> None:
        """Write COCO's results JSON, with its own ids and boxes as xywh, in the order of the images; a line each.

        Numbers have all their digits, so that scoring the file gives what `result` gives. pycocotools itself cannot
        load a file of no detections.

        Raises:
            UsageError: the file is not named ``.json``.
            OutputError: the file cannot be written.
        """
        check_results_path(path)
        self._join()
        with atomic_file(path) as file:
            file.write(b"[")
            for begin in range(0, len(self._rows), _CHUNK):
                places, rows = (part[begin : begin + _CHUNK].tolist() for part in (self._places, self._rows))
                lines = (
                    f'{{"image_id": {self._image_ids[place]}, "category_id": {self._category_ids[int(label)]}, '
                    f'"bbox": {box}, "score": {score}}}'
                    for place, (*box, score, label) in zip(places, rows, strict=True)
                )
                file.write((",\n" if begin else "\n").encode() + ",\n".join(lines).encode())
            file.write(b"\n]\n")

    def _join(self) -> None:
        """Put the parts in one piece, in the order of the images, whichever rank had them."""
        if self._parts:
            places = np.concatenate([self._places, *(places for places, _ in self._parts)])
            rows = np.concatenate([self._rows, *(rows for _, rows in self._parts)])
            order = np.argsort(places, kind="stable")
            self._places, self._rows, self._parts = places[order], rows[order], []
        assert len(set(self._seen)) == len(self._seen), "an image was added twice"

    def _evaluate(self, backend: str) -> Any:
        """Run a package's evaluation; returns its evaluator."""
        missing = len(self._image_ids) - len(self._seen)
        assert missing == 0, f"{missing} of {len(self._image_ids)} images were not added"
        coco, evaluation = COCO, COCOeval
        if backend == "faster":
            import faster_coco_eval

            coco, evaluation = faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster
        dataset = {
            "images": [{"id": number} for number in sorted(self._numbers.tolist())],
            "categories": [{"id": label} for label in range(len(self._category_ids))],
        }
        # Both packages write into annotations.
        truth = _indexed(coco, dataset | {"annotations": [dict(one) for one in self._truth]})
        array = np.column_stack([self._numbers[self._places], self._rows])
        found = truth.loadRes(array) if len(array) else _indexed(coco, dataset | {"annotations": []})
        evaluator = evaluation(truth, found, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
        return evaluator

    def _per_class(self, evaluated: Any) -> list[dict[str, Any]]:
        boxes = np.bincount(
            [one["category_id"] for one in self._truth if not one["iscrowd"]], minlength=len(self._classes)
        )
        # Thresholds of IoU, of recall, categories, ranges of area, numbers of detections.
        precision = evaluated.eval["precision"][:, :, :, 0, -1]
        rows = []
        for label, name in enumerate(self._classes):
            ap, ap50 = (_or_nan(_mean(part)) for part in (precision[:, :, label], precision[0, :, label]))
            rows.append({"class": name, "boxes": int(boxes[label]), "ap": ap, "ap50": ap50})
        return rows

    def _account(self) -> tuple[str, ...]:
        lines = []
        if not any(not one["iscrowd"] for one in self._truth):
            lines.append(f"there is no box to find in {len(self._image_ids)} images: no score can be given")
        if self._dropped:
            total = self._dropped + len(self._rows)
            lines.append(f"{self._dropped} of {total} detections are not finite and do not count")
        return tuple(lines)


def _indexed(coco: Any, dataset: dict[str, Any]) -> Any:
    made = coco()
    made.dataset = dataset
    made.createIndex()
    return made


def _mean(values: NDArray[np.float64]) -> float:
    """COCO's mean: -1 marks what there is nothing of."""
    present = values[values > -1]
    return float(present.mean()) if len(present) else -1.0


def _or_nan(value: float) -> float:
    return float(value) if value > -1 else math.nan


def check_results_file(
    path: Path, image_ids: Sequence[int] | None = None, category_ids: Sequence[int] | None = None
) -> int:
    """Make sure that a file is COCO's results of detection, as `CocoScorer.write_results` and others write them.

    Args:
        path: the file.
        image_ids: what images there are; None to take any.
        category_ids: what categories there are; None to take any.

    Returns:
        The number of detections.

    Raises:
        DataError: it is not; the line names the first detection that is wrong, counted from 1.
    """
    try:
        records = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{path}: no COCO results, for it is cut off or not JSON ({error.msg}, {where})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: no COCO results, for it is not JSON") from None
    if not isinstance(records, list):
        hint = "; this is an annotation file" if isinstance(records, dict) and "annotations" in records else ""
        raise DataError(f"{path}: no COCO results: a list of detections was expected{hint}")
    images, categories = (None if ids is None else frozenset(ids) for ids in (image_ids, category_ids))
    for number, record in enumerate(records, start=1):
        problem = _problem(record, images, categories)
        if problem:
            raise DataError(f"{path}: detection {number} of {len(records)} {problem}")
    return len(records)


def _problem(record: Any, images: frozenset[int] | None, categories: frozenset[int] | None) -> str | None:
    """What is wrong with one detection of a results file."""
    if not isinstance(record, dict):
        return f"is {_shown(record)}, not an object"
    lacking = [key for key in ("image_id", "category_id", "bbox", "score") if key not in record]
    if lacking:
        return f"lacks {', '.join(lacking)}"
    for key, known, kind in (("image_id", images, "image"), ("category_id", categories, "category")):
        value = record[key]
        if not isinstance(value, int) or isinstance(value, bool):
            return f"has the {key} {_shown(value)}, not a whole number"
        if known is not None and value not in known:
            return f"has the {key} {value}, but there is no such {kind}"
    box, score = record["bbox"], record["score"]
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(value) for value in box):
        return f"has the bbox {_shown(box)}, not four finite numbers"
    if min(box[2:]) < 0:
        return f"has the bbox {_shown(box)}, whose width or height is negative"
    return None if _is_finite(score) else f"has the score {_shown(score)}, not a finite number"


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
