"""``w2skd pack``: packing, training on the result, and input that is refused."""

import errno
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import contents, done, evaluations, refused, w2skd

from w2skd.data import packing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with eight training and four evaluation images each."""
    for part, count in (("train", 8), ("test", 4)):
        for number, label in enumerate(("cat", "dog")):
            (tmp_path / "images" / part / label).mkdir(parents=True)
            for i in range(count):
                color = (i * 9 + len(part), 40 + 90 * number, 200)
                Image.new("RGB", (40, 30), color).save(tmp_path / "images" / part / label / f"{i}.png")
    return tmp_path / "images"


def data(root: Path, source: str = "image_folder") -> tuple[str, ...]:
    return ("--set", f"data={{source: {source}, root: {root}, image_size: 16, workers: 0}}")


@pytest.fixture
def arguments(recipe: Path, folder: Path, tmp_path: Path) -> tuple[object, ...]:
    return ("pack", "-r", recipe, *data(folder), "--out", tmp_path / "packed")


def test_packed_images_are_trained_on(arguments: tuple[object, ...], recipe: Path, tmp_path: Path) -> None:
    said = done(*arguments, "--side", 24)
    assert "train: packed at 24 px (shorter side), JPEG quality 95, from 16 images: pixels differ" in said.out
    assert f"saved {tmp_path}/packed: 24 images" in said.out
    assert "packed 24 of 24 images" in said.err
    run = ("--out", tmp_path / "runs", "--set", "train.batch_size=8", "--set", "train.steps=2")
    said = done("train-teacher", "-r", recipe, *run, *data(tmp_path / "packed", "packed"))
    assert evaluations(tmp_path / "runs" / "teacher")
    assert "packed at 24 px (shorter side), JPEG quality 95" in said.err


def test_an_arm_on_packed_images_is_not_compared_with_one_on_files(
    arguments: tuple[object, ...], recipe: Path, folder: Path, tmp_path: Path
) -> None:
    done(*arguments, "--side", 24)
    run = ("-r", recipe, "--out", tmp_path / "runs", "--set", "train.batch_size=8", "--set", "train.steps=12")
    done("train-teacher", *run, *data(folder))
    done("distill", *run, *data(folder), "--baseline")
    stored = ("distill", *run, *data(tmp_path / "packed", "packed"))
    assert "training set: the content of the images" in refused(*stored, code=2)
    done(*stored, "--allow-changed-data")
    report = json.loads(done("speedup-report", tmp_path / "runs", "--json").out)
    warnings = "\n".join(report["warnings"])
    assert "no speed-up, since runs differ in the training data" in warnings
    assert "no speed-up, since runs differ in data.source" in warnings


def test_json_output(arguments: tuple[object, ...], tmp_path: Path) -> None:
    said = done(*arguments, "--format", "raw", "--json", "--quiet")
    facts = json.loads(said.out)
    assert (facts["examples"], facts["bytes"], said.err) == (24, 24 * 40 * 30 * 3, "")
    assert facts["notes"]["eval"][0].endswith("raw, from 8 images: pixels are those of the original files")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--set", "data.source=cifar10"), ("data.source", "image_folder only", "cifar10")),
        (("--set", "data.source=packed"), ("data.source", "image_folder only", "packed")),
        (("--format", "png"), ("--format png: use jpeg or raw",)),
        (("--side", "12"), ("--side 12 is smaller than data.image_size (16)", "use --side 16 or more")),
        (("--side", "24", "--set", "data.eval_resize=28"), ("--side 24 is smaller than data.eval_resize (28)",)),
    ],
)
def test_wrong_usage(
    more: tuple[str, ...], words: tuple[str, ...], arguments: tuple[object, ...], tmp_path: Path
) -> None:
    before = contents(tmp_path)
    line = refused(*arguments, *more, code=2)
    assert all(word in line for word in words), line
    assert contents(tmp_path) == before


def test_a_recipe_of_another_task_is_refused(tmp_path: Path) -> None:
    assert "image_folder only" in refused("pack", "-r", "bccd_cpu", "--out", tmp_path / "packed", code=2)


def test_every_image_that_cannot_be_decoded_is_counted(
    arguments: tuple[object, ...], folder: Path, tmp_path: Path
) -> None:
    for name in ("train/cat/3.png", *(f"train/dog/{i}.png" for i in range(4)), "test/dog/1.png", "test/dog/3.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:40])
    before = contents(tmp_path)
    line = refused(*arguments, code=1)
    assert line.startswith(f"7 of 24 images cannot be packed, nothing was written: {folder}/train/cat/3.png: ")
    assert line.endswith("; also train/dog/0.png, train/dog/1.png, train/dog/2.png, train/dog/3.png, and 2 more")
    assert contents(tmp_path) == before


def test_folders_that_are_not_empty_are_kept(arguments: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "packed"
    out.mkdir()
    done(*arguments, "--format", "raw")  # an empty folder is fine
    before = contents(out)
    assert "the folder is not empty; give a new one, or --overwrite" in refused(*arguments, code=2)
    assert contents(out) == before
    done(*arguments, "--overwrite")
    assert json.loads((out / "pack.json").read_text())["format"] == "jpeg"
    (out / "pack.json").rename(out / "thesis.doc")
    before = contents(out)
    assert "not replaced, because it contains no pack.json" in refused(*arguments, "--overwrite", code=2)
    assert contents(out) == before
    assert sorted(os.listdir(tmp_path)) == ["images", "packed"]
    (tmp_path / "file").touch()
    assert "is a file; give a folder" in refused(*arguments, "--out", tmp_path / "file", code=2)


def test_a_mount_point_is_refused_before_images_are_read(
    arguments: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "packed")
    assert "a pack cannot replace a mount point; give a folder in it" in refused(*arguments, code=2)
    assert os.listdir(tmp_path) == ["images"]


def fail_after(count: int, error: BaseException) -> Callable[..., None]:
    original, calls = packing._PartWriter.add, iter(range(10**6))

    def add(self: Any, *given: Any) -> None:
        if next(calls) == count:
            raise error
        original(self, *given)

    return add


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "cannot write {out}: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted; nothing was written"),
    ],
)
def test_an_unfinished_pack_leaves_nothing(
    error: BaseException,
    code: int,
    words: str,
    arguments: tuple[object, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = contents(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(packing._PartWriter, "add", fail_after(9, error))
        assert refused(*arguments, "--quiet", code=code) == words.format(out=tmp_path / "packed")
    assert contents(tmp_path) == before
    done(*arguments)
    with monkeypatch.context() as patched:
        patched.setattr(packing._PartWriter, "add", fail_after(9, error))
        before = contents(tmp_path)
        refused(*arguments, "--quiet", "--overwrite", code=code)
    assert contents(tmp_path) == before


def test_files_of_a_killed_pack_are_removed_and_those_of_a_running_one_are_not(
    arguments: tuple[object, ...], tmp_path: Path
) -> None:
    left = tmp_path / ".packed.part"
    left.mkdir()
    (left / "train-00000.bin").write_bytes(b"part of a shard")
    handle = os.open(left, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert "another w2skd pack is writing it" in refused(*arguments, code=2)
    assert os.listdir(left) == ["train-00000.bin"]
    os.close(handle)
    done(*arguments)
    assert sorted(os.listdir(tmp_path)) == ["images", "packed"]


def test_an_output_that_cannot_be_written_is_reported(arguments: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = refused(*arguments, "--out", tmp_path / "file" / "packed", code=1)
    assert line == f"cannot write {tmp_path}/file/packed: Not a directory"


def test_sizes_are_checked() -> None:
    assert w2skd("pack", "-r", "demo", "--out", "x", "--side", 4).code == 2
    assert w2skd("pack", "-r", "demo", "--out", "x", "--quality", 101).code == 2
