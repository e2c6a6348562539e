import csv
import json
import os
from pathlib import Path

import pytest
import torch

from w2skd.errors import OutputError, UsageError
from w2skd.tasks.classification.predictions import (
    Prediction,
    confusion,
    count_confusion,
    most_confused,
    write_predictions,
)

RIGHT = Prediction("val/cat/1.jpg", "cat", "cat", 0.75, (("cat", 0.75), ("dog", 0.25)))
WRONG = Prediction("17", "dog", "cat", 1 / 3, (("cat", 1 / 3), ("dog", 1.5e-9)))


def test_csv_has_one_row_per_example(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_predictions(path, [RIGHT, WRONG])
    assert path.read_text().splitlines() == [
        "example,label,predicted,correct,confidence,top5",
        "val/cat/1.jpg,cat,cat,true,0.75,cat|dog",
        "17,dog,cat,false,0.333333,cat|dog",
    ]


@pytest.mark.parametrize("name", ["out.jsonl", "out.json", "out.JSONL"])
def test_json_lines_contain_probabilities(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_predictions(path, [RIGHT, WRONG])
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first == {
        "example": "val/cat/1.jpg",
        "label": "cat",
        "predicted": "cat",
        "correct": True,
        "confidence": 0.75,
        "top5": [{"class": "cat", "probability": 0.75}, {"class": "dog", "probability": 0.25}],
    }
    assert (second["correct"], second["confidence"]) == (False, 0.333333)
    assert second["top5"][1]["probability"] == 1.5e-9


@pytest.mark.parametrize("name", ['a,b "c"', "two\nlines", "Größe", " x"])
def test_any_name_is_preserved(tmp_path: Path, name: str) -> None:
    prediction = Prediction(name, name, name, 1.0, ((name, 1.0),))
    write_predictions(tmp_path / "out.csv", [prediction])
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["example"], row["label"], row["predicted"], row["top5"]) == (name,) * 4
    write_predictions(tmp_path / "out.jsonl", [prediction])
    (line,) = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["top5"][0]["class"] == name


def test_a_file_name_that_is_not_utf8_can_be_written(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    for path in (tmp_path / "out.csv", tmp_path / "out.jsonl"):
        write_predictions(path, [Prediction(name, "a", "a", 1.0, (("a", 1.0),))])
        assert "caf\\udce9.jpg" in path.read_text(encoding="utf-8")
    assert json.loads((tmp_path / "out.jsonl").read_text())["example"] == name


def test_a_nan_probability_is_null_in_json(tmp_path: Path) -> None:
    nan = Prediction("1", "a", "a", float("nan"), (("a", float("nan")),))
    write_predictions(tmp_path / "out.jsonl", [nan])
    values = json.loads((tmp_path / "out.jsonl").read_text(), parse_constant=pytest.fail)
    assert (values["confidence"], values["top5"]) == (None, [{"class": "a", "probability": None}])
    write_predictions(tmp_path / "out.csv", [nan])
    assert (tmp_path / "out.csv").read_text().splitlines()[1] == "1,a,a,true,nan,a"


@pytest.mark.parametrize("name", ["out.txt", "out", "out.csv.gz", ".csv"])
def test_other_file_endings_are_rejected_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"^cannot write predictions to .*: name it \.csv, or \.jsonl .*$") as caught:
        write_predictions(tmp_path / name, [RIGHT])
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"^cannot write .*nowhere/out\.csv: No such file or directory$"):
        write_predictions(tmp_path / "nowhere" / "out.csv", [RIGHT])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["old.csv", "new.jsonl"])
def test_only_the_written_file_changes(tmp_path: Path, name: str) -> None:
    (tmp_path / "other.csv").write_text("other")
    (tmp_path / "old.csv").write_text("old")
    write_predictions(tmp_path / name, [RIGHT])
    assert sorted(os.listdir(tmp_path)) == sorted({"other.csv", "old.csv", name})
    assert (tmp_path / "other.csv").read_text() == "other"


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    def failing():
        yield RIGHT
        raise RuntimeError("no")

    path = tmp_path / "out.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        write_predictions(path, failing())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.csv"]


def test_confusion_matches_counting_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, predicted = torch.randint(7, (2, 300), generator=generator)
    expected = [[0] * 7 for _ in range(7)]
    for label, guess in zip(labels.tolist(), predicted.tolist(), strict=True):
        expected[label][guess] += 1
    counts = confusion(labels, predicted, 7)
    assert counts.dtype == torch.int64
    assert counts.tolist() == expected


def test_confusion_is_square_for_classes_that_do_not_occur() -> None:
    assert confusion(torch.tensor([0]), torch.tensor([1]), 3).tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    none = torch.zeros(0, dtype=torch.int64)
    assert confusion(none, none, 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.cuda
@pytest.mark.needs_gpu(reason="CUDA's bincount")
def test_confusion_of_a_cuda_device_works_in_deterministic_mode() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        counts = confusion(torch.tensor([1, 1]).cuda(), torch.tensor([0, 0]).cuda(), 2)
    finally:
        torch.use_deterministic_algorithms(before)
    assert counts.tolist() == [[0, 0], [2, 0]]


@pytest.mark.parametrize(
    ("labels", "predicted", "says"),
    [
        ([0, 1], [0], r"labels \[2\] and predictions \[1\]"),
        ([[0]], [[0]], r"labels \[1, 1\]"),
        ([0, 2], [0, 0], r"labels in 0\.\.2, expected 0\.\.1"),
        ([0, 1], [-1, 1], r"predictions in -1\.\.1, expected 0\.\.1"),  # would be counted as another class's
    ],
)
def test_confusion_rejects_invalid_input(labels: list[int], predicted: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        confusion(torch.tensor(labels), torch.tensor(predicted), 2)


def test_confusions_are_sorted_and_ties_are_ordered() -> None:
    counts = torch.tensor([[90, 3, 7], [3, 3, 0], [7, 3, 90]])
    rows = most_confused(counts, "abc")
    assert [(row["true"], row["predicted"], row["count"]) for row in rows] == [
        ("a", "c", 7),
        ("c", "a", 7),
        ("b", "a", 3),  # half of its class
        ("a", "b", 3),
        ("c", "b", 3),
    ]
    assert [row["share"] for row in rows] == [0.07, 0.07, 0.5, 0.03, 0.03]
    assert {type(row["count"]) for row in rows} == {int}
    assert most_confused(counts, "abc", top=2) == rows[:2]


def test_without_errors_there_are_no_confusions() -> None:
    assert most_confused(torch.tensor([[5, 0], [0, 0]]), "ab") == []


def test_predictions_are_counted_by_name() -> None:
    counts = count_confusion([RIGHT, WRONG, RIGHT], ["dog", "cat", "cow"])
    assert counts.tolist() == [[0, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert count_confusion([], ["dog", "cat"]).tolist() == [[0, 0], [0, 0]]
