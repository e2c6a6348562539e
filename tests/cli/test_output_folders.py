"""Folders that ``w2skd evaluate`` writes to are checked at startup."""

import os
import re
from pathlib import Path

import pytest

from w2skd.cli.evaluate import _check_writable
from w2skd.errors import OutputError, UsageError


def test_new_and_empty_folders_are_accepted_and_nothing_is_left_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new", tmp_path / "far" / "away"):
        _check_writable("samples", folder)
    assert os.listdir(tmp_path) == ["empty"]
    assert os.listdir(tmp_path / "empty") == []


def test_a_relative_folder_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _check_writable("samples", Path("a") / "b")
    assert os.listdir(tmp_path) == []


def test_a_folder_with_a_hidden_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_text("mine")
    with pytest.raises(UsageError, match=rf"^--samples {re.escape(str(tmp_path))}: the folder is not empty"):
        _check_writable("samples", tmp_path)


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "samples"):
        with pytest.raises(OutputError, match=rf"^cannot write {re.escape(str(folder))}: Not a directory$"):
            _check_writable("samples", folder)
