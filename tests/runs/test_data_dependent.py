"""Runs of a model whose first layer is computed from the training images and stays frozen."""

from pathlib import Path
from typing import Any

import pytest
import torch
from known import load_recipe
from processes import run_ranks, values
from tiny import RECIPE, assert_same_course, assert_same_weights, done, recipe_file, run_in, stopped_at, weights

from w2skd.models.whitened_cnn import WhitenedCnn
from w2skd.platform.ranks import Ranks
from w2skd.runs.arm import train_arm
from w2skd.runs.options import RunOptions
from w2skd.runs.setup import set_up
from w2skd.tasks.classification.task import ClassificationTask

FAST = (
    RECIPE.replace("small_cnn_weak", "whitened_cnn_w16")
    .replace("image_size: 16}", "image_size: 16, augment: [crop, alternating_flip], crop_px: 2, MORE}")
    .replace("MORE", "feed: streaming, workers: 0")
    .replace("name: one_cycle", "name: triangular, initial_ratio: 0.2, final_ratio: 0.07")
    .replace("batch_size: 16", "batch_size: 16\n  channels_last: true\n  ema: {decay: 0.8}")
    .replace("steps: 30", "steps: 12")
)
FIRST = "whiten.weight"


@pytest.fixture
def fast(tmp_path: Path, out: Path) -> tuple[object, ...]:
    return ("distill", "--recipe", recipe_file(tmp_path, FAST), "--out", out)


def expected_filters(recipe: Path) -> torch.Tensor:
    """Return the filters of a fresh model."""
    setup = set_up(load_recipe(str(recipe)), "baseline", RunOptions(recipe.parent), Ranks())
    assert isinstance(setup.model, WhitenedCnn)
    return setup.model.whiten.weight.detach().contiguous()


def test_a_stopped_run_ends_as_an_undisturbed_one(
    fast: Any, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images are read once, because a resumed run has the filters in its checkpoint."""
    other = tmp_path / "other"
    done(*fast[:-1], other, "--teacher", out / "teacher")
    filters = expected_filters(tmp_path / "tiny.yaml")
    stopped_at(7, *fast)
    monkeypatch.setattr(ClassificationTask, "initialize_model", forbidden)
    done(*fast)
    assert_same_course(run_in(out), run_in(other))
    assert torch.equal(weights(run_in(out))[FIRST], filters)


def forbidden(task: ClassificationTask, model: torch.nn.Module) -> None:
    raise AssertionError("the training images are not needed")


def test_loaded_weights_replace_the_filters(fast: Any, out: Path, tmp_path: Path, monkeypatch: Any) -> None:
    torch.manual_seed(5)
    start = WhitenedCnn(16, 10).state_dict()
    torch.save(start, tmp_path / "start.pt")
    monkeypatch.setattr(ClassificationTask, "initialize_model", forbidden)
    done(*fast, "--baseline", "--init-from", tmp_path / "start.pt")
    run = run_in(out, "baseline")
    assert torch.equal(weights(run)[FIRST], start[FIRST])
    done("evaluate", "--checkpoint", run)


def test_frozen_parameters_stay_as_they_are_under_clipping_and_averaging(tmp_path: Path) -> None:
    recipe, out = recipe_file(tmp_path, FAST.replace("cifar_resnet8", "whitened_cnn_w32")), tmp_path / "runs"
    common = ("--recipe", recipe, "--out", out, "--set", "train.precision=bf16", "--set", "train.clip_grad_norm=1.0")
    done("train-teacher", *common)
    done("distill", *common)
    assert torch.equal(weights(run_in(out))[FIRST], weights(out / "teacher")[FIRST])
    assert torch.equal(weights(run_in(out))[FIRST], expected_filters(recipe))
    assert weights(run_in(out))["block1.norm1.weight"].eq(1).all()


def run_baseline(ranks: Ranks, recipe: Path, out: Path) -> Path:
    """Train the baseline on one of the ranks."""
    return train_arm(load_recipe(str(recipe)), "baseline", RunOptions(out, device="cpu", quiet=True), ranks)


def test_two_ranks_train_like_one_process_with_accumulation(tmp_path: Path) -> None:
    """Batch norm sees the same halves of a batch, on two ranks or in two micro-batches."""
    recipe, both = recipe_file(tmp_path, FAST), tmp_path / "both"
    values(run_ranks(run_baseline, recipe, both))
    done(*("distill", "--baseline", "--recipe", recipe, "--out", tmp_path / "one"), "--set", "train.accumulate=2")
    ours, theirs = (weights(run_in(folder, "baseline")) for folder in (both, tmp_path / "one"))
    assert torch.equal(ours[FIRST], theirs[FIRST])
    trained = [name for name in ours if "running" not in name and "num_batches" not in name]
    for name in trained:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_both_feeds_and_all_seeds_have_the_same_filters(tmp_path: Path) -> None:
    filters = expected_filters(recipe_file(tmp_path, FAST))
    resident = expected_filters(recipe_file(tmp_path, FAST.replace("feed: streaming", "feed: resident")))
    torch.testing.assert_close(resident, filters)
    other = expected_filters(recipe_file(tmp_path, FAST.replace("name: tiny", "name: tiny\nseed: 3")))
    assert_same_weights({FIRST: other}, {FIRST: filters})
