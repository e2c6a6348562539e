"""Checks of every file in ``recipes/``."""

import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from known import load_recipe, validate_recipe

from w2skd.recipe.flat import flatten
from w2skd.recipe.load import dump_recipe, shipped_recipes
from w2skd.recipe.yaml_text import parse_yaml
from w2skd.tasks.classification.recipe import ClassificationRecipe
from w2skd.tasks.detection.recipe import DetectionRecipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FILES = sorted(RECIPES.glob("*.yaml"))

FULL = [file for file in FILES if not file.stem.endswith("_smoke")]

STEPS_PER_EPOCH = 100

SAME_IN_EVERY_SMOKE = (
    *("task", "data.source", "data.augment", "teacher.model", "teacher.checkpoint", "student.model"),
    *("train.optimizer.name", "train.optimizer.decay_norms_and_biases", "train.precision", "train.compile"),
    "report.metric",
)
"""Keys that decide which code an experiment runs, and not how long it takes."""

SAME_IN_SMOKE = {
    "classification": (
        *(f"data.{key}" for key in ("train_folder", "eval_folder", "interpolation", "normalization", "feed")),
        *(f"data.{key}" for key in ("crop_scale", "erasing_probability", "mixup", "cutmix", "repeats")),
        *("teacher.normalization", "loss.label_smoothing", "distill.temperature", "distill.final_temperature"),
    ),
    # Without the backbones' weights and keys that depend on them: smoke recipes need no network.
    "detection": (
        *(f"data.{key}" for key in ("train_images", "train_annotations", "eval_images", "eval_annotations")),
        *(f"distill.{key}_weight" for key in ("class", "box", "objectness", "rpn_box")),
        *("distill.temperature", "distill.final_temperature"),
        "eval.backend",
    ),
    # Without the run that provides image features: each recipe has its own.
    "diffusion": (
        *(f"data.{key}" for key in ("train_folder", "eval_folder", "feed")),
        *(f"diffusion.{key}" for key in ("timesteps", "beta_schedule", "prediction", "class_conditional")),
        *("sampler.spacing", "sampler.clip", "fid.reference"),
        *("loss.timestep_weighting", "distill.timestep_weighting"),
    ),
}
"""Task -> such keys of the task."""

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
each_full = pytest.mark.parametrize("file", FULL, ids=lambda file: file.stem)


def each_of(task: str) -> pytest.MarkDecorator:
    """Return the recipe files of a task."""
    files = [file for file in FILES if load_recipe(file.stem).task == task]
    return pytest.mark.parametrize("file", files, ids=lambda file: file.stem)


def plain(name: str) -> dict[str, Any]:
    """Return a recipe as dotted keys."""
    return flatten(load_recipe(name).model_dump(mode="json"))


def classification(name: str) -> ClassificationRecipe:
    """Load a recipe of the classification task."""
    recipe = load_recipe(name)
    assert isinstance(recipe, ClassificationRecipe)
    return recipe


def detection(name: str) -> DetectionRecipe:
    """Load a recipe of the detection task."""
    recipe = load_recipe(name)
    assert isinstance(recipe, DetectionRecipe)
    return recipe


