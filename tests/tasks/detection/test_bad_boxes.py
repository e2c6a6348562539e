"""Bad files of boxes get one clear line that names file and record, and nothing is lost or written.

All the ways in which a file can be wrong are in ``data/test_coco.py``; this is what a user sees of them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import contents, done, evaluations, refused, w2skd
from tiny_boxes import coco_files, on_coco, recipe_of

TRAIN, EVALUATION = "annotations/instances_train2017.json", "annotations/instances_val2017.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return coco_files(tmp_path / "coco")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return recipe_of(tmp_path)


def rewrite(file: Path, change: Callable[[Any], None]) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def box(*numbers: Any) -> Callable[[Any], None]:
    return lambda document: document["annotations"][1].update(bbox=list(numbers))


def test_files_as_coco_has_them_are_learned_from(recipe: Path, root: Path, tmp_path: Path) -> None:
    done("train-teacher", "-r", recipe, "--out", tmp_path / "runs", *on_coco(root))
    ((step, *_, metrics),) = evaluations(tmp_path / "runs" / "teacher")
    assert step == 1
    assert 0 <= metrics["ap50"] <= 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda document: document.pop("images"),
            "not in COCO format: missing key 'images'; keys: annotations",
        ),
        (
            lambda document: document.pop("annotations"),
            "not in COCO format: missing key 'annotations'; keys: images",
        ),
        (
            lambda document: document.pop("categories"),
            "not in COCO format: missing key 'categories'; keys: images",
        ),
        (lambda document: document["annotations"].clear(), "has no annotations"),
        (
            lambda document: document["annotations"][2].update(category_id=9),
            "annotation 3 (image 3): category_id 9: the file has no category with this id",
        ),
        (
            lambda document: document["annotations"][2].update(image_id=77),
            "annotation 3 (image 77): image_id 77: the file has no image with this id",
        ),
        (lambda document: document["images"][3].update(id=2), "image id 2 occurs 2 times"),
        (lambda document: document["annotations"][3].update(id=2), "annotation id 2 occurs 2 times"),
        (lambda document: document["categories"][1].update(id=3), "category id 3 occurs 2 times"),
        (box(4, 6, -20, 18), "annotation 2 (image 2): bbox [4, 6, -20, 18]: expected [x, y, width, height] in px"),
        (box(4, 6, "20", 18), "annotation 2 (image 2): bbox [4, 6, '20', 18]: expected [x, y, width, height] in px"),
        (box(4, 6, 20), "annotation 2 (image 2): bbox [4, 6, 20]: expected [x, y, width, height] in px"),
        (box(4, float("nan"), 9, 9), "annotation 2 (image 2): bbox [4, nan, 9, 9]: expected [x, y, width, height]"),
        (lambda document: document["images"][1].update(width=0), "image 2: width 0: expected an integer number of px"),
    ],
)
def test_an_invalid_record_is_named(change: Any, problem: str, recipe: Path, root: Path, tmp_path: Path) -> None:
    rewrite(root / TRAIN, change)
    before = contents(tmp_path)
    line = refused("train-teacher", "-r", recipe, "--out", tmp_path / "runs", *on_coco(root), code=1)
    assert line.startswith(f"{root / TRAIN}: {problem}")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", [TRAIN, EVALUATION])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(name: str, share: float, recipe: Path, root: Path, tmp_path: Path) -> None:
    text = (root / name).read_text()
    (root / name).write_text(text[: int(share * len(text))])
    line = refused("distill", "--baseline", "-r", recipe, "--out", tmp_path / "runs", *on_coco(root), code=1)
    assert line.startswith(f"{root / name}: is {'truncated after' if share else 'empty'}")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (
            lambda root: (root / TRAIN).unlink(),
            "{root}/annotations/instances_train2017.json: No such file or directory",
        ),
        (
            lambda root: (root / "val2017" / "012.png").unlink(),
            "{root}/val2017: 1 of the 3 images in {root}/annotations/instances_val2017.json are missing: 012.png; ",
        ),
        (
            lambda root: (root / "train2017").rename(root / "train"),
            "{root}/train2017: no such folder; it should contain the images of {root}/annotations/instances_train2017",
        ),
        (
            lambda root: (root / EVALUATION).write_text((root / TRAIN).read_text()),
            "{root}/annotations/instances_val2017.json: does not belong to the images in {root}/val2017: 4 of 4 ",
        ),
        (
            lambda root: rewrite(root / EVALUATION, lambda document: document["categories"][1].update(name="fox")),
            "the categories of training and evaluation differ; only in {root}/annotations/instances_train2017.json"
            ": dog; only in {root}/annotations/instances_val2017.json: fox",
        ),
        (
            lambda root: rewrite(root / EVALUATION, lambda document: document["categories"][0].update(name="dog")),
            "{root}/annotations/instances_val2017.json: two categories, 3 and 7, have the same name 'dog'",
        ),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    spoil: Any, problem: str, recipe: Path, root: Path, tmp_path: Path
) -> None:
    spoil(root)
    before = contents(tmp_path)
    line = refused("train-teacher", "-r", recipe, "--out", tmp_path / "runs", *on_coco(root), code=1)
    assert line.startswith(problem.format(root=root))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "command", [("train-teacher", "--dry-run"), ("distill", "--baseline"), ("compare", "--seeds", "0")]
)
def test_every_training_command_checks_the_annotations(command: Any, recipe: Path, root: Path, tmp_path: Path) -> None:
    rewrite(root / TRAIN, box(4, 6, -20, 18))
    line = refused(*command, "-r", recipe, "--out", tmp_path / "runs", *on_coco(root), code=1)
    assert line.startswith(f"{root / TRAIN}: annotation 2 (image 2): bbox ")
    assert not (tmp_path / "runs").exists()


def test_more_examples_than_available_are_refused(recipe: Path, root: Path, tmp_path: Path) -> None:
    more = (*on_coco(root), "--set", "data.eval_examples=4")
    line = refused("train-teacher", "-r", recipe, "--out", tmp_path / "runs", *more, code=1)
    assert line == f"{root / EVALUATION}: 4 examples requested, but only 3 exist"


@pytest.mark.parametrize(("name", "images", "purpose"), [(TRAIN, 4, "training"), (EVALUATION, 3, "scoring")])
def test_sets_without_boxes_are_refused(
    name: str, images: int, purpose: str, recipe: Path, root: Path, tmp_path: Path
) -> None:
    """Every score of a run would be NaN."""
    rewrite(root / name, lambda document: [row.update(iscrowd=1) for row in document["annotations"]])
    line = refused("train-teacher", "-r", recipe, "--out", tmp_path / "runs", *on_coco(root), code=1)
    assert line == f"{root / name}: no boxes for {purpose} in {images} images; crowd regions do not count"


def test_an_image_of_another_size_than_its_record_says_is_named(recipe: Path, root: Path, tmp_path: Path) -> None:
    """Its boxes would be scaled wrongly."""
    for row in (root / TRAIN, root / EVALUATION):
        rewrite(row, lambda document: document["images"][0].update(width=96, height=64))
    line = refused("train-teacher", "-r", recipe, "--out", tmp_path / "runs", *on_coco(root), code=1)
    assert "001.png" in line or "011.png" in line
    assert "48" in line
    assert "96" in line


def test_a_damaged_image_is_named(recipe: Path, root: Path, tmp_path: Path) -> None:
    damaged = root / "val2017" / "012.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    line = refused("train-teacher", "-r", recipe, "--out", tmp_path / "runs", *on_coco(root), code=1)
    assert line.startswith(f"{damaged}: ")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on four images, with its data in ``coco``."""
    folder = tmp_path_factory.mktemp("scored")
    coco_files(folder / "coco")
    done("train-teacher", "-r", recipe_of(folder), "--out", folder / "runs", *on_coco(folder / "coco"))
    return folder / "runs" / "teacher"


