"""Arms that start from their teacher's weights."""

import json
from pathlib import Path

import pytest
import torch
from tiny import (
    RECIPE,
    assert_same_course,
    done,
    evaluations,
    events,
    recipe_file,
    refused,
    rows,
    status,
    stopped_at,
    w2skd,
    weights,
)

from w2skd.platform.ranks import Ranks
from w2skd.recipe.load import load_recipe
from w2skd.records.rows import StepRow
from w2skd.runs.growing import STATISTICS_BATCHES, fill_new_statistics
from w2skd.runs.options import RunOptions
from w2skd.runs.setup import set_up
from w2skd.tasks.catalog import recipe_types

GROWN = (
    RECIPE.replace("student: {model: small_cnn_weak}", "student: {model: cifar_resnet14}").replace(
        "train: {steps: 6,", "train: {steps: 20,"
    )
    + """
arms:
  baseline: {help: none}
  grown: {help: grow}
  both: {help: [grow, distill]}
"""
)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grown")
    out = folder / "runs"
    done("compare", "--recipe", recipe_file(folder, GROWN), "--seeds", "0", "--out", out, "--quiet")
    return out


def test_a_grown_arm_starts_where_its_teacher_ended(grown: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(recipe_file(tmp_path, GROWN)), [], recipe_types()).for_arm("grown")
    setup = set_up(recipe, "grown", RunOptions(grown), Ranks())
    assert setup.teacher is not None
    assert setup.growth is not None
    assert len(setup.growth.new_norms) == 6
    images = setup.task.example_batch().model_inputs[0]
    setup.model.eval()
    setup.teacher.model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(setup.model(images), setup.teacher.model(images))
    before = {name: value.clone() for name, value in setup.model.state_dict().items()}
    fill_new_statistics(setup)
    with torch.inference_mode():
        torch.testing.assert_close(setup.model(images), setup.teacher.model(images))
    changed = {name for name, value in setup.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.rpartition(".")[0] for name in changed} == set(setup.growth.new_norms)
    assert setup.model.state_dict()[f"{setup.growth.new_norms[0]}.num_batches_tracked"] == STATISTICS_BATCHES


def test_its_records_tell_how_it_began(grown: Path) -> None:
    run = grown / "grown" / "seed0"
    facts = json.loads((run / "environment.json").read_text())
    assert facts["growth"]["kind"] == "grown"
    assert facts["growth"]["added"] > 0
    assert "teacher" not in facts["forward_flops"], "the teacher does not take part in training"
    assert "distilled_step_floor" not in facts
    (teacher,) = events(run, "teacher")
    (made,) = events(grown / "teacher", "finished")
    assert teacher.details["fingerprint"] == made.details["fingerprint"]
    assert not events(run, "distillation_off")
    assert not any("distill.kl" in row.parts for row in rows(run) if isinstance(row, StepRow))
    both = grown / "both" / "seed0"
    assert "distilled_step_floor" in json.loads((both / "environment.json").read_text())
    assert events(both, "distillation_off")


def test_the_report_has_all_arms_and_charges_the_teacher(grown: Path) -> None:
    report = json.loads((grown / "report" / "report.json").read_text())
    assert (report["reference"], list(report["arms"])) == ("baseline", ["baseline", "grown", "both"])
    for threshold in report["thresholds"]:
        assert list(threshold["first"]) == ["baseline", "grown", "both"]
        assert list(threshold["arms"]) == ["grown", "both"]
    assert report["teacher"]["in_experiment"]
    places = [threshold["first"]["grown"]["0"] for threshold in report["thresholds"]]
    place = next(place for place in places if place is not None)
    assert place["flops"] == 3 * report["runs"][2]["environment"]["forward_flops"]["student"] * place["examples"]


@pytest.mark.parametrize("arm", ["grown", "both"])
def test_a_resumed_run_ends_as_an_undisturbed_one(arm: str, grown: Path, tmp_path: Path) -> None:
    command = ("distill", "--recipe", recipe_file(tmp_path, GROWN), "--arm", arm, "--out", tmp_path / "runs", "--quiet")
    command = (*command, "--teacher", grown / "teacher")
    stopped_at(7, *command)
    done(*command)
    assert_same_course(tmp_path / "runs" / arm / "seed0", grown / arm / "seed0")
    again = done(*command)
    assert "already finished" not in again.out
    assert status(tmp_path / "runs" / arm / "seed0")["state"] == "finished"


