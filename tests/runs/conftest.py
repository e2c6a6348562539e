"""What the tests of a run begin with."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def out(experiment: Path, tmp_path: Path) -> Path:
    """An experiment that has the same teacher, and no run yet."""
    shutil.copytree(experiment / "teacher", tmp_path / "runs" / "teacher")
    return tmp_path / "runs"


@pytest.fixture
def distill(recipe: Path, out: Path) -> tuple[object, ...]:
    return ("distill", "--recipe", recipe, "--out", out)
