"""Predictions of a classifier: files with one row per example, and the confusion matrix.

Shapes: N examples, C classes.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2skd.errors import UsageError
from w2skd.platform.files import write_atomically
from w2skd.records.rows import without_nan

COLUMNS = ("example", "label", "predicted", "correct", "confidence", "top5")


@dataclass(frozen=True, slots=True)
class Prediction:
    """A classifier's prediction for one example.

    Attributes:
        example: name of its file, or its number if examples are not files.
        label: name of its true class.
        predicted: name of the predicted class.
        confidence: softmax probability of the predicted class, in 0..1; NaN if the logits are not finite.
        top5: up to five classes with their probabilities, most probable first.
    """

    example: str
    label: str
    predicted: str
    confidence: float
    top5: tuple[tuple[str, float], ...]


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write one row per example: CSV with a header (``.csv``), or JSON lines (``.jsonl``, ``.json``).

    Probabilities have six significant digits, the precision of float32. In CSV, `top5` contains names joined with
    ``|``. JSON lines also contain their probabilities, and null for non-finite values.

    Raises:
        UsageError: the file name has another ending.
        OutputError: the file cannot be written.
    """
    formats = {".csv": _csv, ".jsonl": _json_lines, ".json": _json_lines}
    ending = path.suffix.lower()
    if ending not in formats:
        raise UsageError(f"cannot write predictions to {path}: name it .csv, or .jsonl for one JSON object per line")
    # A file name in the table may contain bytes that are not UTF-8.
    write_atomically(path, formats[ending](predictions).encode(errors="backslashreplace"))


def _csv(predictions: Iterable[Prediction]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in predictions:
        correct = "true" if one.label == one.predicted else "false"
        names = "|".join(name for name, _ in one.top5)
        writer.writerow([one.example, one.label, one.predicted, correct, f"{one.confidence:.6g}", names])
    return text.getvalue()


def _json_lines(predictions: Iterable[Prediction]) -> str:
    lines = []
    for one in predictions:
        values = {
            "example": one.example,
            "label": one.label,
            "predicted": one.predicted,
            "correct": one.label == one.predicted,
            "confidence": _six_digits(one.confidence),
            "top5": [{"class": name, "probability": _six_digits(probability)} for name, probability in one.top5],
        }
        lines.append(json.dumps(without_nan(values), ensure_ascii=False, allow_nan=False) + "\n")
    return "".join(lines)


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")


def count_confusion(predictions: Iterable[Prediction], classes: Sequence[str]) -> Tensor:
    """Build the `confusion` matrix of predictions; class names must be unique."""
    places = {name: place for place, name in enumerate(classes)}
    pairs = [(places[one.label], places[one.predicted]) for one in predictions]
    labels, predicted = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1)
    return confusion(labels, predicted, len(classes))


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Count the examples of each true class by predicted class.

    Args:
        labels: true classes, int64 [N] in 0..C-1, on any device.
        predicted: predicted classes in the same form.
        classes: C.

    Returns:
        int64 [C, C] on the CPU; rows are true classes, columns predicted ones.

    Raises:
        ValueError: the shapes differ, or a class is not in 0..C-1.
    """
    if labels.ndim != 1 or labels.shape != predicted.shape:
        raise ValueError(f"labels {list(labels.shape)} and predictions {list(predicted.shape)} do not match")
    # Deterministic mode rejects bincount on CUDA.
    labels, predicted = labels.cpu(), predicted.cpu()
    for name, values in (("labels", labels), ("predictions", predicted)):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < classes:
            raise ValueError(f"{name} in {int(values.min())}..{int(values.max())}, expected 0..{classes - 1}")
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


def most_confused(counts: Tensor, classes: Sequence[str], top: int = 10) -> list[dict[str, Any]]:
    """List the most frequent confusions.

    Args:
        counts: the `confusion` matrix, int64 [C, C].
        classes: C names.
        top: maximum number of pairs.

    Returns:
        One row per pair that occurs: ``true`` and ``predicted`` names, ``count``, and ``share`` of the true class's
        examples in 0..1. Sorted by count, then by share, both descending, then by class index.
    """
    assert counts.shape == (len(classes), len(classes)), (counts.shape, len(classes))
    counts = counts.cpu()
    # Only pairs that occur are sorted: a thousand classes have a million pairs, most of them empty.
    true, predicted = (counts - counts.diag().diag()).nonzero(as_tuple=True)
    found = counts[true, predicted]
    shares = found.double() / counts.sum(dim=1)[true]
    pairs = zip(found.tolist(), shares.tolist(), true.tolist(), predicted.tolist(), strict=True)
    ranked = sorted(pairs, key=lambda pair: (-pair[0], -pair[1]))
    return [
        {"true": classes[row], "predicted": classes[column], "count": count, "share": share}
        for count, share, row, column in ranked[:top]
    ]