def header(file: Path) -> str:
    """Return the leading comment of a file, without its comment signs."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(line.removeprefix("#").strip() for line in comment)


def test_all_files_are_shipped() -> None:
    assert shipped_recipes() == {file.stem: file for file in FILES}
    assert {"demo", "cifar10_resnet56", "cifar10_cpu"} <= set(shipped_recipes())
    assert [path for path in RECIPES.iterdir() if path not in FILES] == []


@each_file
def test_it_loads_and_is_named_like_its_file(file: Path) -> None:
    assert load_recipe(file.stem).name == file.stem


@each_file
def test_it_survives_a_dump(file: Path) -> None:
    recipe = load_recipe(str(file))
    text = dump_recipe(recipe)
    again = validate_recipe(parse_yaml(text, "dump"), "dump")
    assert again == recipe
    assert dump_recipe(again) == text


@each_file
def test_its_header_has_command_hardware_and_result(file: Path) -> None:
    text = header(file)
    for entry in ("command", "hardware", "expected"):
        assert re.search(rf"^{entry}\s+\S", text, re.MULTILINE), entry
    assert re.search(r"measured|paper", text)
    assert f"--recipe {file.stem} " in text
    assert f"--out runs/{file.stem}" in text


@each_file
def test_the_first_line_shown_in_the_list_of_recipes_is_a_sentence(file: Path) -> None:
    first, second = file.read_text(encoding="utf-8").splitlines()[:2]
    assert first.endswith(".")
    assert second == "#"


@each_full
def test_its_header_has_the_source_of_its_hyperparameters(file: Path) -> None:
    text = header(file)
    if f"docs/results/{file.stem}" not in text:  # not tuned in this repository, so from a publication
        assert re.search(r"^source\s+\S", text, re.MULTILINE)
        assert re.search(r"Changed[:,]|everything but", text)


@each_file
def test_its_header_names_the_folder_of_data_that_must_be_provided(file: Path) -> None:
    if load_recipe(file.stem).model_dump(mode="json")["data"]["source"] != "shapes":
        assert re.search(r"^data\s+\S", header(file), re.MULTILINE)
        assert "data.root=DIR" in header(file)


@each_file
def test_the_teacher_is_another_model_than_the_student_or_is_trained_for_less_time(file: Path) -> None:
    recipe = load_recipe(str(file))
    steps = [train.total_steps(STEPS_PER_EPOCH) for train in (recipe.train_of("teacher"), recipe.train)]
    assert recipe.teacher.model != recipe.student.model or steps[0] < steps[1]


@each_file
def test_the_teachers_score_is_a_threshold(file: Path) -> None:
    assert "teacher" in [threshold.name for threshold in load_recipe(file.stem).report.thresholds]


@each_file
def test_distillation_ends_early(file: Path) -> None:
    recipe = load_recipe(file.stem)
    total = recipe.train.total_steps(STEPS_PER_EPOCH)
    end = sum(recipe.distill.lengths(STEPS_PER_EPOCH, total).values())
    assert 0 < end < total
    if file in FULL:
        assert end <= 0.7 * total


@each_of("classification")
def test_a_batch_consists_of_whole_groups_of_repeats(file: Path) -> None:
    recipe = classification(file.stem)
    for train in (recipe.train, recipe.train_of("teacher")):
        assert train.batch_size % recipe.data.repeats == 0


@each_full
def test_its_smoke_recipe_runs_the_same_code(file: Path) -> None:
    full, smoke = plain(file.stem), plain(f"{file.stem}_smoke")
    same = (*SAME_IN_EVERY_SMOKE, *SAME_IN_SMOKE[full["task"]])
    assert {key: smoke.get(key) for key in same} == {key: full.get(key) for key in same}
    missing = [key for key in same if key not in full]
    assert missing == []
    if full["task"] == "classification":
        assert (smoke["data.progressive"] is None) == (full["data.progressive"] is None)
        feeds = [classification(name).data.needs_streaming for name in (f"{file.stem}_smoke", file.stem)]
        assert feeds[0] == feeds[1]


@each_full
def test_its_smoke_recipe_has_the_same_arms(file: Path) -> None:
    full, smoke = load_recipe(file.stem), load_recipe(f"{file.stem}_smoke")
    assert {name: arm.help for name, arm in smoke.arms.items()} == {name: arm.help for name, arm in full.arms.items()}
    assert (len(smoke.lengths) > 1) == (len(full.lengths) > 1)
    assert smoke.has_trunk == full.has_trunk


@each_full
def test_its_smoke_recipe_is_tiny(file: Path) -> None:
    full, smoke = plain(file.stem), load_recipe(f"{file.stem}_smoke")
    data = smoke.model_dump(mode="json")["data"]
    assert data["train_examples"] is not None
    assert data["train_examples"] <= 500
    assert data["eval_examples"] is not None
    assert data["eval_examples"] <= 500
    for side in ("image_size", "min_size", "max_size"):
        assert (data.get(side) or 0) <= (full.get(f"data.{side}") or 0)
    steps_per_epoch = -(-data["train_examples"] // smoke.train.batch_size)
    assert smoke.train.total_steps(steps_per_epoch) <= 20
    if smoke.teacher.checkpoint is None:
        assert smoke.train_of("teacher").total_steps(steps_per_epoch) <= 20


@each_full
def test_its_smoke_recipe_names_it(file: Path) -> None:
    smoke = RECIPES / f"{file.stem}_smoke.yaml"
    assert file.stem in header(smoke).splitlines()[0]


def test_the_three_resnets_of_imagenet_differ_in_what_their_names_say() -> None:
    base = plain("imagenet_resnet50")
    for name, allowed in (
        ("imagenet_resnet152", {"name", "student.model", "report.thresholds"}),
        ("imagenet_resnet50_own_teacher", {"name", "teacher.checkpoint", "teacher.train.validate_every"}),
    ):
        other = plain(name)
        assert {key for key in base.keys() | other.keys() if base.get(key) != other.get(key)} == allowed


def test_the_two_detectors_of_coco_differ_in_what_their_names_say() -> None:
    one, other = plain("coco_retinanet_r50"), plain("coco_fasterrcnn_r50")
    allowed = {"name", "teacher.model", "student.model", "train.optimizer.lr"}
    assert {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)} == allowed


def test_the_two_networks_of_cifar10_differ_in_what_their_names_say() -> None:
    one, other = plain("cifar10_ddpm_nc128"), plain("cifar10_ddpm_nc160")
    assert {key for key in one if one[key] != other[key]} == {"name", "student.model"}


@each_of("detection")
def test_normalisations_are_frozen_only_with_the_weights_they_belong_to(file: Path) -> None:
    recipe = detection(file.stem)
    if recipe.detector.frozen_norm:
        assert recipe.teacher.backbone is not None
        assert recipe.student.backbone is not None


@pytest.mark.parametrize("name", ["coco_retinanet_r50_smoke", "coco_fasterrcnn_r50_smoke"])
def test_the_smoke_recipes_of_coco_need_no_network(name: str) -> None:
    recipe = detection(name)
    assert [recipe.teacher.backbone, recipe.student.backbone] == [None, None]


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
