"""Reading of COCO files: boxes for training, ground truth for scoring, and errors."""

import copy
import json
import pickle
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from w2skd.data.paths import TextList
from w2skd.errors import DataError
from w2skd.tasks.detection.coco_files import read_coco
from w2skd.tasks.detection.image_files import CocoFiles
from w2skd.tasks.detection.listing import CocoListing

ORIENTATION = 0x0112

GOOD = {
    "info": {"year": 2024},
    "images": [
        {"id": 30, "file_name": "c.png", "width": 40, "height": 20},
        {"id": 10, "file_name": "a.png", "width": 32, "height": 24},
        {"id": 20, "file_name": "deep/b.png", "width": 16, "height": 16, "license": 4},
    ],
    "annotations": [
        {"id": 1, "image_id": 10, "category_id": 90, "bbox": [1.5, 2, 10, 12.25], "area": 60.5, "iscrowd": 0},
        {
            **{"id": 5, "image_id": 30, "category_id": 7, "bbox": [0, 0, 40, 20], "area": 300, "iscrowd": 1},
            "segmentation": {"counts": [10, 300, 490], "size": [20, 40]},
        },
        {
            **{"id": 3, "image_id": 10, "category_id": 7, "bbox": [20, 4, 8, 8], "area": 40, "iscrowd": 0},
            "segmentation": [[20, 4, 28, 4, 28, 12]],
        },
        {"id": 4, "image_id": 30, "category_id": 7, "bbox": [0, 1, 2, 3], "area": 6, "iscrowd": 0},
    ],
    "categories": [{"id": 90, "name": "dog"}, {"id": 7, "name": "cat", "supercategory": "animal"}],
}


def save(tmp_path: Path, document: Any = GOOD, *, pictures: bool = True) -> tuple[Path, Path]:
    """The annotations in a file, and a folder with their images."""
    path, folder = tmp_path / "instances.json", tmp_path / "images"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    (folder / "deep").mkdir(parents=True)
    for row in GOOD["images"] if pictures else ():
        Image.new("RGB", (row["width"], row["height"]), (200, 10, 30)).save(folder / row["file_name"])
    return path, folder


def changed(change: Callable[[Any], None]) -> Any:
    document = copy.deepcopy(GOOD)
    change(document)
    return document


def read(tmp_path: Path, document: Any = GOOD) -> CocoListing:
    return read_coco(*save(tmp_path, document))


