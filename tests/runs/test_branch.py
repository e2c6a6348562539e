"""A shorter schedule that branches off a longer run ends exactly like the same schedule from the start."""

from pathlib import Path

import pytest
import torch
from tiny import RECIPE, done, evaluations, events, recipe_file, refused, status, step_rows, weights

TRUNK = RECIPE.replace(
    "lr_schedule: {name: one_cycle}", "lr_schedule: {name: wsd, warmup: 2step, cooldown: 0.4run}"
).replace("  deterministic: true\n", "  ema: {decay: 0.9}\n  deterministic: true\n")
"""The cooldown has 12 of 30 steps. At half the length, it has 6 of 15 steps and begins at step 9."""


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("branches")
    out = folder / "runs"
    recipe = recipe_file(folder, TRUNK)
    done("compare", "--recipe", recipe, "--seeds", "0", "--lengths", "0.5,1", "--out", out, "--quiet")
    return out


@pytest.mark.parametrize("arm", ["baseline", "w2s"])
def test_a_branch_ends_as_a_run_of_its_own_length(arm: str, compared: Path, tmp_path: Path) -> None:
    branch = compared / arm / "length0.5" / "seed0"
    assert (status(branch)["state"], status(branch)["step"], status(branch)["length"]) == ("finished", 15, 0.5)
    (event,) = events(branch, "branched")
    assert (event.step, event.details["trunk"]) == (9, f"{arm}/seed0")
    out = tmp_path / "alone"
    recipe = recipe_file(tmp_path, TRUNK)
    teacher = ("--teacher", compared / "teacher") if arm == "w2s" else ()
    own = ("distill", "--recipe", recipe, "--arm", arm, "--set", "train.steps=15", "--out", out, "--quiet")
    done(*own, *teacher)
    alone = out / arm / "seed0"
    assert evaluations(branch) == evaluations(alone)
    assert [(row.step, row.loss, row.lr) for row in step_rows(branch)] == [
        (row.step, row.loss, row.lr) for row in step_rows(alone)
    ]
    ours, theirs = weights(branch), weights(alone)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_trunk_is_a_run_of_the_full_length(compared: Path, tmp_path: Path) -> None:
    done("distill", "--recipe", recipe_file(tmp_path, TRUNK), "--baseline", "--out", tmp_path / "alone", "--quiet")
    assert evaluations(compared / "baseline" / "seed0") == evaluations(tmp_path / "alone" / "baseline" / "seed0")


def test_a_branch_needs_its_trunk(tmp_path: Path) -> None:
    recipe, out = recipe_file(tmp_path, TRUNK), tmp_path / "runs"
    branch = ("distill", "--recipe", recipe, "--baseline", "--set", "lengths=[0.5,1]", "--length", "0.5", "--out", out)
    assert "baseline/seed0: not finished, and shorter runs branch off it" in refused(*branch, code=2)
    done("distill", "--recipe", recipe, "--baseline", "--out", out, "--quiet")  # without lengths, it keeps nothing
    assert "has no checkpoint of step 9, where the shorter run branches off; train" in refused(*branch, code=1)
    done(
        "distill", "--recipe", recipe, "--baseline", "--set", "lengths=[0.5,1]", "--out", out, "--overwrite", "--quiet"
    )
    other = refused(*branch, "--set", "train.optimizer.lr=0.5", code=2)
    assert "a run of another recipe (train.optimizer.lr: 0.01 -> 0.5)" in other
    done(*branch, "--quiet")


def test_an_unknown_length_is_refused(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, TRUNK)
    line = refused("distill", "--recipe", recipe, "--baseline", "--length", "0.5", "--out", tmp_path / "runs", code=2)
    assert "--length 0.5: not one of the recipe's lengths (1)" in line


def test_lengths_of_other_schedules_are_runs_of_their_own(tmp_path: Path) -> None:
    recipe, out = recipe_file(tmp_path), tmp_path / "runs"
    done("compare", "--recipe", recipe, "--seeds", "0", "--lengths", "0.5,1", "--arms", "baseline", "--out", out, "-q")
    done("distill", "--recipe", recipe, "--baseline", "--set", "train.steps=15", "--out", tmp_path / "alone", "-q")
    short = out / "baseline" / "length0.5" / "seed0"
    assert evaluations(short) == evaluations(tmp_path / "alone" / "baseline" / "seed0")
    assert not events(short, "branched")
    assert not (out / "w2s").exists()
    assert not (out / "teacher").exists()
