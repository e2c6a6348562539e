"""The smoke recipes from an empty folder to the report, on the device."""

import json
from pathlib import Path

import pytest
import torch
from tiny import done, run_in, step_rows

pytestmark = pytest.mark.cuda


SHORT = {"detection_demo_smoke": ("--set", "train.validate_every=8step", "--set", "data.eval_examples=8")}
"""Fewer evaluations, because pycocotools is slow."""


@pytest.mark.parametrize("recipe", ["demo_smoke", "detection_demo_smoke", "diffusion_demo_smoke"])
def test_smoke_recipes(recipe: str, device: torch.device, tmp_path: Path) -> None:
    common = ("--recipe", recipe, "--out", tmp_path, "--quiet", "--device", device.type, *SHORT.get(recipe, ()))
    done("train-teacher", *common)
    done("distill", "--baseline", *common)
    done("distill", *common)
    done("speedup-report", tmp_path)
    assert json.loads((tmp_path / "report" / "report.json").read_text())["metric"]
    environment = json.loads((run_in(tmp_path) / "environment.json").read_text())
    assert torch.device(environment["device"]).type == device.type
    assert environment["device_name"]
    distilled = [row for row in step_rows(run_in(tmp_path)) if any(part.startswith("distill.") for part in row.parts)]
    assert distilled
    assert all(row.clock["teacher"] > 0 for row in distilled)
    if recipe == "demo_smoke":
        done("evaluate", "--recipe", recipe, "--checkpoint", run_in(tmp_path), "--device", device.type)