def test_the_average_starts_with_the_grown_weights(grown: Path, tmp_path: Path) -> None:
    """After a few steps, a slow average is close to the teacher's score, not to an untrained student's."""
    command = ("distill", "--recipe", recipe_file(tmp_path, GROWN), "--arm", "grown", "--teacher", grown / "teacher")
    slow = ("--set", "train.ema={decay: 0.9999}", "--set", "train.steps=3", "--set", "train.optimizer.lr=0.5")
    done(*command, *slow, "--out", tmp_path / "runs", "--quiet")
    (teacher,) = events(tmp_path / "runs" / "grown" / "seed0", "teacher")
    ((_, _, _, metrics),) = evaluations(tmp_path / "runs" / "grown" / "seed0")
    assert metrics["loss"] == pytest.approx(teacher.details["metrics"]["loss"], abs=0.01)
    done(*command, *slow, "--set", "train.ema=null", "--out", tmp_path / "raw", "--quiet")
    ((_, _, _, raw),) = evaluations(tmp_path / "raw" / "grown" / "seed0")
    assert abs(raw["loss"] - teacher.details["metrics"]["loss"]) > 0.05


def test_what_cannot_be_grown_is_refused(grown: Path, tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, GROWN)
    common = ("distill", "--recipe", recipe, "--arm", "grown", "--out", tmp_path / "runs")
    with_teacher = (*common, "--teacher", grown / "teacher")
    assert "cannot grow into" in refused(*with_teacher, "--set", "student.model=small_cnn_weak", code=2)
    assert "starts from its teacher's weights" in refused(*with_teacher, "--init-from", grown / "teacher", code=2)
    assert "no teacher: give --teacher CHECKPOINT" in refused(*common, code=2)
    normalised = "data.normalization={mean: [0.1, 0.2, 0.3], std: [0.5, 0.5, 0.5]}"
    line = refused(*with_teacher, "--set", normalised, code=2)
    assert "trained with another normalisation; set data.normalization to the teacher's" in line
    assert not (tmp_path / "runs").exists()


def test_the_same_architecture_is_a_warm_start(grown: Path, tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, GROWN)
    again = ("--set", "student.model=cifar_resnet8", "--set", "train.steps=3")
    done(
        "distill", "--recipe", recipe, "--arm", "grown", "--teacher", grown / "teacher", *again, "--out", tmp_path / "r"
    )
    facts = json.loads((tmp_path / "r" / "grown" / "seed0" / "environment.json").read_text())
    assert facts["growth"]["kind"] == "warm start"
    assert facts["growth"]["added"] == facts["growth"]["widened"] == 0


def test_several_teachers_are_assigned_in_turn(tmp_path: Path) -> None:
    recipe, out = recipe_file(tmp_path, GROWN), tmp_path / "runs"
    command = ("compare", "--recipe", recipe, "--seeds", "5,6,7", "--teacher-seeds", "1,2", "--arms", "baseline, grown")
    said = w2skd(*command, "--set", "train.steps=3", "--set", "teacher.train.steps=3", "--out", out, "--quiet")
    assert said.code == 0, said.err
    made = {}
    for seed in (1, 2):
        (event,) = events(out / "teacher" / f"seed{seed}", "finished")
        made[seed] = event.details["fingerprint"]
    assert made[1] != made[2]
    used = [events(out / "grown" / f"seed{seed}", "teacher")[0].details["fingerprint"] for seed in (5, 6, 7)]
    assert used == [made[1], made[2], made[1]]
    report = json.loads((out / "report" / "report.json").read_text())
    assert report["teacher"]["count"] == 2
    assert "2 teachers, median" in said.out
    lone = refused("distill", "--recipe", recipe, "--arm", "grown", "--seed", "9", "--out", out, code=2)
    assert lone == f"{out}: has several teachers; choose one of [1, 2] with --teacher-seed"
    other = refused(*command, "--set", "teacher.checkpoint=x.pt", "--out", out, code=2)
    assert "--teacher-seeds: the recipe has a teacher checkpoint (x.pt); use one of the two" in other
    unknown = refused("compare", "--recipe", recipe, "--arms", "grow", "--out", out, code=2)
    assert "unknown arm grow (did you mean 'grown'?); known: baseline, grown, both" in unknown
    assert weights(out / "grown" / "seed5").keys() == weights(out / "baseline" / "seed5").keys()