def test_masks_take_no_memory_while_the_file_is_read(tmp_path: Path) -> None:
    document = changed(lambda document: None)
    for row in document["annotations"]:
        row["segmentation"] = [[number + 0.5 for number in range(50_000)]]
    path, folder = save(tmp_path, document)
    tracemalloc.start()
    try:
        listing = read_coco(path, folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The text, and the parsed mask of one of the four annotations, which takes four times its text.
    assert peak < 3 * path.stat().st_size
    assert listing.ground_truth()["annotations"][0]["segmentation"] == document["annotations"][0]["segmentation"]


def test_names_of_files_are_kept_without_an_object_per_image(tmp_path: Path) -> None:
    files = read(tmp_path).examples
    assert isinstance(files, CocoFiles)
    assert isinstance(files.names, TextList)
    chosen = files.select(torch.tensor([2, 0]))
    assert list(chosen.names) == ["deep/b.png", "c.png"]
    assert chosen.sizes.tolist() == [[16, 16], [20, 40]]
    assert isinstance(chosen.names, TextList)


def test_labels_follow_the_ids_of_categories_and_boxes_their_images(tmp_path: Path) -> None:
    listing = read(tmp_path)
    assert (len(listing), listing.categories, listing.category_ids) == (3, ("cat", "dog"), (7, 90))
    assert listing.image_ids.tolist() == [30, 10, 20]
    assert listing.sizes.tolist() == [[20, 40], [24, 32], [16, 16]]
    assert [listing.examples.name(index) for index in range(3)] == ["c.png", "a.png", "deep/b.png"]
    assert listing.boxes(0).boxes.tolist() == [[0, 1, 2, 4]]
    assert listing.boxes(1).boxes.tolist() == [[1.5, 2, 11.5, 14.25], [20, 4, 28, 12]]
    assert listing.boxes(1).labels.tolist() == [1, 0]
    assert (listing.boxes(1).boxes.dtype, listing.boxes(1).labels.dtype) == (torch.float32, torch.int64)
    assert listing.boxes(2).boxes.shape == (0, 4)
    assert listing.notes == (
        "1 crowd regions are used for scoring only",
        "1 of 3 images have no boxes for training",
    )
    assert pickle.loads(pickle.dumps(listing.examples)).open(1).size == (32, 24)


def test_scoring_gets_the_file_as_it_is(tmp_path: Path) -> None:
    listing = read(tmp_path)
    truth = listing.ground_truth()
    assert truth == {key: GOOD[key] for key in ("images", "annotations", "categories")}
    some = listing.select(torch.tensor([1, 2])).ground_truth()
    assert [image["id"] for image in some["images"]] == [10, 20]
    assert [one["id"] for one in some["annotations"]] == [1, 3]
    assert some["categories"] == GOOD["categories"]


def test_missing_fields_that_scorers_need_get_defaults(tmp_path: Path) -> None:
    def change(document: Any) -> None:
        for number, row in enumerate(document["annotations"]):
            del row["iscrowd"], row["area"]
            row["id"] = number

    listing = read(tmp_path, changed(change))
    truth = listing.ground_truth()["annotations"]
    assert [row["area"] for row in truth] == [10 * 12.25, 800, 64, 6]
    assert [row["iscrowd"] for row in truth] == [0, 0, 0, 0]
    assert [row["id"] for row in truth] == [1, 2, 3, 4]  # a match with id 0 counts as none
    assert len(listing.table.labels) == 4
    assert "4 annotations have no area: scoring uses the areas of their boxes" in listing.notes


def test_boxes_are_clipped_or_dropped_for_training_only_and_counted(tmp_path: Path) -> None:
    boxes = [
        [-5, -5, 10, 10],
        [30, 20, 10, 10],
        [3, 3, 0, 5],
        [3, 3, 5, 0],
        [32, 3, 5, 5],
        [-9, 3, 9, 5],
        [3, 100, 5, 5],
        [1e-9, 3, 1e-9, 5],
        [30, 3, 2.005, 5],
    ]

    def change(document: Any) -> None:
        document["annotations"] = [
            {"id": 1 + number, "image_id": 10, "category_id": 7, "bbox": box, "area": 1, "iscrowd": 0}
            for number, box in enumerate(boxes)
        ]

    listing = read(tmp_path, changed(change))
    expected = [[0, 0, 5, 5], [30, 20, 32, 24], [1e-9, 3, 2e-9, 8], [30, 3, 32, 8]]
    torch.testing.assert_close(listing.boxes(1).boxes, torch.tensor(expected))
    assert listing.notes == (
        "2 boxes without area are excluded from training",
        "3 boxes outside of their images are excluded from training",
        "2 boxes beyond the edges of their images are clipped for training",
        "2 of 3 images have no boxes for training",
    )
    assert [row["bbox"] for row in listing.ground_truth()["annotations"]] == boxes


def test_a_box_too_thin_for_float32_is_dropped(tmp_path: Path) -> None:
    def change(document: Any) -> None:
        document["annotations"] = [{"id": 1, "image_id": 10, "category_id": 7, "bbox": [20, 4, 1e-9, 8]}]

    listing = read(tmp_path, changed(change))
    assert len(listing.table.labels) == 0
    assert listing.notes[0] == "1 boxes without area are excluded from training"


def test_greyscale_images_become_rgb(tmp_path: Path) -> None:
    path, folder = save(tmp_path)
    Image.new("L", (32, 24), 77).save(folder / "a.png")
    image = read_coco(path, folder).examples.open(1)
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (77, 77, 77))


@pytest.mark.parametrize(
    ("stored", "orientation", "corner"),
    [
        ((24, 32), 6, (0, 0, 255)),  # turned, it is what the file says: its bottom left comes to the top left
        ((32, 24), 6, (255, 0, 0)),  # turned, it is not; as it lies, it is
        ((32, 24), 3, (0, 255, 0)),  # both are: upright wins, as annotators saw it
        ((32, 24), 1, (255, 0, 0)),
    ],
)
def test_exif_orientation_is_applied_where_the_annotations_match_it(
    stored: tuple[int, int], orientation: int, corner: tuple[int, int, int], tmp_path: Path
) -> None:
    path, folder = save(tmp_path)
    pixels = np.zeros((stored[1], stored[0], 3), dtype=np.uint8)
    pixels[:8, :8], pixels[-8:, :8], pixels[-8:, -8:] = (255, 0, 0), (0, 0, 255), (0, 255, 0)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(folder / "a.png", exif=exif)
    image = read_coco(path, folder).examples.open(1)
    assert image.size == (32, 24)
    assert image.getpixel((1, 1)) == corner


