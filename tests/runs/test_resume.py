"""Which checkpoint a run resumes from, and which directories it refuses."""

import fcntl
import json
import re
import shutil
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from known import validate_recipe
from PIL import Image
from tiny import (
    Crash,
    assert_same_course,
    contents,
    crashed_at,
    done,
    evaluations,
    events,
    refused,
    run_in,
    status,
    step_rows,
    stopped_at,
)

from w2skd.data import shapes
from w2skd.recipe.load import with_overrides
from w2skd.recipe.schema import Place
from w2skd.records.rows import decode
from w2skd.runs import arm as arm_module
from w2skd.runs.resume import differing_keys
from w2skd.tasks.classification.recipe import ClassificationRecipe
from w2skd.tasks.classification.task import ClassificationTask
from w2skd.training.checkpoint import load_checkpoint
from w2skd.training.clock import Clock


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
    assert "did not start from" in line


def test_where_a_run_went_on_is_noted(distill: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashed_at(14, *distill)
    before = json.loads((run_in(out) / "environment.json").read_text())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    done(*distill)
    [resumed] = events(run_in(out), "resumed")
    assert resumed.details["changed"] == {"threads": 7}
    assert json.loads((run_in(out) / "environment.json").read_text()) == before


def test_a_run_goes_on_only_where_it_is_scored_as_it_was(
    distill: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ClassificationTask.describe_data

    def scored_by(**scoring: object) -> None:
        monkeypatch.setattr(ClassificationTask, "describe_data", lambda self: original(self) | {"scoring": scoring})

    scored_by(extractor="vgg16", sizes=(8, 16))
    crashed_at(14, *distill)
    before = contents(out)
    scored_by(extractor="vgg19", sizes=(8, 16))
    line = refused(*distill, code=2)
    assert line == (
        f"{run_in(out)}: holds a run that was scored differently: extractor is vgg16 in its records, vgg19 in this "
        "command; choose another --out or discard it (--overwrite)"
    )
    assert contents(out) == before
    scored_by(extractor="vgg16", sizes=(8, 16))
    assert "resumed at step 12" in done(*distill).err
    scored_by(extractor="vgg19", sizes=(8, 16))
    done(*distill, "--overwrite", "--set", "train.steps=6", "--set", "distill.decay=6step")


def test_a_run_begins_only_where_it_is_scored_as_the_others_of_its_experiment(
    distill: Any, recipe: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ClassificationTask.describe_data

    def scored_by(**scoring: object) -> None:
        monkeypatch.setattr(ClassificationTask, "describe_data", lambda self: original(self) | {"scoring": scoring})

    another = ("distill", "-r", recipe, "--out", copied, "--seed", 1, "--set", "train.steps=6")
    for run, samples in (("teacher", 7), ("w2s/seed0", 2000), ("baseline/seed0", 2000)):
        file = copied / run / "environment.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"scoring": {"samples": samples}}))
    (copied / "baseline" / "seed3").mkdir()
    (copied / "baseline" / "seed3" / "status.json").write_text("of a damaged run")
    before = contents(copied)
    scored_by(samples=10_000)
    assert refused(*another, code=2) == (
        f"{copied}/w2s/seed1: would be scored differently from {copied}/baseline/seed0 and could not be compared with "
        "it: samples is 10,000 in this command, 2,000 in baseline/seed0; choose another --out"
    )
    assert contents(copied) == before
    assert not (copied / "w2s" / "seed1").exists()
    scored_by(samples=2000)  # the teacher's own run may be scored differently
    done(*another, "--set", "distill.decay=6step")
    scored_by(samples=10_000)  # also when it is trained last
    done("train-teacher", "-r", recipe, "--out", copied, "--overwrite")


def test_what_makes_samples_and_scores_changes_a_run_and_what_speeds_them_up_does_not() -> None:
    recipe = validate_recipe(yaml.safe_load(GENERATED), "here")

    def differences(*overrides: str) -> list[str]:
        return differing_keys(recipe, with_overrides(recipe, overrides), "w2s")

    assert differences("diffusion.prediction=v") == ["diffusion.prediction: epsilon -> v"]
    assert differences("sampler.steps=20") == ["sampler.steps: 50 -> 20"]
    assert differences("fid.samples=500") == ["fid.samples: 10000 -> 500"]
    assert differences("fid.extractor=vgg16") == ["fid.extractor: inception-v3-compat -> vgg16"]
    assert differences("sampler.batch_size=8") == ["sampler.batch_size: 256 -> 8"]  # changes the last digits
    assert differences("fid.batch_size=8") == ["fid.batch_size: 64 -> 8"]
    assert differences("fid.cache=elsewhere", "fid.weights=moved.pth") == []


def test_what_a_recipe_finds_in_a_place_may_have_been_moved() -> None:
    recipe = validate_recipe(yaml.safe_load(GENERATED), "here")
    places = {"fid.extractor": "checkpoint:", "teacher.model": "diffusers:", "student.model": "diffusers:"}
    for key, kind in places.items():
        before, moved = (with_overrides(recipe, [f"{key}='{kind}{folder}'"]) for folder in ("/old/place", "/new"))
        assert differing_keys(before, moved, "w2s") == []
        [other] = differing_keys(before, recipe, "w2s")
        assert other.startswith(f"{key}: {kind}/old/place -> ")


def test_a_finished_run_whose_folder_of_diffusers_was_moved_answers_for_its_teacher(
    recipe: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that the recipe names now decides how the teacher's weights are read."""
    asked = []
    original = ClassificationTask.open_weights

    def open_weights(checkpoint: Path, model: str, key: str | None = None) -> Any:
        asked.append(model)
        return original(checkpoint, model, key)

    monkeypatch.setattr(ClassificationTask, "open_weights", staticmethod(open_weights))
    monkeypatch.setattr(ClassificationRecipe, "places", {"teacher.model": Place("models", prefix="cifar_resnet")})
    done("distill", "-r", recipe, "--out", copied, "--set", "teacher.model=cifar_resnet14")
    assert asked == ["cifar_resnet14"]


GENERATED = """
name: generated
task: diffusion
data: {source: shapes}
teacher: {model: unet_mini_nc16_rb1}
student: {model: unet_mini_nc32_rb1}
train: {steps: 10, batch_size: 8, optimizer: {name: adamw, lr: 0.001}, lr_schedule: {name: constant}}
report: {metric: fid, thresholds: [60]}
"""


def test_the_clock_counts_kept_work_only(distill: Any, out: Path, recipe: Path) -> None:
    """The clock advances one second per reading, so repeated work would show."""
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
def test_a_damaged_checkpoint_is_reported_and_the_one_before_taken(
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
            with zipfile.ZipFile(last) as archive:  # inside an entry, because torch pads the space between entries
                entry = max(archive.infolist(), key=lambda info: info.file_size)
            middle = content.index(entry.filename.encode(), entry.header_offset) + entry.file_size // 2 + 128
            last.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        case "code":
            torch.save({"format": 1, "engine": Path.cwd}, last)
    said = done(*distill).err
    assert re.search(rf"{last}: .*; resuming from the checkpoint before$", said, re.MULTILINE)
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
    assert line.startswith(f"{metrics}: rows are missing that the last checkpoint recorded")
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


def test_a_run_that_is_there_is_refused_with_never(recipe: Path, copied: Path) -> None:
    before = contents(copied)
    line = refused("distill", "--recipe", recipe, "--out", copied, "--resume", "never", code=2)
    assert line == f"{run_in(copied)}: already holds a run; resume it (--resume auto) or discard it (--overwrite)"
    assert contents(copied) == before


def test_a_run_of_another_recipe_is_refused_with_the_keys(recipe: Path, copied: Path) -> None:
    before = contents(copied)
    changes = ("--set", "train.optimizer.lr=0.5", "--set", "distill.temperature=3.0", "--set", "data.augment=[flip]")
    line = refused("distill", "--recipe", recipe, "--out", copied, *changes, code=2)
    assert line.startswith(f"{run_in(copied)}: holds a run of another recipe (")
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


def test_who_stops_is_reported_which_command_goes_on(recipe: Path, copied: Path) -> None:
    common = ("distill", "--recipe", recipe, "--out", copied)
    run = run_in(copied)
    stopped_at(14, *common, "--overwrite")
    assert status(run)["reason"].endswith("checkpoint was written, resume with the same command without --overwrite")
    stopped_at(20, *common, "--resume", run / "checkpoints" / "previous.pt")
    assert status(run)["reason"].endswith("checkpoint was written, resume with the same command without --resume")
    stopped_at(25, *common)
    assert status(run)["reason"].endswith("checkpoint was written, resume with the same command")


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


def test_a_damaged_image_discards_nothing(recipe: Path, copied: Path, tmp_path: Path) -> None:
    """Images are decoded long after they are listed."""
    for part in ("train", "test"):
        for name in shapes.CLASSES:
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(tmp_path / part / name / "0.png")
    damaged = tmp_path / "test" / shapes.CLASSES[3] / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    before = contents(copied)
    settings = ("--set", f"data={{source: image_folder, root: {tmp_path}, image_size: 16}}")
    line = refused("distill", "--recipe", recipe, "--out", copied, "--overwrite", *settings, code=1)
    assert line.startswith(f"{damaged}: ")
    assert contents(copied) == before
