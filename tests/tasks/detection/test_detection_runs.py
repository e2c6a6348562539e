"""Detection from end to end, with both families."""

import gc
import json
import math
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from known import load_recipe, validate_recipe
from processes import run_ranks, values
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny import (
    assert_same_course,
    contents,
    done,
    evaluations,
    events,
    refused,
    run_in,
    status,
    step_rows,
    stopped_at,
    weights,
)
from tiny_boxes import FAMILIES, RECIPE, recipe_of

from w2skd.method.teacher import FrozenTeacher, state_fingerprint
from w2skd.platform.ranks import Ranks, process_group
from w2skd.recipe.load import with_overrides
from w2skd.records.rows import EventRow, Row
from w2skd.records.rundir import RunDir
from w2skd.runs.arm import train_arm
from w2skd.runs.options import RunOptions, ScoreOptions
from w2skd.runs.score import score_model
from w2skd.tasks.detection import coco_scores as coco
from w2skd.tasks.detection.recipe import COCO_METRICS
from w2skd.tasks.detection.sources import list_detection_data
from w2skd.training.checkpoint import load_checkpoint
from w2skd.weights.load import load_weights, save_model

PARTS = {"retinanet": ("box", "class"), "fasterrcnn": ("box", "class", "objectness", "rpn_box")}


@pytest.fixture(scope="module", params=FAMILIES)
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished experiment of one seed with its recipe in the same folder; read only."""
    folder = tmp_path_factory.mktemp(request.param)
    recipe = recipe_of(folder, request.param)
    done("compare", "-r", recipe, "--out", folder / "runs", "--seeds", "0", "--device", "cpu", "--quiet")
    return folder / "runs"


@pytest.fixture(scope="module")
def one_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RetinaNet's teacher, and nothing else yet."""
    folder = tmp_path_factory.mktemp("one_stage")
    done("train-teacher", "-r", recipe_of(folder), "--out", folder / "runs")
    return folder / "runs"


def distill(experiment: Path, out: Path) -> tuple[object, ...]:
    """The accelerated arm once more, elsewhere, with the same teacher."""
    return (
        *("distill", "-r", experiment.parent / "boxes.yaml", "--out", out, "--device", "cpu"),
        *("--teacher", experiment / "teacher"),
    )


def family_of(experiment: Path) -> str:
    recipe = load_recipe(str(experiment.parent / "boxes.yaml"))
    return recipe.student.model.partition("_")[0]


def test_an_experiment_of_both_arms_is_compared(compared: Path) -> None:
    parts = PARTS[family_of(compared)]
    ours, theirs = (step_rows(run_in(compared, arm)) for arm in ("w2s", "baseline"))
    own = [f"task.{name}" for name in parts]
    assert [sorted(row.parts) for row in theirs] == [own] * 6
    helped = [f"distill.{name}" for name in parts]
    assert [sorted(row.parts) for row in ours] == [own] + [[*helped, *own]] * 3 + [own] * 2
    assert [row.lambda_ for row in ours] == [0, 1, 1, 1, 0, 0]
    assert (ours[0].loss, ours[0].parts) == (theirs[0].loss, theirs[0].parts), "the same weights and batch"
    assert ours[2].loss != theirs[2].loss
    for row in ours[1:4]:
        assert row.loss == pytest.approx(sum(row.parts.values()), rel=1e-5)
    for arm in ("w2s", "baseline"):
        assert status(run_in(compared, arm))["state"] == "finished"
        assert [step for step, *_ in evaluations(run_in(compared, arm))] == [3, 6]
        assert set(evaluations(run_in(compared, arm))[0][-1]) == set(COCO_METRICS)
    [off] = events(run_in(compared), "distillation_off")
    assert (off.step, off.details["reason"]) == (4, "ended")
    report = json.loads((compared / "report" / "report.json").read_text())
    assert report["metric"] == "ap50"
    assert report["higher_is_better"] is True


def test_a_stopped_run_resumes_to_the_same_end(compared: Path, tmp_path: Path) -> None:
    """In the midst of distillation, between two validations; bit for bit."""
    stopped_at(2, *distill(compared, tmp_path / "runs"))
    assert load_checkpoint(run_in(tmp_path / "runs") / "checkpoints" / "last.pt")["engine"]["step"] == 2
    said = done(*distill(compared, tmp_path / "runs"))
    assert "resumed at step 2" in said.err
    assert_same_course(run_in(tmp_path / "runs"), run_in(compared))


