"""What a classifier said of every example: the file of predictions, and which classes it takes for each other.

Shape letters: N examples, C classes.
"""

import csv
import io
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2skd.errors import UsageError
from w2skd.platform.files import write_atomically, writing
from w2skd.records.rows import without_nan

COLUMNS = ("example", "label", "predicted", "correct", "confidence", "top5")

_CSV, _JSON_LINES = (".csv",), (".jsonl", ".json")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One example, as the model sees it.

    Attributes:
        example: its file, or its number where examples are no files.
        label: name of its class.
        predicted: name of the class that the model gives it.
        confidence: softmax probability of that class, in 0..1; NaN when the logits are not finite.
        top5: up to five classes with their probabilities, the most probable first.
    """

    example: str
    label: str
    predicted: str
    confidence: float
    top5: tuple[tuple[str, float], ...]


def check_predictions_path(path: Path) -> None:
    """Say before hours of work what would go wrong after them.

    Raises:
        UsageError: the file's ending names no format.
        OutputError: its folder is missing or read-only.
    """
    if path.suffix.lower() not in _CSV + _JSON_LINES:
        raise UsageError(f"cannot write predictions to {path}: name it .csv, or .jsonl for one JSON object a line")
    with writing(path), tempfile.TemporaryFile(dir=path.parent):
        pass


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write one row an example, in their order: CSV with a header (``.csv``), or JSON lines (``.jsonl``, ``.json``).

    Probabilities have six significant digits, what float32 carries. In CSV, `top5` is the names joined with ``|``; a
    JSON line has their probabilities too, and null for what is not finite.

    Raises:
        UsageError: the file's ending names no format.
        OutputError: the file cannot be written.
    """
    check_predictions_path(path)
    text = _csv(predictions) if path.suffix.lower() in _CSV else _json_lines(predictions)
    # A file's name may hold bytes that are no UTF-8; the table must be UTF-8 all the same.
    write_atomically(path, text.encode(errors="backslashreplace"))


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
    """See `confusion`, for predictions by name of classes that all differ."""
    places = {name: place for place, name in enumerate(classes)}
    pairs = [(places[one.label], places[one.predicted]) for one in predictions]
    labels, predicted = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1)
    return confusion(labels, predicted, len(classes))


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Count how often each class is taken for each.

    Args:
        labels: true classes, int64 [N] in 0..C-1, on any device.
        predicted: the model's, likewise.
        classes: C.

    Returns:
        int64 [C, C] on the CPU, exact; rows are true classes, columns predicted ones.

    Raises:
        ValueError: the shapes do not fit, or a class is not in 0..C-1.
    """
    if labels.ndim != 1 or labels.shape != predicted.shape:
        raise ValueError(f"labels {list(labels.shape)} and predictions {list(predicted.shape)}")
    # On the CPU, for on CUDA deterministic mode refuses bincount.
    labels, predicted = labels.cpu(), predicted.cpu()
    for name, values in (("labels", labels), ("predictions", predicted)):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < classes:
            raise ValueError(f"{name} in {int(values.min())}..{int(values.max())} of {classes} classes")
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


def most_confused(counts: Tensor, classes: Sequence[str], top: int = 10) -> list[dict[str, Any]]:
    """The pairs of classes behind most errors.

    Args:
        counts: of `confusion`, int64 [C, C].
        classes: their C names.
        top: how many pairs at most.

    Returns:
        One row a pair that occurs: ``true`` and ``predicted`` names, ``count``, and ``share`` of the true class's
        examples in 0..1. Most frequent first; of equal counts the larger share, then the order of the classes.
    """
    assert counts.shape == (len(classes), len(classes)), (counts.shape, len(classes))
    counts = counts.cpu()
    # Only what occurs is sorted: a thousand classes have a million pairs, of which most are empty.
    true, predicted = (counts - counts.diag().diag()).nonzero(as_tuple=True)
    found = counts[true, predicted]
    shares = found.double() / counts.sum(dim=1)[true]
    pairs = zip(found.tolist(), shares.tolist(), true.tolist(), predicted.tolist(), strict=True)
    ranked = sorted(pairs, key=lambda pair: (-pair[0], -pair[1]))
    return [
        {"true": classes[row], "predicted": classes[column], "count": count, "share": share}
        for count, share, row, column in ranked[:top]
    ]