@pytest.mark.parametrize(
    ("wanted", "code", "problem"),
    [
        (("--results", "OUT/found.txt"), 2, "--results {out}/found.txt: the file must end in .json"),
        (("--results", "OUT/no/found.json"), 1, "cannot write {out}/no/found.json: "),
        (
            ("--predictions", "OUT/found.csv"),
            2,
            "--predictions: not an output of detection, which offers --results, --pictures",
        ),
        (
            ("--confusion", "OUT/found.png"),
            2,
            "--confusion: not an output of detection, which offers --results, --pictures",
        ),
    ],
)
def test_impossible_outputs_are_refused_before_scoring(
    wanted: tuple[str, str], code: int, problem: str, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("w2skd.runs.score.evaluate", lambda *_, **__: pytest.fail("scores"))
    option, path = wanted
    line = refused("evaluate", "-c", scored, option, path.replace("OUT", str(tmp_path)), code=code)
    assert line.startswith(problem.format(out=tmp_path))
    assert contents(tmp_path) == {}


def test_a_model_of_other_categories_is_not_scored(scored: Path, tmp_path: Path) -> None:
    root = coco_files(tmp_path / "coco")
    for name in (TRAIN, EVALUATION):
        rewrite(root / name, lambda document: document["categories"][1].update(name="fox"))
    line = refused("evaluate", "-c", scored, "--set", f"data.root={root}", code=1)
    assert line == (
        f"{scored}/model.safetensors: its label map differs from the data's: category 2 is 'dog', in the data 'fox'"
    )


def test_a_number_of_pictures_below_0_is_a_usage_error(scored: Path) -> None:
    assert w2skd("evaluate", "-c", scored, "--pictures", "-1").code == 2
