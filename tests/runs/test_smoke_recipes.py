"""The smoke recipes on generated data run alone: one command, from an empty folder, without any file."""

from pathlib import Path

import pytest
from tiny import done


@pytest.mark.parametrize("recipe", ["demo_smoke", "detection_demo_smoke", "diffusion_demo_smoke"])
def test_a_smoke_recipe_runs_alone(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done("compare", "--recipe", recipe, "--seeds", "0", "--quiet")
    assert (tmp_path / "runs" / recipe / "report" / "report.json").exists()
