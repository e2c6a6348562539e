"""One arm as a user sees it: what it begins with, goes on from, refuses, and leaves behind."""

import fcntl
import gc
import json
import re
import shutil
import tempfile
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    Crash,
    assert_same_course,
    assert_same_weights,
    contents,
    crashed_at,
    done,
    evaluations,
    events,
    largest_file,
    refused,
    rows,
    status,
    step_rows,
    stopped_at,
    w2skd,
    weights,
)

from w2skd.checkpoint import load_checkpoint, load_weights
from w2skd.clock import Clock
from w2skd.distributed import Ranks
from w2skd.recipe.load import load_recipe
from w2skd.records import EventRow, Row, decode
from w2skd.run import arm as arm_module
from w2skd.run.options import RunOptions
from w2skd.run.setup import set_up
from w2skd.rundir import RunDir
from w2skd.tasks.classification import ClassificationTask
from w2skd.teacher import FrozenTeacher, state_fingerprint


@pytest.fixture
def out(experiment: Path, tmp_path: Path) -> Path:
    """An experiment that has the same teacher, and no run yet."""
    shutil.copytree(experiment / "teacher", tmp_path / "runs" / "teacher")
    return tmp_path / "runs"


@pytest.fixture
def distill(recipe: Path, out: Path) -> tuple[object, ...]:
    return ("distill", "--recipe", recipe, "--out", out)


def run_in(experiment: Path, arm: str = "w2s") -> Path:
    return experiment / arm / "seed0"


# Beginning


def test_both_arms_of_a_seed_begin_alike(recipe: Path, out: Path) -> None:
    """The first step has no distillation yet: the same loss on the same batch, from the same weights."""
    for extra in ((), ("--baseline",)):
        done("distill", "--recipe", recipe, "--out", out, "--set", "train.log_every=1", *extra)
    ours, theirs = (step_rows(run_in(out, arm)) for arm in ("w2s", "baseline"))
    assert ours[0].lambda_ == theirs[0].lambda_ == 0
    assert ours[0].loss == theirs[0].loss
    assert ours[0].parts == theirs[0].parts
    assert ours[2].loss != theirs[2].loss
    assert [row.lr for row in ours] == [row.lr for row in theirs]


def test_with_weight_0_distillation_changes_nothing_at_all(recipe: Path, out: Path, experiment: Path) -> None:
    done("distill", "--recipe", recipe, "--out", out, "--set", "distill.weight=0.0")
    assert_same_weights(weights(run_in(out)), weights(run_in(experiment, "baseline")))
    assert evaluations(run_in(out)) == evaluations(run_in(experiment, "baseline"))


def test_seeds_differ(recipe: Path, out: Path, experiment: Path) -> None:
    done("distill", "--recipe", recipe, "--out", out, "--seed", 1, "--baseline")
    ours = out / "baseline" / "seed1"
    assert status(ours)["seed"] == 1
    assert evaluations(ours) != evaluations(run_in(experiment, "baseline"))


def test_the_teacher_is_measured_once_before_anything_else(experiment: Path) -> None:
    first = rows(run_in(experiment))[0]
    assert isinstance(first, EventRow)
    assert (first.step, first.name) == (0, "teacher")
    teacher = load_weights(experiment / "teacher")
    assert first.details["metrics"] == evaluations(experiment / "teacher")[-1][-1]
    assert first.details["checkpoint"] == str(teacher.path)
    assert len(events(run_in(experiment), "teacher")) == 1
    assert events(run_in(experiment, "baseline"), "teacher") == []


