"""A score depends on the model and the data: not on ranks, data workers, or the order of the images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_boxes
import tiny_noise
import torch
from PIL import Image
from processes import run_ranks

from w2skd.platform.ranks import Ranks, process_group
from w2skd.recipe.load import load_recipe
from w2skd.tasks.base import Role
from w2skd.tasks.catalog import recipe_types
from w2skd.training.engine import evaluate

SHAPES = [(64, 96), (96, 64), (64, 64), (70, 90), (40, 120)]
"""(width, height) in px. The second last is padded like the first."""
IMAGES = 50


def boxed_images(root: Path, order: list[int]) -> Path:
    """Write 50 images of five shapes with a box each, ten of them twice, listed in an order."""
    (root / "images").mkdir(parents=True)
    images, boxes = [], []
    for number in order:
        kind = number % 40  # the last ten repeat the first ten, so that their scores tie
        draws = np.random.default_rng(kind)
        width, height = SHAPES[kind % len(SHAPES)]
        pixels = draws.integers(0, 80, (height, width, 3)).astype(np.uint8)
        x, y = draws.integers(0, 20, 2).tolist()
        pixels[y : y + 20, x : x + 20] = draws.integers(100, 256, 3)
        Image.fromarray(pixels).save(root / "images" / f"{number:02d}.png")
        images.append({"id": number + 1, "file_name": f"{number:02d}.png", "width": width, "height": height})
        box = {"bbox": [x, y, 20, 20], "area": 400, "iscrowd": 0, "category_id": 1 + kind % 2}
        boxes.append({"id": number + 1, "image_id": number + 1, **box})
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    document = {"images": images, "annotations": boxes, "categories": categories}
    (root / "boxes.json").write_text(json.dumps(document))
    return root


def detect(ranks: Ranks, recipe: Path, root: Path, out: Path, workers: int = 0, *more: str) -> tuple[str, Any]:
    """Return the scores of a detector that finds much, and all its detections in the order of the image ids."""
    parts = "train_images: images, train_annotations: boxes.json, eval_images: images, eval_annotations: boxes.json"
    data = f"data={{source: coco, root: {root}, {parts}, min_size: 64, max_size: 128, workers: {workers}}}"
    evaluation = score(ranks, recipe, [data, *more], wake_detector)
    if ranks.is_main:
        evaluation.files["results"](out)
    found = json.loads(out.read_text()) if ranks.is_main else []
    return repr(evaluation.metrics), sorted(
        found, key=lambda one: one["image_id"]
    )  # stable: keeps an image's own order


def wake_detector(model: torch.nn.Module) -> None:
    """Raise the scores of a fresh detector, which are all below the threshold."""
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_logits.bias", "cls_score.bias")):
            torch.nn.init.zeros_(parameter)
        elif name.endswith(("cls_logits.weight", "cls_score.weight")):
            torch.nn.init.normal_(parameter, std=0.05)


def score(ranks: Ranks, recipe: Path, overrides: list[str], wake: Any = None) -> Any:
    loaded = load_recipe(str(recipe), overrides, recipe_types())
    train, device = loaded.train_of(Role.STUDENT), torch.device("cpu")
    task = loaded.task_type()(loaded, train=train, seed=0, device=device, ranks=ranks)
    torch.manual_seed(3)
    model = task.build_model(Role.STUDENT)
    if wake is not None:
        wake(model)
    with process_group(ranks, device):
        return evaluate(task, model, device, train.precision, with_predictions=True)


@pytest.mark.parametrize("family", tiny_boxes.FAMILIES)
def test_detections_do_not_depend_on_ranks_workers_or_order(family: str, tmp_path: Path) -> None:
    recipe = tiny_boxes.recipe_of(tmp_path, family)
    order = list(range(IMAGES))
    root = boxed_images(tmp_path / "sorted", order)
    metrics, found = detect(Ranks(), recipe, root, tmp_path / "alone.json")
    assert len(found) > 3 * IMAGES
    assert len({one["score"] for one in found}) < len(found), "some scores tie"
    assert detect(Ranks(), recipe, root, tmp_path / "workers.json", 2) == (metrics, found)
    for world in (2, 3):
        (main, *_) = run_ranks(detect, recipe, root, tmp_path / f"ranks{world}.json", world=world)
        assert main.error is None, main.error
        assert main.value == (metrics, found)
    np.random.default_rng(1).shuffle(order)
    shuffled = boxed_images(tmp_path / "shuffled", order)
    assert detect(Ranks(), recipe, shuffled, tmp_path / "shuffled.json") == (metrics, found)


def test_detections_do_not_depend_on_ranks_in_bf16(tmp_path: Path) -> None:
    recipe = tiny_boxes.recipe_of(tmp_path)
    root = boxed_images(tmp_path / "sorted", list(range(IMAGES)))
    bf16 = (0, "train.precision=bf16")
    expected = detect(Ranks(), recipe, root, tmp_path / "alone.json", *bf16)
    assert expected != detect(Ranks(), recipe, root, tmp_path / "fp32.json")
    (main, *_) = run_ranks(detect, recipe, root, tmp_path / "ranks.json", *bf16, world=3)
    assert main.error is None, main.error
    assert main.value == expected


def classify(ranks: Ranks, recipe: Path, out: Path, *overrides: str) -> tuple[dict[str, float], str, Any]:
    evaluation = score(ranks, recipe, list(overrides))
    if ranks.is_main:
        evaluation.files["predictions"](out)
    return evaluation.metrics, out.read_text() if ranks.is_main else "", evaluation.tables


def test_a_classifiers_scores_do_not_depend_on_ranks_and_workers(tmp_path: Path) -> None:
    recipe = tiny.recipe_file(tmp_path)
    for feed, worlds in (("resident", (2, 3)), ("streaming", (3,))):
        options = ("data.eval_examples=1001", f"data.feed={feed}", "data.workers=0")
        expected = classify(Ranks(), recipe, tmp_path / "alone.csv", *options)
        assert len(set(expected[1].splitlines())) == 1002
        assert classify(Ranks(), recipe, tmp_path / "workers.csv", *options[:2], "data.workers=2") == expected
        for world in worlds:  # which share three batches, one of them shorter
            (main, *_) = run_ranks(classify, recipe, tmp_path / f"{feed}{world}.csv", *options, world=world)
            assert main.error is None, main.error
            assert main.value == expected


def generate(ranks: Ranks, recipe: Path, folder: Path) -> tuple[dict[str, float], list[bytes]]:
    evaluation = score(ranks, recipe, ["fid.samples=23", "sampler.batch_size=5"], wake_denoiser)
    if ranks.is_main:
        evaluation.files["samples"](folder)
    return evaluation.metrics, [path.read_bytes() for path in sorted(folder.glob("*"))] if ranks.is_main else []


def wake_denoiser(model: torch.nn.Module) -> None:
    """Make a fresh U-Net, whose last convolution is zero, return something."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)


def test_generated_images_and_their_scores_do_not_depend_on_ranks(tmp_path: Path) -> None:
    recipe = tiny_noise.recipe_of(tmp_path)
    metrics, images = generate(Ranks(), recipe, tmp_path / "alone")
    assert len(set(images)) == 23
    for world in (2, 3):
        (main, *_) = run_ranks(generate, recipe, tmp_path / f"ranks{world}", world=world)
        assert main.error is None, main.error
        assert main.value == (metrics, images)
