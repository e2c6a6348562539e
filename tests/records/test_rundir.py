import json
import subprocess
import sys
from pathlib import Path

import pytest
from known import load_recipe, read_run

from w2skd.errors import CheckpointError, OutputError, RunDirError, UsageError
from w2skd.recipe.load import with_overrides
from w2skd.recipe.schema import Recipe
from w2skd.records.rows import EvalRow, EventRow, Row, encode
from w2skd.records.rundir import RunDir, find_runs, find_teacher, read_recipe, run_path
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
    for damaged in ("{", "[]"):
        (run.path / "status.json").write_text(damaged)
        assert run.status() == {}


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
        timeout=60,
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
    ],
)
def test_damaged_records_are_an_error(run: RunDir, recipe: Recipe, name: str, content: bytes) -> None:
    write_run(run, recipe)
    (run.path / name).write_bytes(content)
    with pytest.raises(RunDirError, match=f"{run.path}: its records are damaged: "):
        read_run(run.path)


# --- an experiment


def test_where_runs_live(tmp_path: Path) -> None:
    assert run_path(tmp_path, "teacher", 7) == tmp_path / "teacher"
    assert run_path(tmp_path, "baseline", 7) == tmp_path / "baseline" / "seed7"
    assert run_path(tmp_path, "w2s", 0) == tmp_path / "w2s" / "seed0"


def test_runs_are_found_in_a_fixed_order(tmp_path: Path) -> None:
    names = ["teacher", "baseline/seed0", "baseline/seed2", "baseline/seed10", "w2s/seed1"]
    for name in [*reversed(names), "w2s/seed1_old", "w2s/seeds", "report"]:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "status.json").write_text(json.dumps({}))
    (tmp_path / "w2s" / "seed5").mkdir()
    assert find_runs(tmp_path) == [tmp_path / name for name in names]
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
