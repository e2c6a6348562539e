"""Fixtures for tests of runs."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def out(experiment: Path, tmp_path: Path) -> Path:
    """An experiment with the same teacher and no other run."""
    shutil.copytree(experiment / "teacher", tmp_path / "runs" / "teacher")
    return tmp_path / "runs"


@pytest.fixture
def distill(recipe: Path, out: Path) -> tuple[object, ...]:
    return ("distill", "--recipe", recipe, "--out", out)
