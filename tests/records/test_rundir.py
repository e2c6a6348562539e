import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from known import load_recipe, read_run

from w2skd.errors import CheckpointError, OutputError, RunDirError, UsageError
from w2skd.recipe.load import with_overrides
from w2skd.recipe.schema import Recipe
from w2skd.records.rows import EvalRow, EventRow, Row, StepRow, encode
from w2skd.records.rundir import RunDir, find_runs, find_teacher, read_recipe
from w2skd.tasks.catalog import recipe_types

ROWS: list[Row] = [
    EventRow(0, "teacher", {"metrics": {"top1": 0.6}}),
    EvalRow(10, 1.0, 80, {"top1": 0.3}, {"train": 1.0}),
    EvalRow(20, 2.0, 160, {"top1": 0.4}, {"train": 2.0}),
]


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("demo_smoke")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "experiment" / "baseline" / "seed0")


def write_run(run: RunDir, recipe: Recipe) -> None:
    run.lock()
    run.start(recipe, {"torch": "2.14.1"})
    run.set_status("baseline", 0, "finished", step=20)
    for row in ROWS:
        run.append(row)
    run.close()


def test_what_was_written_is_read(run: RunDir, recipe: Recipe) -> None:
    write_run(run, recipe)
    record = read_run(run.path)
    assert record.recipe == recipe
    assert record.environment == {"torch": "2.14.1"}
    assert (record.arm, record.seed, record.status["state"], record.status["step"]) == ("baseline", 0, "finished", 20)
    assert list(record.rows) == ROWS


def test_rows_are_there_as_soon_as_they_are_appended(run: RunDir, recipe: Recipe) -> None:
    run.lock()
    run.start(recipe, {})
    run.set_status("baseline", 0, "running")
    for count, row in enumerate(ROWS, start=1):
        run.append(row)
        assert len(read_run(run.path).rows) == count
    run.close()


def test_a_row_that_is_being_written_is_left_out(run: RunDir, recipe: Recipe) -> None:
    write_run(run, recipe)
    with run.metrics_path.open("a") as file:
        file.write(encode(ROWS[0])[:-5])
    assert list(read_run(run.path).rows) == ROWS


def test_the_picture_of_a_run_is_that_of_its_last_validation(run: RunDir, recipe: Recipe) -> None:
    write_run(run, recipe)
    run.pictures.mkdir()
    for name in ("step_00000010.png", "step_00000030.png", "teacher.png"):  # it went back from step 30
        (run.pictures / name).touch()
    assert read_run(run.path).picture is None
    (run.pictures / "step_00000020.png").touch()
    assert read_run(run.path).picture == "pictures/step_00000020.png"


def test_a_run_without_rows_yet_can_be_read(run: RunDir, recipe: Recipe) -> None:
    run.lock()
    run.start(recipe, {})
    run.set_status("baseline", 0, "running")
    run.close()
    assert list(read_run(run.path).rows) == []


# --- resuming


def test_metrics_are_cut_back_to_the_checkpoint_and_go_on_from_there(run: RunDir, recipe: Recipe) -> None:
    write_run(run, recipe)
    offset = len(encode(ROWS[0])) + 1
    again = RunDir(run.path)
    assert again.truncate_metrics(offset) == ROWS[1:]
    assert again.metrics_offset() == offset
    again.append(ROWS[2])
    again.close()
    assert list(read_run(run.path).rows) == [ROWS[0], ROWS[2]]


def test_a_half_written_row_is_cut_too(run: RunDir, recipe: Recipe) -> None:
    write_run(run, recipe)
    offset = run.metrics_offset()
    with run.metrics_path.open("a") as file:
        file.write('{"row": "eval", "st')
    assert RunDir(run.path).truncate_metrics(offset) == []
    assert run.metrics_offset() == offset


def test_there_is_nothing_to_cut_in_a_fresh_directory(run: RunDir) -> None:
    run.lock()
    assert run.truncate_metrics(0) == []
    assert run.metrics_offset() == 0
    run.close()


def test_the_offset_counts_bytes(run: RunDir) -> None:
    run.lock()
    run.append(EventRow(0, "note", {"text": "図"}))
    assert run.metrics_offset() == run.metrics_path.stat().st_size > 0
    run.close()


# --- the directory as a whole


def test_a_directory_holds_a_run_once_something_is_in_it(run: RunDir, recipe: Recipe) -> None:
    assert not run.holds_a_run()
    run.lock()
    assert not run.holds_a_run()
    run.start(recipe, {})
    assert run.holds_a_run()
    run.close()


def test_clearing_leaves_nothing_but_the_lock(run: RunDir, recipe: Recipe, tmp_path: Path) -> None:
    write_run(run, recipe)
    elsewhere = tmp_path / "scratch"
    elsewhere.mkdir()
    (elsewhere / "last.pt").touch()
    (run.path / "linked").symlink_to(elsewhere)
    run.lock()
    run.clear()
    assert not run.holds_a_run()
    assert (elsewhere / "last.pt").exists()
    with pytest.raises(RunDirError):
        RunDir(run.path).lock()
    run.close()