def test_the_teacher_is_unchanged_and_dropped_at_the_switch(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[torch.nn.Module]] = []
    fingerprints: list[str] = []
    alive: dict[str, bool] = {}
    original, call, append = FrozenTeacher.__init__, FrozenTeacher.__call__, RunDir.append

    def hold(self: FrozenTeacher, model: torch.nn.Module, **kwargs: Any) -> None:
        held.append(weakref.ref(model))
        original(self, model, **kwargs)

    def asked(self: FrozenTeacher, *inputs: Any) -> Any:
        answer = call(self, *inputs)
        fingerprints.append(state_fingerprint(self.model))
        return answer

    def look(self: RunDir, row: Row) -> None:
        if isinstance(row, EventRow):
            gc.collect()
            alive[row.name] = held[0]() is not None
        append(self, row)

    monkeypatch.setattr(FrozenTeacher, "__init__", hold)
    monkeypatch.setattr(FrozenTeacher, "__call__", asked)
    monkeypatch.setattr(RunDir, "append", look)
    before = contents(compared / "teacher")
    done(*distill(compared, tmp_path / "runs"))
    assert alive == {"teacher": True, "distillation_off": False, "finished": False}
    [teacher] = events(run_in(tmp_path / "runs"), "teacher")
    assert fingerprints == [teacher.details["fingerprint"]] * 3, "once a step while it helps"
    assert contents(compared / "teacher") == before
    known = {name: value for name, value in teacher.details["metrics"].items() if value is not None}
    measured = evaluations(compared / "teacher")[-1][-1]
    assert known == {name: value for name, value in measured.items() if not math.isnan(value)}


# Ranks


def recipe_on_ranks(family: str, teacher: Path, *overrides: str) -> Any:
    recipe = validate_recipe(yaml.safe_load(RECIPE.replace("FAMILY", family)), "test")
    return with_overrides(recipe, [f"teacher.checkpoint={teacher}", *overrides])


def train_and_score(ranks: Ranks, family: str, teacher: Path, out: Path, accumulate: int) -> dict[str, float]:
    with process_group(ranks, torch.device("cpu")):
        recipe = recipe_on_ranks(family, teacher, f"train.accumulate={accumulate}")
        path = train_arm(recipe, "w2s", RunOptions(out, device="cpu", quiet=True), ranks)
        return score_model(ScoreOptions(path, device="cpu"), ranks).evaluation.metrics


def test_two_ranks_learn_what_one_process_learns_with_twice_the_accumulation(compared: Path, tmp_path: Path) -> None:
    """Faster R-CNN's samples, too: micro-batches have their own random draws on any rank."""
    family, teacher = family_of(compared), compared / "teacher" / "model.safetensors"
    by_rank = values(run_ranks(train_and_score, family, teacher, tmp_path / "two", 1))
    train_and_score(Ranks(), family, teacher, tmp_path / "one", 2)
    two, one = (run_in(tmp_path / name) for name in ("two", "one"))
    for ours, theirs in zip(step_rows(two), step_rows(one), strict=True):
        assert (ours.step, ours.examples, ours.lambda_) == (theirs.step, theirs.examples, theirs.lambda_)
        assert ours.parts == pytest.approx(theirs.parts, rel=1e-4)
    for name, value in weights(two).items():
        torch.testing.assert_close(value, weights(one)[name], rtol=1e-3, atol=1e-4)
    assert by_rank[0] == pytest.approx(by_rank[1], nan_ok=True)
    assert evaluations(two)[-1][-1] == pytest.approx(by_rank[0], nan_ok=True)


@pytest.mark.parametrize("compared", ["retinanet"], indirect=True)
def test_retinanets_own_losses_do_not_depend_on_how_a_batch_is_cut(compared: Path, tmp_path: Path) -> None:
    """They are means over images; Faster R-CNN's are not, for its samples are drawn slice by slice."""
    common = ("distill", "--baseline", "-r", compared.parent / "boxes.yaml", "--out", tmp_path, "--device", "cpu")
    done(*common, "--set", "train.accumulate=4")
    whole, cut = (step_rows(run_in(out, "baseline")) for out in (compared, tmp_path))
    for ours, theirs in zip(cut, whole, strict=True):
        assert ours.parts == pytest.approx(theirs.parts, rel=1e-3)


# What an evaluation leaves


