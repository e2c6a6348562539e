"""Fixtures that write synthetic experiments."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from known import load_recipe
from synthetic_runs import RECIPE, MakeRun, epoch_rows, forward_flops

from w2skd.recipe.load import dump_recipe
from w2skd.records.names import RunName
from w2skd.records.rows import EventRow, Row, encode


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Where the runs of a test go."""
    path = tmp_path / "tiny"
    path.mkdir()
    return path


@pytest.fixture
def make_run(experiment: Path, tmp_path: Path) -> MakeRun:
    """Write one run directory whose metric takes the given values, one validation per epoch."""

    def make(
        arm: str,
        seed: int,
        values: Sequence[float],
        *,
        recipe: str = RECIPE,
        metric: str = "top1",
        thresholds: str = "[teacher, 0.7, 0.98*baseline]",
        teacher: float | None = 0.65,
        off_epoch: int | None = None,
        state: str = "finished",
        overrides: Sequence[str] = (),
        environment: dict[str, Any] | None = None,
        extra: Sequence[Row] = (),
        length: float = 1.0,
        numbered: bool = False,
    ) -> Path:
        name = RunName(arm, None if arm == "teacher" and not numbered else seed, length)
        path = name.within(experiment)
        path.mkdir(parents=True)
        (tmp_path / "recipe.yaml").write_text(recipe)
        settings = [f"seed={seed}", f"report.metric={metric}", f"report.thresholds={thresholds}", *overrides]
        resolved = load_recipe(str(tmp_path / "recipe.yaml"), settings)
        if length != 1.0:
            resolved = resolved.model_copy(update={"train": resolved.train.scaled(length)})
        rows: list[Row] = []
        if arm == "w2s":
            rows.append(EventRow(0, "teacher", {"metrics": {metric: teacher}, "checkpoint": "teacher"}))
        for epoch, value in enumerate(values, start=1):
            rows += epoch_rows(epoch, value, metric, arm, off_epoch, teacher)
        own = {"arm": arm, "seed": seed} | ({} if length == 1.0 else {"length": length})
        status = {**own, "state": state, "step": 10 * len(values), "total_steps": 140}
        facts = {
            "w2skd": "0.1.0",
            "device": "cpu",
            "device_name": "a processor",
            "threads": 1,
            "ranks": 1,
            "data_fingerprint": "f00d",
            "forward_flops": forward_flops(arm),
        }
        (path / "recipe.yaml").write_text(dump_recipe(resolved))
        (path / "status.json").write_text(json.dumps(status))
        (path / "environment.json").write_text(json.dumps({**facts, **(environment or {})}))
        (path / "metrics.jsonl").write_text("".join(encode(row) + "\n" for row in [*rows, *extra]))
        return path

    return make