def test_status_of_a_directory(run: RunDir, recipe: Recipe) -> None:
    assert run.status() == {}
    write_run(run, recipe)
    assert run.status() == {"arm": "baseline", "seed": 0, "state": "finished", "step": 20}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "not valid JSON at column 2"),
        ("[]", "a record must be an object, not []"),
        ("", "not valid JSON at column 1"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_damage_is_reported_before_a_run_resumes(run: RunDir, recipe: Recipe, content: str, problem: str) -> None:
    write_run(run, recipe)
    for name, read in (("status.json", run.status), ("environment.json", run.environment)):
        (run.path / name).write_text(content)
        with pytest.raises(RunDirError) as raised:
            read()
        assert str(raised.value) == (
            f"{run.path}: its records are damaged: {name}: {problem}; "
            "delete the file to resume without it, or discard the run (--overwrite)"
        )
        (run.path / name).unlink()
        assert read() == {}


# --- the lock


def test_two_cannot_train_in_one_directory(run: RunDir) -> None:
    run.lock()
    with pytest.raises(RunDirError, match=f"{run.path}: another process is training here"):
        RunDir(run.path).lock()
    run.close()
    again = RunDir(run.path)
    again.lock()
    again.close()


def test_the_lock_ends_with_its_process(run: RunDir) -> None:
    code = (
        "import sys, pathlib, w2skd.records.rundir as it; it.RunDir(pathlib.Path(sys.argv[1])).lock(); print('locked')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.path)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert done.stdout == "locked\n"
    run.lock()
    run.close()


def test_a_directory_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*file.*: "):
        RunDir(tmp_path / "file" / "seed0").lock()


# --- records that are not as they should be


@pytest.mark.parametrize("missing", ["recipe.yaml", "status.json", "environment.json"])
def test_a_directory_that_lacks_a_record_is_no_run(run: RunDir, recipe: Recipe, missing: str) -> None:
    write_run(run, recipe)
    (run.path / missing).unlink()
    with pytest.raises(RunDirError, match=f"not a run directory, {missing} is missing"):
        read_run(run.path)


def test_a_directory_that_is_not_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="not a run directory"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        read_recipe(tmp_path / "nowhere", recipe_types())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.yaml", b"[1, 2"),
        ("recipe.yaml", b""),
        ("recipe.yaml", b"- a list"),
        ("recipe.yaml", b"name: tiny\ntask: classification\n"),
        ("recipe.yaml", b"\xff\xfe"),
        ("status.json", b"{"),
        ("status.json", b"{}"),
        ("environment.json", b"\xff"),
        ("metrics.jsonl", b"not a row\n"),
        ("metrics.jsonl", b"\xff\xff\n"),
        ("metrics.jsonl", b'{"row": "step"}\n{"row"'),
        ("metrics.jsonl", b"[" * 100_000 + b"\n"),
        ("environment.json", b"[" * 100_000),
        ("recipe.yaml", b"[" * 100_000),
    ],
)
def test_damaged_records_are_an_error(run: RunDir, recipe: Recipe, name: str, content: bytes) -> None:
    write_run(run, recipe)
    (run.path / name).write_bytes(content)
    with pytest.raises(RunDirError, match=f"{run.path}: its records are damaged: "):
        read_run(run.path)


@pytest.mark.parametrize(
    ("name", "field", "value", "problem"),
    [
        ("status.json", "arm", ["w2s"], 'arm must be text, not ["w2s"]'),
        ("status.json", "seed", "0", 'seed must be a whole number of 0 or more, not "0"'),
        ("status.json", "state", "done", 'state must be one of running, finished, stopped, failed, not "done"'),
        ("status.json", "total_steps", [], "total_steps must be a whole number of 0 or more or null, not []"),
        ("status.json", "reason", 7, "reason must be text or null, not 7"),
        ("environment.json", "threads", "4", 'threads must be a whole number of 0 or more, not "4"'),
        ("environment.json", "device", 1, "device must be text, not 1"),
        ("environment.json", "forward_flops", 1, "forward_flops must be an object or null, not 1"),
        (
            "environment.json",
            "forward_flops",
            {"student": "x"},
            'forward_flops.student must be a finite number of 0 or more or null, not "x"',
        ),
        ("environment.json", "scoring", [], "scoring must be an object or null, not []"),
        ("environment.json", "added", [math.inf], "added[0] must be a finite number, not Infinity"),
    ],
)
def test_a_field_of_another_kind_is_named(
    run: RunDir, recipe: Recipe, name: str, field: str, value: Any, problem: str
) -> None:
    write_run(run, recipe)
    values = json.loads((run.path / name).read_text())
    (run.path / name).write_text(json.dumps({**values, field: value}))
    with pytest.raises(RunDirError) as raised:
        read_run(run.path)
    assert str(raised.value) == f"{run.path}: its records are damaged: {name}: {problem}"


def test_the_line_of_a_damaged_row_is_named(run: RunDir, recipe: Recipe) -> None:
    write_run(run, recipe)
    with run.metrics_path.open("a") as file:
        file.write('{"row": "event", "step": "3", "name": "x"}\n' + encode(ROWS[0]) + "\n")
    with pytest.raises(
        RunDirError, match=r'metrics\.jsonl, line 4: step must be a whole number of 0 or more, not "3"$'
    ):
        read_run(run.path)


def test_problems_of_a_recipe_are_reported_in_one_line(run: RunDir, recipe: Recipe) -> None:
    write_run(run, recipe)
    text = (run.path / "recipe.yaml").read_text()
    (run.path / "recipe.yaml").write_text(f"unknown: 1\nother: 2\n{text}")
    with pytest.raises(RunDirError, match=r"recipe\.yaml: 2 problems; .*unknown.*; .*other") as raised:
        read_run(run.path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["recipe.yaml", "status.json", "environment.json", "metrics.jsonl"])
def test_a_record_that_cannot_be_read_is_named(run: RunDir, recipe: Recipe, name: str) -> None:
    write_run(run, recipe)
    (run.path / name).unlink()
    (run.path / name).mkdir()
    with pytest.raises(RunDirError, match=f"{run.path}: cannot read {name}: Is a directory"):
        read_run(run.path)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**30, -(10**400), 2**63])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["running", "teacher", "step", "event", "1", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
"""Any JSON value, with NaN, infinities and numbers of more than 64 bits."""


def places(values: Any) -> list[tuple[Any, Any]]:
    """List every (container, key) in nested plain values."""
    items = list(values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ())
    return [(values, key) for key, _ in items] + [place for _, item in items for place in places(item)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["recipe.yaml", "status.json", "environment.json", "metrics.jsonl"]))
