from pathlib import Path

import pytest
import tiny_boxes
import torch
from tiny import done, recipe_file
from torch import Tensor
from torchvision.ops import box_iou

from w2skd.tasks.detection.box_fit import best_overlaps, describe_boxes
from w2skd.tasks.detection.listing import BoxTable, CocoListing
from w2skd.tasks.detection.models.anchors import anchor_grid, anchors_of
from w2skd.tasks.detection.models.catalog import build_detector, grid_of
from w2skd.tasks.detection.scenes import list_scenes
from w2skd.tasks.detection.transforms import DetectionTransform

PLAIN = DetectionTransform(128, 256)


def boxes_of(sides: Tensor, count: int = 60) -> Tensor:
    """Boxes of these sides at random places in 256 x 128 px."""
    draws = torch.rand(count, 2, generator=torch.Generator().manual_seed(0))
    low = draws * (torch.tensor([256.0, 128.0]) - sides)
    return torch.cat([low, low + sides], 1)


@pytest.mark.parametrize("name", ["retinanet_slim", "fasterrcnn_slim"])
@pytest.mark.parametrize("side", [3.0, 9.0, 30.0, 100.0])
def test_the_best_overlap_is_that_of_all_anchors(name: str, side: float) -> None:
    detector = build_detector(name, 2, anchor_scale=0.5)
    generator = detector.anchor_generator if name.startswith("retina") else detector.rpn.anchor_generator
    grid = grid_of(name, 0.5)
    levels = [torch.zeros(1, 1, -(-128 // stride), -(-256 // stride)) for stride in grid.strides_px]
    anchors = anchors_of(generator, torch.zeros(1, 3, 128, 256), levels)
    boxes = boxes_of(torch.tensor([side, side * 1.2]))
    expected = box_iou(boxes, anchors).amax(1)
    found = best_overlaps(boxes, grid)
    # At the right and bottom edges the nearest cell can lie outside the image.
    inside = ((boxes[:, :2] + boxes[:, 2:]) / 2 <= torch.tensor([224.0, 96.0])).all(1)
    assert inside.sum() > 20
    torch.testing.assert_close(found[inside], expected[inside])
    assert (found >= expected - 1e-6).all()


def listing_of(boxes: Tensor, labels: Tensor, categories: tuple[str, ...]) -> CocoListing:
    """One image of 256 x 128 px with these boxes."""
    made = list_scenes("scenes", 0, 1, 128)
    table = BoxTable(boxes, labels, torch.tensor([0, len(boxes)]))
    values = {**made.__dict__, "table": table, "sizes": torch.tensor([[128, 256]]), "categories": categories}
    return CocoListing(**{**values, "category_ids": tuple(range(len(categories)))})


def described(sides: tuple[float, float], labels: int = 1, scale: float = 1.0) -> list[str]:
    boxes = boxes_of(torch.tensor(sides))
    listing = listing_of(boxes, torch.arange(60) % labels, ("cat", "dog", "emu")[: max(labels, 2)])
    return describe_boxes(listing, PLAIN, anchor_grid(8, 3, scale))


def test_boxes_that_fit_are_one_line() -> None:
    assert described((40.0, 40.0), 2) == ["anchors: 100.0% of 60 training boxes overlap one by IoU 0.5 or more"]


def test_boxes_too_small_for_the_anchors_are_reported_with_the_factor_that_helps() -> None:
    [line] = described((10.0, 10.0), 2)
    assert line.startswith("anchors: 0.0% of 60 training boxes overlap one by IoU 0.5 or more (the median box by 0.")
    assert "detector.anchor_scale times 0.25 would reach " in line


def test_boxes_of_hardly_a_pixel_are_counted() -> None:
    [anchors, thin] = described((1.5, 1.5), 2)
    assert anchors.endswith(": set a larger data.min_size")
    assert thin.startswith("60 of 60 training boxes are thinner than 2 px after resizing: set a larger data.min_size")


def test_categories_without_boxes_are_named() -> None:
    [_, line] = described((40.0, 40.0), 1)
    assert line == "1 of 2 categories have no training boxes: dog"


def test_a_dry_run_and_a_run_report_them(tmp_path: Path) -> None:
    arguments = ("distill", "--baseline", "-r", tiny_boxes.recipe_of(tmp_path), "--out", tmp_path / "out")
    assert "training boxes overlap one by IoU 0.5 or more" in done(*arguments, "--dry-run").out
    assert "data: anchors: " in done(*arguments).err


def test_a_dry_run_before_there_is_a_teacher_reports_the_rest(tmp_path: Path) -> None:
    found = done("distill", "-r", recipe_file(tmp_path), "--out", tmp_path / "out", "--dry-run").out
    assert "64 training, 40 evaluation examples" in found
    text = " ".join(found.split())
    assert "teacher no teacher: give --teacher CHECKPOINT, set teacher.checkpoint in the recipe, or train one" in text
    assert "Its cost is unknown until then" in text
