"""A run, and an experiment, are of one data set."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import done, events, recipe_file, refused, stopped_at

from w2skd.data.sources import identify_image_data, list_image_data, load_image_data


def write_images(root: Path) -> Path:
    for part, count in (("train", 12), ("val", 6)):
        for label, name in enumerate(("cat", "dog", "emu")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                draws = np.random.default_rng([label, number, count])
                pixels = draws.integers(0, 80, (16, 16, 3)) + 80 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02d}.png")
    return root


def swap_classes(root: Path) -> None:
    (root / "train/cat").rename(root / "train/x")
    (root / "train/dog").rename(root / "train/cat")
    (root / "train/x").rename(root / "train/dog")


def move_to_another_class(root: Path) -> None:
    (root / "train/cat/00.png").rename(root / "train/dog/99.png")


def remove_an_evaluation_image(root: Path) -> None:
    (root / "val/emu/05.png").unlink()


def rewrite_an_evaluation_image(root: Path) -> None:
    Image.new("RGB", (16, 16), (1, 2, 3)).save(root / "val/emu/05.png")


CHANGES = {
    swap_classes: "training set: the content of the images",
    move_to_another_class: "training set: their names, the labels, the content of the images",
    remove_an_evaluation_image: (
        "evaluation set: the number of images, their names, the labels, the content of the images"
    ),
    rewrite_an_evaluation_image: "evaluation set: the content of the images",
}


def command(folder: Path, root: Path, *arguments: object) -> tuple[object, ...]:
    for known in (list_image_data, load_image_data, identify_image_data):
        known.cache_clear()  # as in a new process
    data = f"data={{source: image_folder, root: {root}, train_folder: train, eval_folder: val, image_size: 16}}"
    common = ("-r", recipe_file(folder), "--out", folder / "out", "--set", data, "--set", "data.workers=0")
    return ("distill", "--baseline", *common, *arguments)


@pytest.mark.parametrize("feed", ["resident", "streaming"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_resume_on_changed_data_is_refused(change, feed: str, tmp_path: Path) -> None:
    root = write_images(tmp_path / "data")
    feed_set = ("--set", f"data.feed={feed}")
    stopped_at(4, *command(tmp_path, root, *feed_set))
    shutil.copytree(root, tmp_path / "copy")
    change(root)
    error = refused(*command(tmp_path, root, *feed_set), code=2)
    assert f"the data changed since the run's start ({CHANGES[change]})" in error
    assert "--allow-changed-data" in error
    moved = command(tmp_path, tmp_path / "copy", *feed_set)  # the same data in another place
    stopped_at(6, *moved)
    done(*command(tmp_path, root, *feed_set, "--allow-changed-data"))
    [_, resumed] = events(tmp_path / "out/baseline/seed0", "resumed")
    assert "data_identity" in resumed.details["changed"]


def test_a_second_seed_and_a_second_arm_on_changed_data_are_refused(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data")
    done(*command(tmp_path, root))
    done("train-teacher", *command(tmp_path, root)[2:])
    swap_classes(root)
    words = "the data changed since baseline/seed0 was trained (training set: the content of the images)"
    assert words in refused(*command(tmp_path, root, "--seed", 1), code=2)
    assert words in refused("distill", *command(tmp_path, root)[2:], code=2)
    done(*command(tmp_path, root, "--seed", 1, "--allow-changed-data"))


def test_records_without_an_identity_are_compared_by_their_fingerprint(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data")
    done(*command(tmp_path, root))
    path = tmp_path / "out/baseline/seed0/environment.json"
    facts = json.loads(path.read_text())
    del facts["data_identity"]
    path.write_text(json.dumps(facts))
    done(*command(tmp_path, root, "--seed", 1))
    swap_classes(root)
    error = refused(*command(tmp_path, root, "--seed", 2), code=2)
    assert "the data changed since baseline/seed0 was trained (their fingerprint)" in error


def test_repeated_images_are_reported_before_training(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data")
    for number in range(3):
        shutil.copy(root / f"train/cat/{number:02d}.png", root / f"val/cat/{number:02d}.png")
    line = (
        "3 of 18 evaluation images are training images too (same content, such as val/cat/00.png and train/cat/00.png)"
    )
    assert line in " ".join(done(*command(tmp_path, root)).err.split())
    assert line in " ".join(done(*command(tmp_path, root, "--dry-run")).out.split())
