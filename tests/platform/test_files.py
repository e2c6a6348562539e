import json
import os
import stat
from pathlib import Path

import pytest
from tiny import largest_file

from w2skd.errors import OutputError
from w2skd.platform.files import atomic_file, remove_unfinished, write_atomically, write_json, writing


def write_half(path: Path, error: BaseException) -> None:
    with atomic_file(path) as file:
        file.write(b"half of it")
        raise error


def test_content_is_replaced_completely(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old and long")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_readers_see_the_old_content_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_content_is_flushed_to_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, original=original: (calls.append(name), original(*a)))
    write_atomically(tmp_path / "file", b"new")
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_failing_block_leaves_the_old_content_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(type(error)):
        write_half(path, error)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_reported_and_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with largest_file(1000), pytest.raises(OutputError, match=rf"^cannot write {path}: File too large$"):
        write_atomically(path, bytes(5000))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*nowhere/file: No such file"):
        write_atomically(tmp_path / "nowhere" / "file", b"")


def test_only_errors_of_the_system_become_output_errors(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"^cannot write here: No space left on device$"), writing(Path("here")):
        raise OSError(28, "No space left on device")
    with pytest.raises(ValueError, match=r"^mine$"), writing(tmp_path):
        raise ValueError("mine")


def test_only_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process does not clean up
        with pytest.raises(KeyboardInterrupt):
            write_half(tmp_path / "file", KeyboardInterrupt())
    kept = {"file", ".lock", ".DS_Store", "x.part"}
    for name in kept:
        (tmp_path / name).touch()
    assert len(os.listdir(tmp_path)) == 5
    remove_unfinished(tmp_path)
    assert set(os.listdir(tmp_path)) == kept


def test_json_is_indented_and_valid(tmp_path: Path) -> None:
    values = {"name": "Größe", "list": [1, 2.5, None]}
    write_json(tmp_path / "file.json", values)
    text = (tmp_path / "file.json").read_text(encoding="utf-8")
    assert json.loads(text) == values
    assert "Größe" in text
    assert text.endswith("}\n")


def test_json_holds_file_names_that_are_not_unicode(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"name": "\udcff.png"})
    assert json.loads((tmp_path / "file.json").read_text(encoding="utf-8")) == {"name": "\udcff.png"}
