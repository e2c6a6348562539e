"""COCO average precision and recall of a detector, by pycocotools (the reference) or faster-coco-eval.

Both packages get one array of all detections, and their console output is suppressed. Their results differ only by
rounding in the last digit: pycocotools computes the precision of a first hit as 1 - 2^-52, so a perfect detector may
score slightly below 1.0.

Shapes: N images, n of them in one batch, d detections in one image, K categories.
"""

import io
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

from w2skd.errors import UsageError
from w2skd.platform.files import atomic_file, writing
from w2skd.platform.ranks import Ranks
from w2skd.tasks.detection.recipe import COCO_METRICS

_PACKAGES = {"pycocotools": "pycocotools", "faster": "faster-coco-eval"}

_CHUNK = 10_000
"""Detections formatted as text at once."""


@dataclass(frozen=True)
class CocoResult:
    """Scores of a detector on an evaluation set.

    Attributes:
        numbers: value of each of `COCO_METRICS`, in 0..1; NaN without ground truth, for instance without large boxes.
        classes: one row per category in label order: ``class`` is its name, ``boxes`` the number of its ground-truth
            boxes without crowd regions, ``ap`` and ``ap50`` its scores (NaN without boxes).
        backend: name and version of the scoring package.
        notes: caveats of the scores, one line each; usually empty.
    """

    numbers: dict[str, float]
    classes: list[dict[str, Any]]
    backend: str
    notes: tuple[str, ...]


def choose_backend(backend: str) -> str:
    """Resolve ``auto`` to ``faster`` if faster-coco-eval is installed, else to ``pycocotools``.

    Args:
        backend: ``auto``, ``pycocotools`` or ``faster``.

    Returns:
        ``pycocotools`` or ``faster``.

    Raises:
        UsageError: `backend` is ``faster``, but faster-coco-eval is not installed.
    """
    assert backend in ("auto", *_PACKAGES), backend
    installed = find_spec("faster_coco_eval") is not None
    if backend == "faster" and not installed:
        raise UsageError("eval.backend: faster needs faster-coco-eval, but it is missing: pip install 'w2skd[coco]'")
    return ("faster" if installed else "pycocotools") if backend == "auto" else backend


def check_results_path(path: Path) -> None:
    """Check at startup that a results file can be written.

    Raises:
        UsageError: the file is not named ``.json``.
        OutputError: its folder is missing or read-only.
    """
    if path.suffix.lower() != ".json":
        raise UsageError(f"cannot write results to {path}: COCO results are JSON; use the name {path.stem}.json")
    with writing(path), tempfile.TemporaryFile(dir=path.parent):
        pass


class CocoScorer:
    """Collect a detector's detections and score them.

    Images, categories and annotations are renumbered in the order of their ids, because the packages mishandle some
    ids: pycocotools counts a match with annotation id 0 as a miss, and its arrays hold ids as floating-point numbers.

    Args:
        ground_truth: COCO's ``annotations`` and ``categories``, at least those of the listed images. Crowd regions
            count neither as hits nor as misses. ``area`` defaults to the area of the box, ``iscrowd`` to 0.
        category_ids: K ascending ids; label i stands for ``category_ids[i]``.
        image_ids: N unique ids of the images to score; `add` refers to images by their index in this order.
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
        # In id order: the packages break ties between equal scores by it.
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
        """Add the detections of some images, on any device. Images without detections must be added, too.

        Non-finite detections are dropped and counted: pycocotools scores a NaN box as a hit.

        Args:
            places: int64 [n], indices of the images in `image_ids`; each image is added once.
            detections: per image, boxes [d, 4] (xyxy, px), scores [d] and labels int64 [d] in 0..K-1.
            scales: [n, 2], (y, x), divisors that map boxes to px of the original image; None if they are in these
                units already.
        """
        assert len(places) == len(detections), (len(places), len(detections))
        self._seen += places.tolist()
        if not detections:
            return
        counts = torch.tensor([len(scores) for _, scores, _ in detections])
        # One transfer per batch instead of one per image.
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
        """Gather the detections of all ranks on every rank; each rank calls it once, after its last `add`."""
        self._join()
        parts = ranks.gather((self._seen, self._places, self._rows, self._dropped))
        self._seen = [place for seen, _, _, _ in parts for place in seen]
        self._parts = [(places, rows) for _, places, rows, _ in parts]
        self._dropped = sum(dropped for _, _, _, dropped in parts)
        self._places, self._rows = self._places[:0], self._rows[:0]

    def result(self, backend: str = "auto") -> CocoResult:
        """Score the detections; callable on a single rank.

        A metric is 0 without detections and NaN without ground truth.

        Args:
            backend: see `choose_backend`.

        Raises:
            UsageError: the backend's package is not installed.
        """
        chosen = choose_backend(backend)
        self._join()
        with redirect_stdout(io.StringIO()):
            evaluated = self._evaluate(chosen)
        values = (_or_nan(value) for value in evaluated.stats[: len(COCO_METRICS)])
        numbers = dict(zip(COCO_METRICS, values, strict=True))
        package = _PACKAGES[chosen]
        return CocoResult(numbers, self._per_class(evaluated), f"{package} {version(package)}", self._account())

    def write_results(self, path: Path) -> None:
        """Write COCO's results JSON: original ids, boxes as xywh, one detection per line in the order of the images.

        Numbers keep all digits, so scoring the file reproduces `result`. pycocotools cannot load a file without
        detections.

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
        """Concatenate the parts in the order of the images, independent of ranks."""
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
        # Both packages modify the annotations.
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
        # [IoU thresholds, recall thresholds, categories, area ranges, detection limits]
        precision = evaluated.eval["precision"][:, :, :, 0, -1]
        rows = []
        for label, name in enumerate(self._classes):
            ap, ap50 = (_or_nan(_mean(part)) for part in (precision[:, :, label], precision[0, :, label]))
            rows.append({"class": name, "boxes": int(boxes[label]), "ap": ap, "ap50": ap50})
        return rows

    def _account(self) -> tuple[str, ...]:
        lines = []
        if not any(not one["iscrowd"] for one in self._truth):
            lines.append(f"the {len(self._image_ids)} evaluation images have no ground-truth boxes: all scores are NaN")
        if self._dropped:
            total = self._dropped + len(self._rows)
            lines.append(f"dropped {self._dropped} of {total} detections with non-finite values")
        return tuple(lines)


def _indexed(coco: Any, dataset: dict[str, Any]) -> Any:
    made = coco()
    made.dataset = dataset
    made.createIndex()
    return made


def _mean(values: NDArray[np.float64]) -> float:
    """COCO's mean: -1 marks entries without ground truth."""
    present = values[values > -1]
    return float(present.mean()) if len(present) else -1.0


def _or_nan(value: float) -> float:
    return float(value) if value > -1 else math.nan
