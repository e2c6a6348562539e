"""Every file in ``recipes/``."""

import re
import tarfile
from pathlib import Path

import pytest

from w2skd.recipe.load import dump_recipe, load_recipe, parse_yaml, shipped_recipes, validate_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FILES = sorted(RECIPES.glob("*.yaml"))

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def header(file: Path) -> str:
    """The comment that a file begins with, without its marks."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(line.removeprefix("#").strip() for line in comment)


def test_the_files_are_those_that_are_shipped() -> None:
    assert shipped_recipes() == {file.stem: file for file in FILES}
    assert {"demo", "cifar10_resnet56", "cifar10_cpu"} <= set(shipped_recipes())
    assert [path for path in RECIPES.iterdir() if path not in FILES] == []


@each_file
def test_it_loads_and_has_the_name_of_its_file(file: Path) -> None:
    assert load_recipe(file.stem).name == file.stem


@each_file
def test_it_survives_a_dump(file: Path) -> None:
    recipe = load_recipe(str(file))
    text = dump_recipe(recipe)
    again = validate_recipe(parse_yaml(text, "dump"), "dump")
    assert again == recipe
    assert dump_recipe(again) == text


@each_file
def test_its_header_says_what_a_user_needs(file: Path) -> None:
    text = header(file)
    for entry in ("command", "hardware", "expected"):
        assert re.search(rf"^{entry}\s+\S", text, re.MULTILINE), entry
    assert re.search(r"measured|paper", text)
    assert f"--recipe {file.stem} " in text
    assert f"--out runs/{file.stem}" in text


@each_file
def test_the_teacher_is_another_model_than_the_student(file: Path) -> None:
    recipe = load_recipe(str(file))
    assert recipe.teacher.model != recipe.student.model


@pytest.mark.parametrize(
    "file", [file for file in FILES if not file.stem.endswith("_smoke")], ids=lambda file: file.stem
)
def test_it_has_a_smoke_recipe_with_the_same_models_that_is_tiny(file: Path) -> None:
    recipe, smoke = load_recipe(file.stem), load_recipe(f"{file.stem}_smoke")
    assert (smoke.task, smoke.student, smoke.teacher.model) == (recipe.task, recipe.student, recipe.teacher.model)
    data, full_data = (each.model_dump(mode="json")["data"] for each in (smoke, recipe))
    assert (data["source"], data["image_size"]) == (full_data["source"], full_data["image_size"])
    assert data["train_examples"] <= 500
    assert data["eval_examples"] <= 500
    steps_per_epoch = data["train_examples"] // smoke.train.batch_size
    assert smoke.train.total_steps(steps_per_epoch) <= 20
    assert smoke.teacher_train().total_steps(steps_per_epoch) <= 20


@pytest.mark.shared_data
def test_the_cpu_recipe_describes_the_layout_of_its_archive(shared_data: Path) -> None:
    file = RECIPES / "cifar10_cpu.yaml"
    assert "cifar10-jpeg/{train,test}/<class>/*.jpg" in header(file)
    data = load_recipe(str(file)).model_dump(mode="json")["data"]
    folders = {Path(data["root"]).name + "/" + data[key] for key in ("train_folder", "eval_folder")}
    with tarfile.open(shared_data / "cifar10-jpeg.tar.xz") as archive:
        images = [Path(name) for name in archive.getnames() if name.endswith(".jpg")]
    assert {str(path.parent.parent) for path in images} == folders
    assert len({path.parent.name for path in images}) == 10
