"""Runs with the options for large data: streaming, mixup, progressive sizes, fp16, and an ImageNet teacher."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from known import load_recipe
from PIL import Image
from tiny import RECIPE, assert_same_course, done, events, recipe_file, refused, run_in, stopped_at

from w2skd.models.catalog import build_classifier
from w2skd.models.plugin import forget_plugins
from w2skd.platform.ranks import Ranks
from w2skd.runs.options import RunOptions
from w2skd.runs.setup import set_up
from w2skd.weights.imagenet import imagenet_ids
from w2skd.weights.load import load_weights

FISH, DOG = imagenet_ids()[0], imagenet_ids()[217]

LARGE = (
    RECIPE.replace("image_size: 16}", "image_size: 16, feed: streaming, workers: 1, eval_resize: 18, MORE}")
    .replace("MORE", "mixup: 0.4, cutmix: 1.0, repeats: 2, MORE")
    .replace("MORE", "progressive: {from_px: 8, until: 0.6run, multiple_px: 4}, MORE")
    .replace("MORE", "augment: [random_resized_crop, flip, trivial_augment, random_erasing]")
    .replace("batch_size: 16", "batch_size: 16\n  precision: fp16")
    .replace("weight_decay: 5.0e-4", "weight_decay: 5.0e-4, decay_norms_and_biases: false")
)


@pytest.fixture
def large(tmp_path: Path, out: Path) -> tuple[object, ...]:
    return ("distill", "--recipe", recipe_file(tmp_path, LARGE), "--out", out)


def test_a_stopped_run_ends_as_an_undisturbed_one(large: Any, out: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    done(*large[:-1], other, "--teacher", out / "teacher")
    stopped_at(14, *large)
    done(*large, "--set", "data.workers=0")
    assert_same_course(run_in(out), run_in(other))
    assert len(events(run_in(out), "resumed")) == 1


def test_an_image_that_cannot_be_read_ends_the_run_with_its_name(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images")
    (root / "train" / DOG / "3.png").write_bytes((root / "train" / DOG / "3.png").read_bytes()[:60])
    settings = ("--set", f"data={{source: image_folder, root: {root}, image_size: 16, feed: streaming, workers: 1}}")
    command = ("train-teacher", "-r", recipe_file(tmp_path), "--out", tmp_path / "runs", *settings)
    line = refused(*command, code=1)
    assert line.startswith(f"{root}/train/{DOG}/3.png: ")


def test_texts_among_the_images_are_passed_over(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images")
    (root / "train" / DOG / "notes.txt").write_text("good dogs")
    settings = ("--set", f"data={{source: image_folder, root: {root}, image_size: 16}}", "--set", "train.batch_size=8")
    said = done("train-teacher", "-r", recipe_file(tmp_path), "--out", tmp_path / "runs", *settings, "--dry-run").out
    assert "16 training, 8 evaluation examples" in said


# Teachers of other trainers


def image_folder(root: Path) -> Path:
    """Two ImageNet classes in folders named by id, with eight training and four evaluation images each."""
    for part, count in (("train", 8), ("test", 4)):
        for number, name in enumerate((FISH, DOG)):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (40, 32), (number * 200, index * 20, 90)).save(root / part / name / f"{index}.png")
    return root


@pytest.fixture
def imagenet_teacher(tmp_path: Path) -> Path:
    """A bare state dict of a ResNet-18 for 1,000 classes, as torchvision's training writes it."""
    torch.manual_seed(0)
    state = build_classifier("torchvision:resnet18", 1000).state_dict()
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save({"model": wrapped, "epoch": 89}, tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth"


def on_images(root: Path, **teacher: object) -> tuple[object, ...]:
    data = f"data={{source: image_folder, root: {root}, image_size: 32}}"
    settings = [data, "train.batch_size=8", "train.steps=4", "teacher.model=torchvision:resnet18"]
    settings += [f"teacher.{key}={value}" for key, value in teacher.items()]
    return tuple(word for setting in settings for word in ("--set", setting))


def test_a_teacher_of_imagenet_teaches_two_of_its_classes(tmp_path: Path, imagenet_teacher: Path) -> None:
    root = image_folder(tmp_path / "images")
    command = ("distill", "-r", recipe_file(tmp_path), "--out", tmp_path / "runs", "--teacher", imagenet_teacher)
    dry = " ".join(done(*command, *on_images(root), "--dry-run").out.split())
    assert "the data's 2 classes are among its 1,000, matched by ImageNet id" in dry
    assert "resnet18.pth has no metadata: assumed to be trained as torchvision resnet18 IMAGENET1K_V1" in dry
    said = done(*command, *on_images(root))
    assert "the data's 2 classes are among its 1,000, matched by ImageNet id" in said.err
    run = run_in(tmp_path / "runs")
    assert load_weights(run).state["head.weight"].shape[0] == 2
    assert "already finished" in done(*command, *on_images(root)).err, "the same teacher is not known again"


def test_what_was_assumed_of_a_teacher_is_reported_with_its_refusal(tmp_path: Path, imagenet_teacher: Path) -> None:
    root = image_folder(tmp_path / "images")
    for part in ("train", "test"):
        (root / part / FISH).rename(root / part / "zebrafish")
    command = ("distill", "-r", recipe_file(tmp_path), "--out", tmp_path / "runs", "--teacher", imagenet_teacher)
    line = refused(*command, *on_images(root), code=1)
    assert "lacks 1 of the data's 2 classes: 'zebrafish'" in line
    assert "resnet18.pth has no metadata: assumed to be trained as torchvision resnet18 IMAGENET1K_V1" in line


def test_the_teacher_is_measured_on_the_students_classes_and_images(tmp_path: Path, imagenet_teacher: Path) -> None:
    root = image_folder(tmp_path / "images")
    options = RunOptions(tmp_path / "runs")
    settings = [*on_images(root)[1::2], f"teacher.checkpoint={imagenet_teacher}"]
    setup = set_up(load_recipe(str(recipe_file(tmp_path)), settings), "w2s", options, Ranks())
    assert setup.teacher is not None
    images = setup.task.example_batch().images
    model = build_classifier("torchvision:resnet18", 1000).eval()
    state = torch.load(imagenet_teacher)["model"]
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    with torch.no_grad():
        expected = model(images)[:, [0, 217]]  # image folders are normalised like ImageNet
        torch.testing.assert_close(setup.teacher.model.eval()(images), expected)


def test_a_teacher_may_see_smaller_images(tmp_path: Path, imagenet_teacher: Path) -> None:
    root = image_folder(tmp_path / "images")
    command = ("distill", "-r", recipe_file(tmp_path), "--out", tmp_path / "runs", "--teacher", imagenet_teacher)
    full, small = (
        json.loads(done(*command, *on_images(root, **keys), "--dry-run", "--json").out)
        for keys in ({}, {"image_size": 16})
    )
    assert "sees images of 16 px, the student of 32 px" in small["teacher_account"]
    assert small["forward_flops"]["teacher"] < 0.5 * full["forward_flops"]["teacher"]
    assert small["forward_flops"]["student"] == full["forward_flops"]["student"]
    assert 1 < small["distilled_step_floor"] < full["distilled_step_floor"]


def test_unknown_normalisation_of_a_bare_file_is_reported(recipe: Path, out: Path) -> None:
    torch.save(load_weights(out / "teacher").state, out / "bare.pt")
    said = done("distill", "-r", recipe, "--out", out, "--teacher", out / "bare.pt", "--dry-run").out
    said = " ".join(said.split())
    assert "its image normalisation is not recorded: assumed to be the data's; set teacher.normalization" in said
    assert "class names unknown: assumed to be the data's 10 in the same order" in said
    stated = "teacher.normalization={mean: [0.4, 0.4, 0.4], std: [0.2, 0.2, 0.2]}"
    said = done("distill", "-r", recipe, "--out", out, "--teacher", out / "bare.pt", "--dry-run", "--set", stated).out
    assert "not recorded" not in said


def test_published_weights_that_cannot_be_had_are_reported_before_the_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("w2skd.weights.fetch.PATIENCE_S", 1.0)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # no server listens there
    command = ("compare", "-r", recipe_file(tmp_path), "--out", tmp_path / "runs", "--teacher", "pretrained")
    line = refused(*command, *on_images(image_folder(tmp_path / "images")), code=1)
    assert "resnet18-f37072fd.pth is not in" in line
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in line
    assert not (tmp_path / "runs" / "baseline").exists()


def test_a_plug_ins_model_is_trained_scored_and_on_record(recipe: Path, out: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    lines = (
        "from w2skd.models.small_cnn import SmallCnn",
        "def tiny(classes):",
        "    return SmallCnn((8, 16), classes)",
    )
    plugin.write_text("\n".join(lines))
    settings = ("--set", "student.model=plugin:tiny", "--set", "train.steps=4")
    command = ("distill", "-r", recipe, "--out", out, *settings)
    forget_plugins()
    assert "--plugin" in refused(*command, code=2)
    try:
        done(*command, "--plugin", plugin)
        environment = (run_in(out) / "environment.json").read_text()
        assert "mine.py" in environment
        done("evaluate", "-c", run_in(out), "--plugin", plugin)
    finally:
        forget_plugins()