def test_an_image_of_another_size_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    path, folder = save(tmp_path)
    Image.new("RGB", (24, 33)).save(folder / "a.png")
    with pytest.raises(DataError, match=r"a\.png: is 24 x 33 px .*, but its annotations state 32 x 24 px$"):
        read_coco(path, folder).examples.open(1)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (json.dumps(GOOD)[:700], "is truncated after 700 characters; download or export it again"),
        (json.dumps(GOOD)[:-1], "is truncated"),
        (json.dumps(GOOD)[: json.dumps(GOOD).index("file_name") + 4], "is truncated"),
        ("", "is empty"),
        ('{"images": [,]}', "invalid JSON: Expecting value at line 1, column 13"),
        ("not JSON at all", "invalid JSON: Expecting value at line 1, column 1"),
        ("\x00\x01", "invalid JSON"),
        ("[1]", "not in COCO format: expected an object with images, annotations, categories"),
        ("3", "not in COCO format"),
        ("[" * 100_000, "invalid JSON"),
    ],
)
def test_a_file_that_is_not_coco_is_refused(document: str, problem: str, tmp_path: Path) -> None:
    path, folder = save(tmp_path, document)
    with pytest.raises(DataError, match=f"^{path}: {problem}") as caught:
        read_coco(path, folder)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_recognised_at_any_length(tmp_path: Path) -> None:
    path, folder = save(tmp_path)
    text = path.read_text()
    for length in range(1, len(text), 7):
        path.write_text(text[:length])
        with pytest.raises(DataError, match="is truncated"):
            read_coco(path, folder)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path, folder = save(tmp_path)
    path.write_bytes(b"\xff\xd8\xff\xe0" * 10)
    with pytest.raises(DataError, match=r"instances\.json: invalid JSON: not a text file"):
        read_coco(path, folder)
    with pytest.raises(DataError, match=r"^\S*nothing.json: No such file"):
        read_coco(tmp_path / "nothing.json", folder)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_the_three_lists_must_be_there(key: str, tmp_path: Path) -> None:
    path, folder = save(tmp_path)
    for value, problem in (({}, f"'{key}' is {{}}, not a list"), ([], f"has no {key}$")):
        path.write_text(json.dumps(GOOD | {key: value}))
        with pytest.raises(DataError, match=problem):
            read_coco(path, folder)
    path.write_text(json.dumps({name: value for name, value in GOOD.items() if name != key}))
    with pytest.raises(DataError, match=f"not in COCO format: missing key '{key}'; keys: info, "):
        read_coco(path, folder)


def put(kind: str, place: int, **values: Any) -> Any:
    return changed(lambda document: document[kind][place].update(values))


def without(kind: str, place: int, key: str) -> Any:
    return changed(lambda document: document[kind][place].pop(key))


BOX = r"expected \[x, y, width, height\] in px, four finite numbers, width and height at least 0"


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (put("annotations", 2, bbox=[1, 2, -3, 4]), rf"annotation 3 \(image 10\): bbox \[1, 2, -3, 4\]: {BOX}"),
        (put("annotations", 2, bbox=[1, 2, 3]), rf"annotation 3 \(image 10\): bbox \[1, 2, 3\]: {BOX}"),
        (put("annotations", 2, bbox=["1", "2", "3", "4"]), r"annotation 3 \(image 10\): bbox \['1', '2', '3', '4'\]"),
        (put("annotations", 2, bbox="1234"), r"annotation 3 \(image 10\): bbox '1234'"),
        (put("annotations", 2, bbox=None), r"annotation 3 \(image 10\): bbox None"),
        (put("annotations", 2, bbox=[1, 2, float("nan"), 4]), r"annotation 3 \(image 10\): bbox \[1, 2, nan, 4\]"),
        (put("annotations", 2, bbox=[1, 2, 3, float("inf")]), r"annotation 3 \(image 10\): bbox \[1, 2, 3, inf\]"),
        (put("annotations", 2, bbox=[1, 2, 3, 10**400]), r"annotation 3 \(image 10\): bbox \[1, 2, 3, 1000"),
        (without("annotations", 2, "bbox"), rf"annotation 3 \(image 10\) has no 'bbox': {BOX}"),
        (put("annotations", 2, image_id=11), r"annotation 3 \(image 11\): image_id 11: the file has no image with"),
        (
            put("annotations", 2, category_id=8),
            r"annotation 3 \(image 10\): category_id 8: the file has no category",
        ),
        (
            put("annotations", 2, category_id=91),
            r"annotation 3 \(image 10\): category_id 91: the file has no category",
        ),
        (put("annotations", 2, category_id="7"), r"annotation 3 \(image 10\): category_id '7': expected an integer"),
        (without("annotations", 2, "image_id"), r"annotation 3 has no 'image_id': expected an integer"),
        (put("annotations", 2, id=5), r"annotation id 5 occurs 2 times; 1 ids of annotations are not unique"),
        (put("annotations", 2, id=1.5), r"annotations\[2\] \(image 10\): id 1\.5: expected an integer"),
        (without("annotations", 2, "id"), r"annotations\[2\] \(image 10\) has no 'id'"),
        (put("annotations", 2, area="40"), r"annotation 3 \(image 10\): area '40': expected a finite number"),
        (put("annotations", 2, iscrowd=None), r"annotation 3 \(image 10\): iscrowd None: expected a finite number"),
        (changed(lambda d: d["annotations"].insert(1, 17)), r"annotations\[1\] is 17, not an object"),
        (put("images", 1, id=30), r"image id 30 occurs 2 times"),
        (put("images", 1, id="10"), r"images\[1\]: id '10': expected an integer"),
        (put("images", 1, width=0), r"image 10: width 0: expected an integer number of px, at least 1"),
        (put("images", 1, height=24.5), r"image 10: height 24\.5: expected an integer number of px"),
        (put("images", 1, height="24"), r"image 10: height '24': expected a finite number"),
        (without("images", 1, "width"), r"image 10 has no 'width'"),
        (put("images", 1, file_name=7), r"image 10: file_name 7: expected a string"),
        (without("images", 1, "file_name"), r"image 10 has no 'file_name'"),
        (put("categories", 0, id=7), r"category id 7 occurs 2 times"),
        (put("categories", 0, name="cat"), r"two categories, 90 and 7, have the same name 'cat'"),
        (without("categories", 1, "name"), r"category 7 has no 'name'"),
        (changed(lambda d: d["categories"].append("bird")), r"categories\[2\] is 'bird', not an object"),
    ],
)
def test_a_bad_record_is_named(document: Any, problem: str, tmp_path: Path) -> None:
    path, folder = save(tmp_path, document)
    with pytest.raises(DataError, match=f"^{path}: {problem}") as caught:
        read_coco(path, folder)
    assert "\n" not in str(caught.value)


