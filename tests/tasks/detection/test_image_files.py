"""Image files beside and behind an annotation file."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_boxes
from PIL import Image
from tiny import done

from w2skd.errors import DataError
from w2skd.tasks.detection.coco_files import read_coco
from w2skd.tasks.detection.image_files import describe_unlisted
from w2skd.tasks.detection.listing import check_same_categories

NFC, NFD = "caf\u00e9", "cafe\u0301"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tiny_boxes.coco_files(tmp_path / "coco")


def changed(root: Path, part: str, old: str, new: str) -> tuple[Path, Path]:
    """Replace text in an annotation file; return it and its folder of images."""
    path = root / "annotations" / f"instances_{part}2017.json"
    document = json.loads(path.read_text())
    for row in document["images"] + document["categories"]:
        for key in ("file_name", "name"):
            if key in row:
                row[key] = row[key].replace(old, new)
    path.write_text(json.dumps(document))
    return path, root / f"{part}2017"


def test_files_that_no_annotation_lists_are_counted_by_ending_and_place(root: Path) -> None:
    images = root / "train2017"
    for name in ("900.png", "901.png", "notes.txt", ".DS_Store"):
        (images / name).write_bytes(b"x")
    listings = [read_coco(*changed(root, part, "", "")) for part in ("train", "val")]
    assert describe_unlisted(listings) == [
        f"{images}: 4 files are not read: 2 .png (900.png), 1 hidden (.DS_Store), 1 .txt (notes.txt), because no "
        "annotation lists them"
    ]
    data = tiny_boxes.on_coco(root)
    found = done("distill", "--baseline", "-r", tiny_boxes.recipe_of(root), "--out", root / "out", "--dry-run", *data)
    assert "4 files are not read" in " ".join(found.out.split())


def test_sets_in_one_folder_are_no_leftovers_of_each_other(root: Path) -> None:
    for path in (root / "val2017").iterdir():
        shutil.move(path, root / "train2017")
    annotations = [changed(root, part, "", "")[0] for part in ("train", "val")]
    listings = [read_coco(path, root / "train2017") for path in annotations]
    assert describe_unlisted(listings) == []


def test_images_in_subfolders_are_no_leftovers(root: Path) -> None:
    (root / "train2017/deep/er").mkdir(parents=True)
    shutil.move(root / "train2017/001.png", root / "train2017/deep/er/001.png")
    listing = read_coco(*changed(root, "train", "001.png", "deep/er/001.png"))
    assert describe_unlisted([listing]) == []


@pytest.mark.parametrize(("written", "stored"), [(NFC, NFD), (NFD, NFC)])
def test_names_in_another_unicode_form_are_matched(written: str, stored: str, root: Path) -> None:
    shutil.move(root / "train2017/001.png", root / f"train2017/{stored}.png")
    listing = read_coco(*changed(root, "train", "001", written))
    assert listing.examples.open(0).size == (48, 32)
    assert describe_unlisted([listing]) == []


def test_backslashes_are_matched(root: Path) -> None:
    (root / "train2017/deep").mkdir()
    shutil.move(root / "train2017/001.png", root / "train2017/deep/001.png")
    listing = read_coco(*changed(root, "train", "001.png", "deep\\001.png"))
    assert listing.examples.open(0).size == (48, 32)


def test_another_letter_case_is_named(root: Path) -> None:
    with pytest.raises(
        DataError, match=r"4 of the 4 .* \('001\.PNG' and '001\.png' differ only in letter case\); downl"
    ):
        read_coco(*changed(root, "train", ".png", ".PNG"))


def test_categories_are_composed_and_those_that_look_alike_are_named(root: Path) -> None:
    listing = read_coco(*changed(root, "train", "cat", NFD))
    assert listing.categories[0] == NFC
    other = read_coco(*changed(root, "val", "cat", NFC.upper()))
    with pytest.raises(DataError, match=f"'{NFC}' and '{NFC.upper()}' differ only in letter case: rename one"):
        check_same_categories(listing, other)
    listing = read_coco(*changed(root, "train", "dog", NFC.upper()))
    assert f"categories '{NFC}' and '{NFC.upper()}' differ only in letter case" in listing.notes


def test_an_image_in_both_parts_is_counted(root: Path) -> None:
    Image.new("RGB", (48, 32), (1, 2, 3)).save(root / "train2017/001.png")
    shutil.copy(root / "train2017/001.png", root / "val2017/011.png")
    data = tiny_boxes.on_coco(root)
    found = done("distill", "--baseline", "-r", tiny_boxes.recipe_of(root), "--out", root / "out", *data)
    assert "3 of 3 evaluation images are training images too (same content, such as 011.png and 001.png)" in found.err
