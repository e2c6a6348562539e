"""A fourth task is one folder and one line: a task of another package runs through every command."""

import csv
import json
import socket
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from mortal import Blow, Nursery

from w2skd.records.rows import EvalRow, decode

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
RECIPE = HERE / "tiny.yaml"
KILLED_AT = 14
TIMEOUT_S = 60
KILL = Blow("w2skd.training.engine:Engine._take_step", call=KILLED_AT + 1)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as an installer leaves it: the modules, and metadata with the entry point."""
    folder = tmp_path_factory.mktemp("site")
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    (folder / "w2skd_harmonics").symlink_to(HERE / "w2skd_harmonics")
    metadata = folder / "w2skd_harmonics-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in project["entry-points"]["w2skd.tasks"].items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[w2skd.tasks]", *lines, ""]))
    return folder


class Commands:
    """Runs commands, alone or on several ranks at once, and reads what they print."""

    def __init__(self, nurseries: list[Nursery], folder: Path) -> None:
        self._nurseries = nurseries
        self._folder = folder

    def __call__(self, *arguments: object, blow: Blow | None = None, code: int = 0) -> str:
        world = len(self._nurseries)
        outputs = [self._folder / f"rank{rank}.txt" for rank in range(world)]
        shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        if world > 1:
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        with ThreadPoolExecutor() as pool:
            calls = []
            for rank, (nursery, output) in enumerate(zip(self._nurseries, outputs, strict=True)):
                own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                calls.append(pool.submit(nursery.run, blow, output, *arguments, variables=own))
            if wait(calls, timeout=TIMEOUT_S).not_done:
                for nursery in self._nurseries:
                    nursery.kill()
                raise TimeoutError("".join(output.read_text() for output in outputs))
            codes = [call.result() for call in calls]
        assert codes == [code] * len(codes), "".join(output.read_text() for output in outputs)
        return outputs[0].read_text()


@pytest.fixture(scope="module")
def alone(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with Nursery([site]) as nursery:
        yield Commands([nursery], tmp_path_factory.mktemp("alone"))


@pytest.fixture
def two_ranks(site: Path, tmp_path: Path) -> Iterator[Commands]:
    with Nursery([site]) as first, Nursery([site]) as second:
        yield Commands([first, second], tmp_path)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def experiment(alone: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a baseline and a distilled run."""
    out = tmp_path_factory.mktemp("harmonics") / "runs"
    common = ("--recipe", RECIPE, "--out", out, "--quiet")
    for command in (("train-teacher",), ("distill", "--baseline"), ("distill",)):
        alone(*command, *common)
    return out


def test_no_module_of_w2skd_knows_the_task() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "w2skd").rglob("*.py")]
    assert not any("harmonic" in source.lower() for source in sources)


def test_the_report_compares_the_arms(experiment: Path, alone: Commands) -> None:
    report = json.loads(alone("speedup-report", experiment, "--json"))
    assert (report["task"], report["metric"], report["higher_is_better"]) == ("harmonics", "rmse", False)
    assert {run["run"] for run in report["runs"]} == {"teacher", "baseline/seed0", "w2s/seed0"}
    assert [threshold["name"] for threshold in report["thresholds"]] == ["teacher", "0.9*baseline"]
    assert report["thresholds"][0]["value"] > 0
    assert (experiment / "report" / "curves.png").exists()


def test_a_finished_model_is_scored_and_writes_its_own_output(
    experiment: Path, alone: Commands, tmp_path: Path
) -> None:
    run, curve = experiment / "w2s" / "seed0", tmp_path / "curve.csv"
    found = json.loads(alone("evaluate", "--checkpoint", run, "--curve", curve, "--json"))
    assert found["metrics"] == pytest.approx(evaluations_of(run)[-1][-1], rel=1e-6)
    lines = list(csv.reader(curve.open()))
    assert lines[0] == ["x", "fitted", "true"]
    assert len(lines) == 51
    assert "--curve" in alone("evaluate", "--help")
    said = alone("evaluate", "--checkpoint", run, "--predictions", tmp_path / "p.csv", code=2)
    assert "--predictions: not an output of harmonics, which offers --curve" in said


def test_a_dry_run_describes_it(experiment: Path, alone: Commands) -> None:
    said = alone("distill", "--recipe", RECIPE, "--out", experiment, "--dry-run")
    assert "96 training, 50 evaluation" in said
    assert "mlp_16" in said
    assert "fitted to 3 harmonics" in " ".join(said.split())


def test_a_run_that_is_killed_resumes_to_the_same_end(experiment: Path, alone: Commands, tmp_path: Path) -> None:
    command = ("distill", "--recipe", RECIPE, "--out", tmp_path, "--teacher", experiment / "teacher", "--quiet")
    alone(*command, blow=KILL, code=-9)
    alone(*command)
    whole, resumed = experiment / "w2s" / "seed0", tmp_path / "w2s" / "seed0"
    assert fingerprint(resumed) == fingerprint(whole)
    assert evaluations_of(resumed) == evaluations_of(whole)
    assert any(row.step == KILLED_AT // 4 * 4 for row in rows_of(resumed) if getattr(row, "name", "") == "resumed")


def test_two_ranks_that_are_killed_resume_and_learn_what_one_process_learns(
    experiment: Path, two_ranks: Commands, tmp_path: Path
) -> None:
    command = ("distill", "--recipe", RECIPE, "--out", tmp_path, "--teacher", experiment / "teacher", "--quiet")
    two_ranks(*command, blow=KILL, code=-9)
    two_ranks(*command)
    one, two = experiment / "w2s" / "seed0", tmp_path / "w2s" / "seed0"
    for expected, found in zip(evaluations_of(one), evaluations_of(two), strict=True):
        assert found[:3] == expected[:3]
        assert found[3] == pytest.approx(expected[3], rel=1e-4)


def fingerprint(run: Path) -> Any:
    [finished] = [row for row in rows_of(run) if getattr(row, "name", "") == "finished"]
    return finished.details["fingerprint"]


def rows_of(run: Path) -> list[Any]:
    return [decode(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def evaluations_of(run: Path) -> list[tuple[int, float, int, dict[str, float]]]:
    return [(row.step, row.epoch, row.examples, row.metrics) for row in rows_of(run) if isinstance(row, EvalRow)]
