"""Generated shapes: reproducible, balanced, within their boxes, and not solved by single pixels."""

import math

import pytest
import torch

from w2skd.data import shapes


def test_an_example_depends_on_seed_and_index_only():
    many = shapes.render(3, torch.arange(300), 32)
    chosen = torch.tensor([299, 0, 256, 17])
    few = shapes.render(3, chosen, 32)
    assert torch.equal(few.images, many.images[chosen])
    assert torch.equal(few.labels, many.labels[chosen])
    assert torch.equal(few.boxes, many.boxes[chosen])
    assert not torch.equal(shapes.render(4, chosen, 32).images, few.images)


def test_examples_differ_and_classes_take_turns():
    scenes = shapes.render(0, torch.arange(100), 32)
    assert scenes.images.dtype is torch.uint8
    assert scenes.images.shape == (100, 3, 32, 32)
    assert scenes.images.flatten(1).unique(dim=0).shape[0] == 100
    assert scenes.labels.dtype is torch.int64
    assert scenes.labels.bincount().tolist() == [10] * 10
    assert len(set(shapes.CLASSES)) == 10


def test_torch_generator_and_global_seed_have_no_say():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = shapes.render(0, torch.arange(5), 16).images
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, shapes.render(0, torch.arange(5), 16).images)


@pytest.mark.parametrize("size", [8, 33, 64])
def test_any_size(size: int):
    scenes = shapes.render(0, torch.arange(20), size)
    assert scenes.images.shape == (20, 3, size, size)
    low, high = scenes.boxes[:, :2], scenes.boxes[:, 2:]
    assert (low >= 0).all()
    assert (high <= size).all()
    assert (high - low >= size / 5).all()


def test_boxes_enclose_what_is_true():
    inside = torch.zeros(2, 8, 10, dtype=torch.bool)
    inside[0, 2:5, 3:9] = True
    inside[1, 0, 0] = inside[1, 7, 9] = True
    assert shapes.boxes_around(inside).tolist() == [[3, 2, 9, 5], [0, 0, 10, 8]]


@pytest.mark.parametrize("name", shapes.CLASSES)
def test_shapes_fill_their_unit(name: str):
    axis = torch.linspace(-1.5, 1.5, 301)
    u, v = axis.expand(1, 301, 301), axis[:, None].expand(1, 301, 301)
    distance = shapes.SHAPES[name](u, v)
    assert distance.isfinite().all()
    reach = torch.hypot(u, v)[distance < 0].max().item()
    assert 0.8 < reach < 1.1
    # Near the edge a signed distance changes by about one a unit, else antialiasing would blur or break it.
    slope = torch.stack(torch.gradient(distance[0], spacing=0.01)).norm(dim=0)
    assert 0.9 < slope[distance[0].abs() < 0.05].median().item() < 1.1


@pytest.mark.parametrize(
    ("name", "area"),
    [
        ("circle", math.pi * 0.85**2),
        ("ring", math.pi * (0.88**2 - 0.48**2)),
        ("ellipse", math.pi * 0.98 * 0.52),
        ("square", 1.4**2),
        ("cross", 2 * 1.8 * 0.56 - 0.56**2),
        ("triangle", 3 * math.sqrt(3) / 4),
        ("pentagon", 2.5 * math.sin(2 * math.pi / 5) * 0.95**2),
        ("star", 1.1226),  # 10 tan(18 deg) / (3 - tan(18 deg)^2)
    ],
)
def test_areas_are_those_of_geometry(name: str, area: float):
    axis = torch.linspace(-1.5, 1.5, 601)
    inside = shapes.SHAPES[name](axis.expand(1, 601, 601), axis[:, None].expand(1, 601, 601)) < 0
    assert inside.sum().item() * 0.005**2 == pytest.approx(area, rel=0.02)


def test_pixels_spread_over_the_range_without_saturating():
    pixels = shapes.render(0, torch.arange(256), 32).images.float() / 255
    assert 0.3 < pixels.mean() < 0.5
    assert 0.15 < pixels.std() < 0.25
    assert ((pixels == 0) | (pixels == 1)).float().mean() < 0.15


def test_a_linear_classifier_does_badly():
    train, test = shapes.render(1, torch.arange(1024), 32), shapes.render(2, torch.arange(512), 32)

    def features(scenes: shapes.Scenes) -> torch.Tensor:
        pixels = scenes.images.float().flatten(1) / 255 - 0.4
        return torch.cat([pixels, torch.ones(len(pixels), 1)], 1)

    x = features(train)
    weights = torch.linalg.solve(
        x @ x.T + 30 * torch.eye(len(x)), torch.nn.functional.one_hot(train.labels).float() - 0.1
    )
    accuracy = (features(test) @ (x.T @ weights)).argmax(1).eq(test.labels).float().mean().item()
    assert accuracy < 0.35