def test_pycocotools_reads_the_results_and_gives_the_same_scores(compared: Path, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    model = load_weights(run_in(compared))
    recipe = validate_recipe(model.recipe, "student")
    # After such a short training there are no detections, and pycocotools cannot load an empty file: make all classes
    # equally likely.
    state = {
        name: torch.zeros_like(value) if "cls_score" in name or name.endswith("cls_logits.bias") else value
        for name, value in model.state.items()
    }
    save_model(tmp_path / "model.safetensors", state, recipe, "student", model.details)
    many = ("--set", "detector.max_detections=1000")
    said = done("evaluate", "-c", tmp_path / "model.safetensors", *many, "--results", file, "--json")
    metrics = json.loads(said.out)["metrics"]
    truth = COCO()
    truth.dataset = list_detection_data(recipe.data).evaluation.ground_truth()
    truth.createIndex()
    scorer = COCOeval(truth, truth.loadRes(str(file)), "bbox")
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    expected = dict(zip(COCO_METRICS, (None if value < 0 else value for value in scorer.stats), strict=True))
    assert max(value for value in expected.values() if value is not None) > 0
    assert {name: metrics[name] for name in COCO_METRICS} == pytest.approx(expected, abs=1e-12)


def test_pictures_are_drawn_of_as_many_images_as_asked(compared: Path, tmp_path: Path) -> None:
    done("evaluate", "-c", run_in(compared), "--pictures", 2, "--pictures-to", tmp_path / "deep" / "pictures")
    assert len(list((tmp_path / "deep" / "pictures").glob("*.png"))) == 2


# What is refused


def test_teachers_that_cannot_teach_are_refused(one_stage: Path, tmp_path: Path) -> None:
    """A dry run says so too, and nothing is written."""
    teacher = load_weights(one_stage / "teacher")
    known = validate_recipe(teacher.recipe, "teacher")
    labels = teacher.details["classes"]
    other_anchors = with_overrides(known, ["detector.anchor_scale=0.5"])
    two_stages = with_overrides(known, ["teacher.model=fasterrcnn_slim", "student.model=fasterrcnn_slim"])
    file = tmp_path / "other.safetensors"
    for recipe, details, code, problem in (
        (
            known,
            {"classes": labels[::-1]},
            1,
            f"{file}: its label map differs from the data's: category 1 is",
        ),
        (known, {"classes": labels[:4]}, 1, f"{file}: it has 4 categories, the data 10"),
        (other_anchors, {}, 2, "teacher: it has anchors of 16/20/25, 32/40/50, "),
        (known, {"normalization": [0.0] * 6}, 1, f"{file}: trained with another image normalisation than "),
    ):
        save_model(file, teacher.state, recipe, "teacher", teacher.details | details)
        for extra in ((), ("--dry-run",)):
            line = refused(*distill(one_stage, tmp_path / "runs")[:-1], file, *extra, code=code)
            assert line.startswith(problem)
    names = {name.replace("head.", "rpn.head."): value for name, value in teacher.state.items()}
    save_model(file, names, two_stages, "teacher", teacher.details)
    line = refused(*distill(one_stage, tmp_path / "runs")[:-1], file, code=1)
    assert line == f"{file}: made for fasterrcnn_slim, not for retinanet_slim"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("train.compile=true", "train.compile: true would recompile for every image size: remove it"),
        ("teacher.model=fasterrcnn_slim", "teacher.model: a fasterrcnn cannot teach a retinanet: their outputs differ"),
        ("detector.frozen_norm=true", "detector.frozen_norm: true needs initial weights, but student.backbone"),
        ("teacher.checkpoint=pretrained", "retinanet_slim: has no published weights"),
    ],
)
def test_invalid_recipes_are_refused(setting: str, problem: str, tmp_path: Path) -> None:
    line = refused("distill", "-r", recipe_of(tmp_path), "--out", tmp_path / "runs", "--set", setting, code=2)
    assert problem in line
    assert os.listdir(tmp_path) == ["boxes.yaml"]


def test_a_missing_scoring_package_is_reported_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "find_spec", lambda name: None)
    line = refused(
        *("train-teacher", "-r", recipe_of(tmp_path), "--out", tmp_path / "runs", "--set", "eval.backend=faster"),
        code=2,
    )
    assert line == "eval.backend: faster needs faster-coco-eval, but it is missing: pip install 'w2skd[coco]'"
    assert os.listdir(tmp_path) == ["boxes.yaml"]


def test_indistinguishably_small_anchors_are_refused(tmp_path: Path) -> None:
    small = ("--set", "detector.anchor_scale=0.1")
    line = refused("train-teacher", "-r", recipe_of(tmp_path), "--out", tmp_path / "runs", *small, code=2)
    assert line.startswith("anchor_scale: 0.1 gives anchors of 3.2 px, ")
    assert os.listdir(tmp_path) == ["boxes.yaml"]
