"""A minimal detection experiment (a second per run on one core) and a minimal data set in COCO format."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

RECIPE = """\
name: boxes
task: detection
data: {source: shapes, min_size: 64, max_size: 64, train_examples: 16, eval_examples: 6, workers: 0}
detector: {anchor_scale: 0.25}
teacher: {model: FAMILY_slim, train: {steps: 1}}
student: {model: FAMILY_slim}
train:
  steps: 6
  batch_size: 4
  optimizer: {name: adamw, lr: 1.0e-3}
  lr_schedule: {name: constant}
  validate_every: 3step
  checkpoint_every: 2step
  log_every: 1
  deterministic: true
distill: {warmup: 1step, hold: 3step, decay: 0step, switch: {patience: 9}}
eval: {backend: pycocotools}
report: {metric: ap50, thresholds: [0.5]}
"""
"""Lambda is 0 at step 0 and 1 at steps 1 to 3; then distillation ends."""

FAMILIES = ("retinanet", "fasterrcnn")


def recipe_of(folder: Path, family: str = "retinanet") -> Path:
    """The recipe as a file in a folder."""
    path = folder / "boxes.yaml"
    path.write_text(RECIPE.replace("FAMILY", family))
    return path


def coco(first_id: int = 1, images: int = 4) -> dict[str, Any]:
    """Annotations of images of 48 x 32 px, each with a cat and every second one with a dog."""
    numbers = range(first_id, first_id + images)
    cats = [
        {"id": number, "image_id": number, "category_id": 3, "bbox": [4, 6, 20, 18], "area": 360, "iscrowd": 0}
        for number in numbers
    ]
    dogs = [
        {"id": 100 + number, "image_id": number, "category_id": 7, "bbox": [28, 10, 16, 20], "area": 320, "iscrowd": 0}
        for number in numbers[::2]
    ]
    return {
        "images": [{"id": number, "file_name": f"{number:03d}.png", "width": 48, "height": 32} for number in numbers],
        "annotations": cats + dogs,
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }


def coco_files(root: Path) -> Path:
    """Write four training and three evaluation images in COCO's layout."""
    for part, document in (("train", coco(1, 4)), ("val", coco(11, 3))):
        folder = root / f"{part}2017"
        folder.mkdir(parents=True)
        for row in document["images"]:
            picture = Image.new("RGB", (row["width"], row["height"]), (90, 100, 110))
            picture.paste((230, 160, 40), (4, 6, 24, 24))
            picture.save(folder / row["file_name"])
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(document))
    return root


def on_coco(root: Path) -> tuple[object, ...]:
    """Overrides that make the recipe train on these files."""
    source = f"data={{source: coco, root: {root}, min_size: 64, max_size: 96, workers: 0}}"
    return ("--set", source, "--set", "train.steps=2", "--set", "train.validate_every=2step")
