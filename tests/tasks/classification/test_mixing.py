"""mixup and CutMix against a slow reference and what is known of their distributions."""

from dataclasses import replace
from itertools import islice
from statistics import fmean, pvariance
from typing import Any

import pytest
import torch
from known import build_task, validate_recipe

from w2skd.data.batch import LabelledImages
from w2skd.platform.ranks import Ranks
from w2skd.tasks.classification.mixing import mix_batches


def batch(step: int = 0, number: int = 0, count: int = 4, height: int = 6, width: int = 8) -> LabelledImages:
    images = torch.arange(count * 3 * height * width, dtype=torch.float32).view(count, 3, height, width)
    labels = torch.arange(count) * 10
    return LabelledImages(images, labels, torch.arange(count), step, number)


def mixed(some: LabelledImages, **options) -> LabelledImages:
    return next(mix_batches(iter([some]), **{"seed": 3, **options}))


def test_mixup_weighs_pixels_as_labels():
    for step in range(5):
        plain = batch(step)
        one = mixed(plain, mixup=0.8)
        assert one.partner_labels is not None
        assert one.partner_labels.tolist() == [30, 0, 10, 20]
        assert torch.equal(one.labels, plain.labels)
        assert 0 <= one.share <= 1
        for place in range(4):
            expected = one.share * plain.images[place] + (1 - one.share) * plain.images[place - 1]
            torch.testing.assert_close(one.images[place], expected)


def test_cutmix_pastes_one_box_and_counts_its_pixels():
    sizes = set()
    for step in range(60):
        plain = batch(step)
        one = mixed(plain, cutmix=1.0)
        assert one.partner_labels is not None
        assert one.partner_labels.tolist() == [30, 0, 10, 20]
        pasted = (one.images != plain.images)[:, 0]
        assert (pasted == pasted[0]).all()
        assert torch.equal(one.images, torch.where(pasted[:, None], plain.images.roll(1, 0), plain.images))
        assert one.share == pytest.approx(1 - float(pasted[0].float().mean()), abs=1e-6)
        if pasted.any():
            rows, columns = pasted[0].any(1).nonzero().flatten(), pasted[0].any(0).nonzero().flatten()
            assert pasted[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            sizes.add((len(rows), len(columns)))
    assert len(sizes) > 10


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_beta_distributed(alpha: float):
    shares = [one.share for one in mix_batches((batch(step) for step in range(3000)), mixup=alpha, seed=0)]
    assert fmean(shares) == pytest.approx(0.5, abs=0.03)
    assert pvariance(shares) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_with_both_each_gets_half_of_the_batches():
    batches = [batch(step) for step in range(600)]
    results = list(mix_batches(iter(batches), mixup=0.2, cutmix=1.0, seed=1))
    pasted = sum(
        bool(((one.images == plain.images) | (one.images == plain.images.roll(1, 0))).all())
        for plain, one in zip(batches, results, strict=True)
    )
    assert 240 <= pasted <= 360


def test_a_draw_depends_on_seed_step_and_slice_only():
    whole = {
        (step, number): mixed(batch(step, number), mixup=0.2, cutmix=1.0) for step in range(8) for number in range(2)
    }
    again = mix_batches((batch(step, 1) for step in range(3, 8)), mixup=0.2, cutmix=1.0, seed=3)
    for step, one in enumerate(again, start=3):
        assert torch.equal(one.images, whole[step, 1].images)
        assert one.share == whole[step, 1].share
    assert len({mixed(batch(step, number), mixup=1.0).share for step, number in whole}) == 16
    assert mixed(batch(), mixup=0.2, seed=4).share != mixed(batch(), mixup=0.2).share


def test_neither_the_batch_nor_a_generator_is_touched():
    plain, before = batch(), torch.get_rng_state()
    for options in ({"mixup": 1.0}, {"cutmix": 1.0}):
        mixed(plain, **options)
    assert torch.equal(plain.images, batch().images)
    assert torch.equal(torch.get_rng_state(), before)


def test_off_hands_batches_through():
    plain = batch()
    assert mixed(plain) is plain


def test_a_lone_example_stays_itself():
    for options in ({"mixup": 1.0}, {"cutmix": 1.0}):
        torch.testing.assert_close(mixed(batch(count=1), **options).images, batch(count=1).images)


def test_the_feed_ends_with_the_mixing():
    ended = []

    def feed():
        try:
            while True:
                yield batch()
        finally:
            ended.append(True)

    batches = mix_batches(feed(), mixup=1.0, seed=0)
    assert len(list(islice(batches, 2))) == 2
    del batches
    assert ended


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_the_memory_format_stays(options: dict[str, float], monkeypatch: pytest.MonkeyPatch):
    roll = torch.Tensor.roll
    monkeypatch.setattr(torch.Tensor, "roll", lambda *a: roll(*a).contiguous())  # what CUDA's does
    plain = batch()
    one = mixed(replace(plain, images=plain.images.to(memory_format=torch.channels_last)), **options)
    assert one.images.is_contiguous(memory_format=torch.channels_last)
    monkeypatch.undo()
    assert torch.equal(one.images, mixed(plain, **options).images)


def train_batch(**data: Any) -> LabelledImages:
    """Return the first training batch of a task whose data section has these keys."""
    values = {
        "name": "test",
        "task": "classification",
        "data": {"source": "shapes", "train_examples": 40, "eval_examples": 21, "image_size": 16, "workers": 0, **data},
        "teacher": {"model": "small_cnn_weak"},
        "student": {"model": "small_cnn_strong"},
        "train": {
            "steps": 10,
            "batch_size": 8,
            "optimizer": {"name": "sgd", "lr": 0.1},
            "lr_schedule": {"name": "constant"},
        },
    }
    recipe = validate_recipe(values, "test")
    task = build_task(recipe, train=recipe.train, seed=3, device=torch.device("cpu"), ranks=Ranks())
    return next(task.train_batches(0))


def test_a_task_mixes_its_batches_only_if_the_recipe_enables_it() -> None:
    plain, mixed = train_batch(), train_batch(mixup=0.5)
    assert plain.partner_labels is None
    assert mixed.partner_labels is not None
    assert torch.equal(mixed.labels, plain.labels)
    expected = mixed.share * plain.images + (1 - mixed.share) * plain.images.roll(1, 0)
    torch.testing.assert_close(mixed.images, expected)