def test_the_teacher_is_the_same_before_and_after(distill: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, held = contents(out / "teacher"), []
    original = FrozenTeacher.__init__

    def keep(self: FrozenTeacher, model: torch.nn.Module, **kwargs: Any) -> None:
        held.append((model, state_fingerprint(model)))
        original(self, model, **kwargs)

    monkeypatch.setattr(FrozenTeacher, "__init__", keep)
    done(*distill)
    ((model, fingerprint),) = held
    assert state_fingerprint(model) == fingerprint
    assert events(run_in(out), "teacher")[0].details["fingerprint"] == fingerprint
    assert contents(out / "teacher") == before
    names = load_checkpoint(run_in(out) / "checkpoints" / "last.pt")["engine"]["model"].keys()
    assert names == weights(run_in(out)).keys() != load_weights(out / "teacher").state.keys()


def test_the_switch_frees_the_teachers_memory(distill: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[weakref.ref[torch.nn.Module]] = []
    alive: dict[str, bool] = {}
    original, append = FrozenTeacher.__init__, RunDir.append

    def watch(self: FrozenTeacher, model: torch.nn.Module, **kwargs: Any) -> None:
        watched.append(weakref.ref(model))
        original(self, model, **kwargs)

    def look(self: RunDir, row: Row) -> None:
        if isinstance(row, EventRow):
            gc.collect()
            alive[row.name] = watched[0]() is not None
        append(self, row)

    monkeypatch.setattr(FrozenTeacher, "__init__", watch)
    monkeypatch.setattr(RunDir, "append", look)
    done(*distill)
    assert alive == {"teacher": True, "distillation_off": False, "finished": False}


def test_all_models_go_to_the_device(recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved, original = [], torch.nn.Module.to
    monkeypatch.setattr(
        torch.nn.Module,
        "to",
        lambda self, *a, **kw: (moved.append((type(self).__name__, a)), original(self, *a, **kw))[1],
    )
    set_up(load_recipe(str(recipe)), "w2s", RunOptions(out), Ranks())
    for model in ("CifarResNet", "SmallCnn"):
        assert (model, (torch.device("cpu"),)) in moved


def test_other_weights_to_begin_with(recipe: Path, out: Path, experiment: Path) -> None:
    source = run_in(experiment, "baseline")
    done("distill", "--recipe", recipe, "--out", out, "--baseline", "--init-from", source, "--set", "train.log_every=1")
    began = step_rows(run_in(out, "baseline"))[0].loss
    assert began < step_rows(source)[-1].loss + 0.5
    assert began < step_rows(source)[0].loss


def test_other_weights_of_another_model_are_refused(recipe: Path, out: Path, experiment: Path) -> None:
    line = refused(
        *("distill", "--recipe", recipe, "--out", out, "--baseline", "--init-from", experiment / "teacher"), code=1
    )
    assert line.endswith("teacher/model.safetensors: made for cifar_resnet8, not for small_cnn_weak")
    assert not (run_in(out, "baseline") / "recipe.yaml").exists()


@pytest.mark.parametrize("section", ["train.deterministic", "teacher.train.deterministic"])
def test_determinism_is_for_the_run_only(section: str, recipe: Path, tmp_path: Path) -> None:
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        original = ClassificationTask.losses
        patch.setattr(
            ClassificationTask,
            "losses",
            lambda *a: (seen.append(torch.are_deterministic_algorithms_enabled()), original(*a))[1],
        )
        settings = ("--set", "train.deterministic=false", "--set", f"{section}=true")
        done("train-teacher", "--recipe", recipe, "--out", tmp_path, *settings)
    assert seen == [True] * 6
    assert not torch.are_deterministic_algorithms_enabled()
    assert json.loads((tmp_path / "teacher" / "environment.json").read_text())["deterministic"] is True


# Going on


def test_a_finished_run_started_again_does_nothing(recipe: Path, copied: Path) -> None:
    before = contents(copied)
    for arguments in (("train-teacher",), ("distill",), ("distill", "--baseline"), ("distill", "--resume", "auto")):
        assert "already finished" in done(*arguments, "--recipe", recipe, "--out", copied).err
    assert contents(copied) == before


def test_a_finished_run_does_not_answer_for_another_teacher(recipe: Path, copied: Path, tmp_path: Path) -> None:
    done("train-teacher", "--recipe", recipe, "--out", tmp_path / "other", "--seed", 5)
    other, before = tmp_path / "other" / "teacher", contents(copied)
    line = refused("distill", "--recipe", recipe, "--out", copied, "--teacher", other, code=2)
    assert "holds a finished run with another teacher" in line
    assert contents(copied) == before


def test_a_finished_run_does_not_answer_for_other_first_weights(recipe: Path, copied: Path) -> None:
    source = run_in(copied, "baseline")
    line = refused("distill", "-r", recipe, "--out", copied, "--baseline", "--init-from", source, code=2)
    assert "did not begin from" in line


def test_where_a_run_went_on_is_noted(distill: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashed_at(14, *distill)
    before = json.loads((run_in(out) / "environment.json").read_text())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    done(*distill)
    [resumed] = events(run_in(out), "resumed")
    assert resumed.details["changed"] == {"threads": 7}
    assert json.loads((run_in(out) / "environment.json").read_text()) == before


def test_the_clock_counts_kept_work_only(distill: Any, out: Path, recipe: Path) -> None:
    """With a clock that goes one second a look, work that was done twice would show."""
    totals = []
    for lost in (False, True):
        ticks = iter(range(1_000_000))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(arm_module, "Clock", partial(Clock, now=lambda ticks=ticks: next(ticks)))
            if lost:
                crashed_at(14, *distill)
            done(*distill, *(() if lost else ("--seed", 0)))
        totals.append(step_rows(run_in(out))[-1].clock)
        assert len(events(run_in(out), "resumed")) == lost
        if not lost:
            shutil.rmtree(run_in(out))
    undisturbed, resumed = totals
    assert undisturbed["train"] > 0
    assert undisturbed["teacher"] > 0
    assert undisturbed["compile"] > 0
    # Each process's first step is a segment of its own, so the resumed run has two of them.
    for total in (undisturbed, resumed):
        total["train"] += total.pop("compile")
    for segment in ("train", "teacher", "data", "evaluate"):
        assert resumed[segment] == undisturbed[segment], segment


def test_a_crash_is_noted_and_the_run_goes_on_from_its_checkpoint(distill: Any, out: Path, experiment: Path) -> None:
    crashed_at(14, *distill)
    assert status(run_in(out))["state"] == "failed"
    assert status(run_in(out))["reason"] == Crash.__name__
    done(*distill)
    assert_same_course(run_in(out), run_in(experiment))


@pytest.mark.parametrize("damage", ["cut off", "emptied", "a flipped byte", "code"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_taken(
    damage: str, distill: Any, out: Path, experiment: Path
) -> None:
    stopped_at(14, *distill)
    last = run_in(out) / "checkpoints" / "last.pt"
    content = last.read_bytes()
    match damage:
        case "cut off":
            last.write_bytes(content[: len(content) // 2])
        case "emptied":
            last.write_bytes(b"")
        case "a flipped byte":
            middle = len(content) // 2
            last.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        case "code":
            torch.save({"format": 1, "engine": Path.cwd}, last)
    said = done(*distill).err
    assert re.search(rf"{last}: .*; going on from the one before$", said, re.MULTILINE)
    assert "resumed at step 12, 2 steps lost" in said
    assert_same_course(run_in(out), run_in(experiment))


def test_with_all_checkpoints_damaged_nothing_is_touched(distill: Any, out: Path) -> None:
    stopped_at(14, *distill)
    for name in ("last.pt", "previous.pt"):
        (run_in(out) / "checkpoints" / name).write_bytes(b"damaged")
    before = contents(out)
    line = refused(*distill, code=1)
    assert "last.pt: damaged" in line
    assert "previous.pt: damaged" in line
    assert contents(out) == before


def test_a_line_that_was_cut_off_is_cut_away(distill: Any, out: Path, experiment: Path) -> None:
    stopped_at(14, *distill)
    for rest in (b'{"row": "eval", "step": 15, "ep', b'\0\0\0\0\n{"row": "ev', b'{"row": "nonsense"}\n'):
        shutil.copytree(out, out.with_name("copy"), dirs_exist_ok=True)
        copy = out.with_name("copy")
        with (run_in(copy) / "metrics.jsonl").open("ab") as file:
            file.write(rest)
        done(*distill, "--out", copy)
        assert_same_course(run_in(copy), run_in(experiment))
        for line in (run_in(copy) / "metrics.jsonl").read_text().splitlines():
            decode(line)
        shutil.rmtree(copy)


@pytest.mark.parametrize("left", [0, 700])
def test_missing_rows_are_noticed(left: int, distill: Any, out: Path) -> None:
    stopped_at(14, *distill)
    metrics = run_in(out) / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:left])
    before = contents(out)
    line = refused(*distill, code=2)
    assert line.startswith(f"{metrics}: rows are missing that the last checkpoint knew of")
    assert contents(out) == before


def test_what_does_not_change_the_learning_may_change(distill: Any, out: Path, experiment: Path) -> None:
    stopped_at(14, *distill)
    done(*distill, "--set", "train.log_every=3", "--set", "name=other", "--set", "report.thresholds=[0.5]")
    assert_same_course(run_in(out), run_in(experiment))


def test_a_checkpoint_of_the_run_can_be_named(distill: Any, out: Path, experiment: Path) -> None:
    stopped_at(14, *distill)
    previous = run_in(out) / "checkpoints" / "previous.pt"
    said = done(*distill, "--resume", previous).err
    assert "resumed at step 12, 2 steps lost" in said
    assert_same_course(run_in(out), run_in(experiment))


def test_after_going_back_the_discarded_course_never_returns(distill: Any, out: Path, experiment: Path) -> None:
    stopped_at(14, *distill)
    best = run_in(out) / "checkpoints" / "best.pt"
    assert load_checkpoint(best)["engine"]["step"] < 12
    crashed_at(14, *distill, "--resume", best)
    shutil.copytree(out, out.with_name("copy"))
    for command in (distill, (*distill, "--resume", run_in(out) / "checkpoints" / "previous.pt")):
        done(*command)
        assert_same_course(run_in(out), run_in(experiment))
        shutil.rmtree(out)
        shutil.copytree(out.with_name("copy"), out)
    crashed_at(7, *distill, "--resume", best)  # before a checkpoint is written
    (run_in(out) / "checkpoints" / "last.pt").unlink()
    done(*distill)
    assert_same_course(run_in(out), run_in(experiment))


def test_a_checkpoint_of_something_else_is_refused(distill: Any, out: Path, experiment: Path, tmp_path: Path) -> None:
    stopped_at(14, *distill)
    stopped_at(5, *distill, "--seed", 1)
    stopped_at(5, *distill, "--baseline")
    (tmp_path / "text.pt").write_text("text")
    torch.save({"weight": torch.ones(1)}, tmp_path / "weights.pt")
    before = contents(out)
    for path, problem in {
        out / "w2s" / "seed1" / "checkpoints" / "last.pt": f"not a checkpoint of the run in {run_in(out)}",
        run_in(out, "baseline") / "checkpoints" / "last.pt": f"not a checkpoint of the run in {run_in(out)}",
        out / "teacher" / "checkpoints" / "last.pt": f"not a checkpoint of the run in {run_in(out)}",
        run_in(experiment) / "checkpoints" / "last.pt": f"not a checkpoint of the run in {run_in(out)}",
        tmp_path / "weights.pt": "not a training checkpoint of w2skd",
        tmp_path / "text.pt": "damaged or not a checkpoint",
        tmp_path / "missing.pt": "no such checkpoint",
    }.items():
        assert refused(*distill, "--resume", path, code=1) == f"{path}: {problem}"
        assert contents(out) == before


# Refusals: a directory that is not free


def test_a_run_that_is_there_is_refused_with_never(recipe: Path, copied: Path) -> None:
    before = contents(copied)
    line = refused("distill", "--recipe", recipe, "--out", copied, "--resume", "never", code=2)
    assert line == f"{run_in(copied)} already holds a run: resume it (--resume auto), or discard it (--overwrite)"
    assert contents(copied) == before


def test_a_run_of_another_recipe_is_refused_with_the_keys(recipe: Path, copied: Path) -> None:
    before = contents(copied)
    changes = ("--set", "train.optimizer.lr=0.5", "--set", "distill.temperature=3.0", "--set", "data.augment=[flip]")
    line = refused("distill", "--recipe", recipe, "--out", copied, *changes, code=2)
    assert line.startswith(f"{run_in(copied)} holds a run of another recipe (")
    for part in (
        "data.augment: ['crop', 'flip'] -> ['flip']",
        "distill.temperature: 2.0 -> 3.0",
        "train.optimizer.lr: 0.01 -> 0.5",
    ):
        assert part in line
    assert "discard it (--overwrite)" in line
    assert contents(copied) == before


def test_the_baseline_does_not_care_how_distillation_goes(recipe: Path, copied: Path) -> None:
    before = contents(copied)
    changes = ("--set", "distill.temperature=3.0", "--set", "teacher.model=cifar_resnet14")
    done("distill", "--baseline", "--recipe", recipe, "--out", copied, *changes)
    assert contents(copied) == before


@pytest.mark.parametrize("extra", [(), ("--resume", "never")])
def test_somebody_elses_files_are_refused(extra: Any, distill: Any, out: Path) -> None:
    run_in(out).mkdir(parents=True)
    (run_in(out) / "thesis.tex").write_text("years of work")
    line = refused(*distill, *extra, code=2)
    assert str(run_in(out)) in line
    assert "--overwrite" in line
    assert contents(run_in(out)) == {"thesis.tex": b"years of work"}


def test_hidden_files_are_in_nobodys_way(distill: Any, out: Path) -> None:
    run_in(out).mkdir(parents=True)
    (run_in(out) / ".DS_Store").write_text("")
    done(*distill)
    assert (run_in(out) / ".DS_Store").exists()


def test_a_run_that_is_under_way_is_left_alone(distill: Any, out: Path) -> None:
    stopped_at(14, *distill)
    before = contents(out)
    with (run_in(out) / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for extra in ((), ("--overwrite",)):
            assert refused(*distill, *extra, code=2) == f"{run_in(out)}: another process is training here"
    assert contents(out) == before
    done(*distill)


def test_who_stops_is_told_which_command_goes_on(recipe: Path, copied: Path) -> None:
    common = ("distill", "--recipe", recipe, "--out", copied)
    run = run_in(copied)
    stopped_at(14, *common, "--overwrite")
    assert status(run)["reason"].endswith(
        "checkpoint was written, the same command without --overwrite goes on from there"
    )
    stopped_at(20, *common, "--resume", run / "checkpoints" / "previous.pt")
    assert status(run)["reason"].endswith(
        "checkpoint was written, the same command without --resume goes on from there"
    )
    stopped_at(25, *common)
    assert status(run)["reason"].endswith("checkpoint was written, the same command goes on from there")


def test_overwrite_discards(recipe: Path, copied: Path, experiment: Path) -> None:
    (run_in(copied) / "mine.txt").write_text("")
    done("distill", "--recipe", recipe, "--out", copied, "--overwrite", "--set", "train.steps=6")
    assert evaluations(run_in(copied))[-1][0] == 6
    assert not (run_in(copied) / "mine.txt").exists()
    assert contents(copied / "baseline") == contents(experiment / "baseline")


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        (("--set", "data.source=image_folder", "--set", "data.image_size=16", "--set", "data.root=/nowhere"), 1),
        (("--device", "cuda:7"), 2),
        (("--teacher", "/nowhere.pt"), 1),
        (("--init-from", "/nowhere.pt"), 1),
        (("--resume", "/nowhere.pt"), 2),
    ],
)
def test_what_cannot_begin_discards_nothing(
    extra: Any, code: int, recipe: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    before = contents(copied)
    refused("distill", "--recipe", recipe, "--out", copied, "--overwrite", *extra, code=code)
    assert contents(copied) == before


# Refusals: teachers


def test_a_teacher_of_another_architecture_is_refused(distill: Any, out: Path, experiment: Path) -> None:
    line = refused(*distill, "--teacher", run_in(experiment), code=1)
    assert line == f"{run_in(experiment)}/model.safetensors: made for small_cnn_weak, not for cifar_resnet8"
    torch.save(weights(run_in(experiment)), out / "bare.pt")
    line = refused(*distill, "--teacher", out / "bare.pt", code=1)
    assert line.startswith(f"{out}/bare.pt: not the weights of cifar_resnet8: ")
    assert not (run_in(out) / "recipe.yaml").exists()


def test_a_teacher_of_another_number_of_classes_is_refused(distill: Any, out: Path, experiment: Path) -> None:
    state = weights(experiment / "teacher")
    for name in ("head.weight", "head.bias"):
        state[name] = state[name][:7]
    torch.save(state, out / "seven.pt")
    line = refused(*distill, "--teacher", out / "seven.pt", code=1)
    assert line == f"{out}/seven.pt: its cifar_resnet8 has 7 classes, the data has 10"


def test_a_teacher_of_other_classes_is_refused(distill: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = load_weights(out / "teacher").details["classes"][0]
    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "classes", property(lambda task: ("zebra", *task._data.train.classes[1:])))
        line = refused(*distill, code=1)
    assert (
        line
        == f"{out}/teacher/model.safetensors: its classes differ from the data's: {name!r} where the data has 'zebra'"
    )


def test_a_resume_with_another_teacher_is_refused(distill: Any, out: Path, experiment: Path) -> None:
    stopped_at(14, *distill)
    state = {name: tensor + 0.5 for name, tensor in weights(out / "teacher").items() if tensor.is_floating_point()}
    torch.save({**weights(out / "teacher"), **state}, out / "other.pt")
    line = refused(*distill, "--teacher", out / "other.pt", code=1)
    assert line.startswith(f"{out}/other.pt: another teacher than the one that this run began with (")
    done(*distill)
    assert_same_course(run_in(out), run_in(experiment))


def test_after_the_switch_the_teacher_no_longer_matters(distill: Any, out: Path, experiment: Path) -> None:
    stopped_at(26, *distill)
    state = {name: torch.zeros_like(tensor) for name, tensor in weights(out / "teacher").items()}
    torch.save(state, out / "other.pt")
    done(*distill, "--teacher", out / "other.pt")
    assert_same_course(run_in(out), run_in(experiment))


# Failing on the way


def test_a_learning_rate_beyond_reason_stops_the_run(recipe: Path, out: Path) -> None:
    extreme = ("--set", "train.optimizer.lr=1e20", "--set", "train.max_non_finite_steps=4")
    said = w2skd("distill", "--baseline", "--recipe", recipe, "--out", out, *extreme)
    run = run_in(out, "baseline")
    assert said.code == 1
    (line,) = said.problems
    assert re.fullmatch(
        r"loss or gradient was non-finite for \d+ steps in a row, last at step \d+, at learning rate [\d.]+e\+19; "
        rf"last good checkpoint: {run}/checkpoints/last\.pt of step \d+\n",
        line,
    )
    assert status(run)["state"] == "failed"
    assert status(run)["reason"] == line.strip()
    assert events(run, "non_finite")
    assert load_checkpoint(run / "checkpoints" / "last.pt")["engine"]["step"] in (3, 5)


def test_a_few_bad_steps_are_borne(recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ClassificationTask.losses

    def poisoned(self: ClassificationTask, student: Any, teacher: Any, batch: Any) -> Any:
        losses = original(self, student, teacher, batch)
        if batch.step in (10, 11):
            losses.task["cross_entropy"] = losses.task["cross_entropy"] * torch.nan
        return losses

    monkeypatch.setattr(ClassificationTask, "losses", poisoned)
    said = done("distill", "--baseline", "--recipe", recipe, "--out", out)
    (event,) = events(run_in(out, "baseline"), "non_finite")
    assert event.details["steps"] == [10, 11]
    assert len(event.details["ids"]) == 32
    assert "not finite at step 10, 11: update suppressed" in said.err
    assert all(tensor.isfinite().all() for tensor in weights(run_in(out, "baseline")).values())


def test_a_disk_that_fills_up_costs_what_came_after_the_last_checkpoint(
    distill: Any, out: Path, experiment: Path
) -> None:
    stopped_at(14, *distill)
    size = (run_in(out) / "checkpoints" / "last.pt").stat().st_size
    with largest_file(size // 2):
        line = refused(*distill, code=1)
    assert line == f"cannot write {run_in(out)}/checkpoints/next.pt: File too large"
    assert status(run_in(out))["state"] == "failed"
    assert status(run_in(out))["reason"] == line
    done(*distill)
    assert_same_course(run_in(out), run_in(experiment))
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]


def test_a_disk_too_full_for_a_row_is_told_in_one_line(
    recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(out, "baseline")
    monkeypatch.setattr(arm_module, "save_checkpoint", lambda *_, **__: None)
    with largest_file(3000):  # enough for the recipe, not for all rows
        line = refused("distill", "--baseline", "--recipe", recipe, "--out", out, code=1)
    assert line == f"cannot write {run}/metrics.jsonl: File too large"
    assert status(run)["reason"] == line


@pytest.mark.parametrize("name", ["recipe.yaml", "status.json"])
def test_a_folder_that_turns_read_only_is_told(
    name: str, recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tempfile.mkstemp

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if kwargs["prefix"] == f".{name}.":
            raise OSError(30, "Read-only file system")
        return original(*args, **kwargs)

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    line = refused("distill", "--baseline", "--recipe", recipe, "--out", out, code=1)
    assert line == f"cannot write {run_in(out, 'baseline')}/{name}: Read-only file system"


def test_an_output_folder_that_cannot_be_is_told(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    line = refused("train-teacher", "--recipe", recipe, "--out", tmp_path / "file" / "runs", code=1)
    assert line == f"cannot write {tmp_path}/file/runs/teacher: Not a directory"
    assert contents(tmp_path) == {"file": b"mine"}


def test_a_run_is_locked_while_it_trains_and_free_afterwards(distill: Any, out: Path) -> None:
    stopped_at(5, *distill)
    run = RunDir(run_in(out))
    run.lock()
    run.close()
