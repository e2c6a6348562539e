"""File names and failed writes, which all pictures handle alike."""

import os
from pathlib import Path

import pytest
import torch
from paper import noise

from w2skd.errors import OutputError, UsageError
from w2skd.pictures.batch import draw_batch
from w2skd.pictures.sheet import Sheet
from w2skd.tasks.classification.confusion_picture import draw_confusion
from w2skd.tasks.detection.box_pictures import draw_boxes
from w2skd.tasks.diffusion.sample_pictures import draw_samples


@pytest.mark.parametrize("name", ["c.jpg", "c", "c.png.gz"])
def test_other_file_endings_are_rejected_in_one_line(tmp_path: Path, name: str):
    path = tmp_path / name
    for call in (
        lambda: Sheet().save(path),
        lambda: draw_confusion(torch.eye(2, dtype=torch.int64), ["a", "b"], path, title=""),
        lambda: draw_batch(noise(1, 8, 8), [""], path, title=""),
        lambda: draw_boxes([], path, classes=[], title=""),
        lambda: draw_samples(noise(1, 8, 8), path, title=""),
    ):
        with pytest.raises(UsageError, match=r"^cannot draw .*: pictures are PNG files; name it .*\.png$"):
            call()
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match=r"^cannot write .*nowhere/c\.png: No such file or directory$"):
        Sheet().save(tmp_path / "nowhere" / "c.png")
    assert os.listdir(tmp_path) == []
    Sheet().save(tmp_path / "c.PNG")
    assert os.listdir(tmp_path) == ["c.PNG"]


def test_a_failed_write_keeps_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "c.png"
    path.write_text("old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match=rf"^cannot write {path}: No space left on device$"):
        draw_batch(noise(1, 8, 8), [""], path, title="")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["c.png"]