def test_sizes_may_be_written_as_floats(tmp_path: Path) -> None:
    assert read(tmp_path, put("images", 1, width=32.0)).sizes[1].tolist() == [24, 32]


def test_missing_images_are_named(tmp_path: Path) -> None:
    path, folder = save(tmp_path)
    (folder / "deep/b.png").unlink()
    with pytest.raises(DataError, match=rf"^{folder}: 1 of the 3 images in {path} are missing: deep/b\.png; download"):
        read_coco(path, folder)


def test_annotations_of_other_images_are_refused(tmp_path: Path) -> None:
    path, folder = save(tmp_path, pictures=False)
    Image.new("RGB", (8, 8)).save(folder / "other.png")
    expected = rf"^{path}: does not belong to the images in {folder}: 3 of 3 are missing \(c\.png, a\.png, deep/b"
    with pytest.raises(DataError, match=expected):
        read_coco(path, folder)
    with pytest.raises(DataError, match=rf"nowhere: no such folder; it should contain the images of {path}"):
        read_coco(path, tmp_path / "nowhere")


def test_a_file_that_changes_between_readings_is_refused(tmp_path: Path) -> None:
    path, folder = save(tmp_path)
    listing = read_coco(path, folder)
    path.write_text(json.dumps(changed(lambda document: document["images"].pop(0))))
    with pytest.raises(DataError, match="changed since it was first read"):
        listing.ground_truth()


@pytest.fixture(scope="module")
def coco_tiny(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotations and validation images of the real COCO."""
    target = tmp_path_factory.mktemp("coco")
    with tarfile.open(shared_data / "coco-tiny.tar.xz") as archive:
        members = [member for member in archive if "/train2017/" not in member.name]
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 or newer
        archive.extractall(target, members)
    return target / "coco-tiny"


@pytest.mark.shared_data
def test_real_coco_is_read(coco_tiny: Path) -> None:
    path = coco_tiny / "annotations/instances_val2017.json"
    listing = read_coco(path, coco_tiny / "val2017")
    assert (len(listing), len(listing.categories), listing.category_ids[-1]) == (80, 80, 90)
    assert listing.notes == ("11 crowd regions are used for scoring only",)
    document = json.loads(path.read_text())
    truth = listing.ground_truth()
    assert truth == {key: document[key] for key in ("images", "annotations", "categories")}
    for index in range(0, 80, 8):
        image_id = int(listing.image_ids[index])
        rows = [row for row in document["annotations"] if row["image_id"] == image_id and not row["iscrowd"]]
        boxes = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(listing.boxes(index).boxes.numpy(), boxes, atol=0.02)
        ids = [listing.category_ids[label] for label in listing.boxes(index).labels.tolist()]
        assert ids == [row["category_id"] for row in rows]
        height, width = listing.sizes[index].tolist()
        assert listing.examples.open(index).size == (width, height)