def test_any_value_in_any_field_is_read_or_refused(
    data: st.DataObject, name: str, tmp_path: Path, recipe: Recipe
) -> None:
    run = RunDir(tmp_path / "experiment" / "w2s" / "seed0")
    if run.holds_a_run():
        run.clear()
    write_run(run, recipe)
    facts = {"threads": 4, "forward_flops": {"student": 1}, "scoring": {"samples": 8}, "init_from": {"checkpoint": "x"}}
    (run.path / "environment.json").write_text(json.dumps(facts))
    run.append(StepRow(20, 2.0, 160, 0.5, {"task.cross_entropy": 0.5}, 0.0, 0.1, {"train": 2.0}))
    run.append(EventRow(20, "finished", {"best": 0.4, "best_step": 20}))
    run.close()
    path = run.path / name
    parse = yaml.safe_load if name == "recipe.yaml" else json.loads
    text = path.read_text()
    documents = [parse(each) for each in (text.splitlines() if name == "metrics.jsonl" else [text])]
    container, key = data.draw(st.sampled_from(places(documents)))
    if isinstance(container, dict) and data.draw(st.booleans()):
        del container[key]
    else:
        container[key] = data.draw(PLAIN)
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    problem = None
    try:
        read_run(run.path)
    except RunDirError as error:
        problem = str(error)
    assert problem is None or (name in problem and "\n" not in problem)


# --- an experiment


def test_runs_are_found_in_a_fixed_order(tmp_path: Path) -> None:
    names = ["teacher", "teacher/seed1", "baseline/seed0", "baseline/seed2", "baseline/seed10"]
    names += ["baseline/length0.5/seed0", "baseline/length0.25/seed3", "w2s/seed1"]
    for name in [*reversed(names), "w2s/seed1_old", "w2s/seeds", "w2s/length1/seed0", "w2s/length0.5", "report"]:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "status.json").write_text(json.dumps({}))
    (tmp_path / "w2s" / "seed5").mkdir()
    assert [str(run) for run in find_runs(tmp_path)] == names
    assert find_runs(tmp_path / "nowhere") == []


def test_the_teacher_is_the_recipes_or_the_experiments(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(UsageError) as raised:
        find_teacher(recipe, tmp_path)
    for way in ("--teacher CHECKPOINT", "teacher.checkpoint", "w2skd train-teacher --recipe"):
        assert way in str(raised.value)
    assert "\n" not in str(raised.value)

    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "model.safetensors").touch()
    assert find_teacher(recipe, tmp_path) == tmp_path / "teacher"

    given = tmp_path / "old.safetensors"
    with_teacher = with_overrides(recipe, [f"teacher.checkpoint={given}"])
    with pytest.raises(CheckpointError, match=r"old\.safetensors: no such checkpoint"):
        find_teacher(with_teacher, tmp_path)
    given.touch()
    assert find_teacher(with_teacher, tmp_path) == given


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "tiny" / "w2s" / "seed0")
    run.lock()
    run.close()
    assert list(tmp_path.iterdir()) == []


def test_somebody_elses_folder_stays(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "tiny" / "w2s" / "seed0")
    run.lock()
    (tmp_path / "runs" / "notes.txt").touch()
    run.close()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["notes.txt"]
