"""A run that is killed at any moment and restarted with the same command ends like an uninterrupted run."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from known import build_report
from mortal import Blow, Nursery
from tiny import assert_same_course, done, evaluations, events, finished_experiment, status, step_rows

from w2skd.records.rundir import find_runs

TAKE_STEP = "w2skd.training.engine:Engine._take_step"
"""The n-th call comes after n - 1 steps."""

REPLACE = "os:replace"

MOMENTS = {
    "before the recipe is there": (Blow(REPLACE, 1, "recipe.yaml"), None),
    "while the run is described": (Blow(REPLACE, 1, "environment.json"), None),
    "while the teacher is measured": (Blow("w2skd.runs.arm:evaluate", 1), None),
    "before the first checkpoint": (Blow(TAKE_STEP, 3), (0, 2)),
    "at the start of an epoch, in the hold": (Blow(TAKE_STEP, 9), (6, 2)),
    "in the middle of an epoch, in the decay": (Blow(TAKE_STEP, 15), (12, 2)),
    "with seven better validations of eight": (Blow(TAKE_STEP, 24), (21, 1)),
    "after the switch": (Blow(TAKE_STEP, 30), (27, 1)),
    "while a checkpoint is written": (Blow("torch:save", 4, after=True), (6, 3)),
    "before a checkpoint gets its name": (Blow(REPLACE, 7, "next.pt"), (6, 3)),
    "while checkpoints change places": (Blow(REPLACE, 4, "previous.pt", after=True), (9, 1)),
    "before the best is marked": (Blow(REPLACE, 2, "/best.pt"), (6, 0)),
    "while a validation is written down": (Blow("w2skd.records.rundir:encode", 8), (5, 1)),
    "before the model is there": (Blow(REPLACE, 1, "model.safetensors"), (30, 0)),
    "after the model is there": (Blow(REPLACE, 1, "model.safetensors", after=True), (30, 0)),
}
"""Moment -> the signal, the step at which the run resumes, and the lost steps if a row records them."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_experiment(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as opened:
        yield opened


def command(undisturbed: Path, out: Path) -> tuple[object, ...]:
    recipe, teacher = undisturbed.parent / "tiny.yaml", undisturbed / "teacher"
    return ("distill", "--recipe", recipe, "--teacher", teacher, "--out", out)


def test_the_undisturbed_run_has_what_the_others_are_cut_at(undisturbed: Path) -> None:
    run = undisturbed / "w2s" / "seed0"
    (off,) = events(run, "distillation_off")
    assert off.step == 24
    assert off.details["reason"] == "surpassed"
    assert [step for step, *_ in evaluations(run)] == list(range(3, 31, 3))
    assert {row.lambda_ for row in step_rows(run)} > {0.0, 1.0}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_as_an_undisturbed_one(
    moment: str, undisturbed: Path, nursery: Nursery, tmp_path: Path
) -> None:
    blow, resumed = MOMENTS[moment]
    out, said = tmp_path / "runs", tmp_path / "said.txt"
    run = out / "w2s" / "seed0"
    assert nursery.run(blow, said, *command(undisturbed, out)) == -signal.SIGKILL, said.read_text()
    assert not (run / "status.json").exists() or status(run)["state"] == "running"
    done(*command(undisturbed, out))
    assert_same_course(run, undisturbed / "w2s" / "seed0")
    if resumed is not None:
        assert [(row.step, row.details["lost_steps"]) for row in events(run, "resumed")] == [resumed]
    kept = [row.step for row in step_rows(run)]
    assert kept == sorted(set(kept))
    assert not [path for path in run.rglob(".*") if path.name != ".lock"], "what was half written is left"


def test_killed_again_and_again_it_still_ends_the_same(undisturbed: Path, nursery: Nursery, tmp_path: Path) -> None:
    out, said = tmp_path / "runs", tmp_path / "said.txt"
    for _ in range(4):  # six steps each time: at least one new checkpoint
        assert nursery.run(Blow(TAKE_STEP, 7), said, *command(undisturbed, out)) == -signal.SIGKILL
    done(*command(undisturbed, out))
    assert_same_course(out / "w2s" / "seed0", undisturbed / "w2s" / "seed0")


def test_a_killed_run_crosses_every_threshold_where_the_undisturbed_one_does(
    undisturbed: Path, nursery: Nursery, tmp_path: Path
) -> None:
    out, said = tmp_path / "runs", tmp_path / "said.txt"
    for extra in ((), ("--baseline",)):
        arguments = ("distill", "--recipe", undisturbed.parent / "tiny.yaml", "--out", out, *extra)
        if not extra:
            nursery.run(Blow(TAKE_STEP, 4), said, "train-teacher", *arguments[1:])
            done("train-teacher", *arguments[1:])
        assert nursery.run(Blow(TAKE_STEP, 23), said, *arguments) == -signal.SIGKILL
        done(*arguments)
    assert find_runs(out) == find_runs(undisturbed)

    def crossings(experiment: Path) -> list[tuple[object, ...]]:
        return [
            (threshold.name, threshold.value, arm, seed, at and (at.step, at.epoch, at.examples))
            for threshold in build_report(experiment).thresholds
            for arm, seeds in threshold.first.items()
            for seed, at in seeds.items()
        ]

    assert crossings(out) == crossings(undisturbed)
    assert any(crossing[-1] for crossing in crossings(out))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_polite_stop_leaves_a_checkpoint_of_its_step(
    number: signal.Signals, code: int, undisturbed: Path, nursery: Nursery, tmp_path: Path
) -> None:
    out, said = tmp_path / "runs", tmp_path / "said.txt"
    run = out / "w2s" / "seed0"
    assert nursery.run(Blow(TAKE_STEP, 14, number=number), said, *command(undisturbed, out)) == code
    what = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
    reason = f"{what} at step 14 of 30; a checkpoint was written, resume with the same command"
    assert said.read_text().splitlines()[-1] == f"w2skd: {reason}"
    left = status(run)
    assert (left["state"], left["step"], left["reason"]) == ("stopped", 14, reason)
    done(*command(undisturbed, out))
    assert_same_course(run, undisturbed / "w2s" / "seed0")
    assert [(row.step, row.details["lost_steps"]) for row in events(run, "resumed")] == [(14, 0)]


def test_a_stop_that_comes_before_the_first_step_is_heard_after_it(
    undisturbed: Path, nursery: Nursery, tmp_path: Path
) -> None:
    out, said = tmp_path / "runs", tmp_path / "said.txt"
    blow = Blow("w2skd.runs.arm:set_up", 1, number=signal.SIGTERM)
    assert nursery.run(blow, said, *command(undisturbed, out)) == 75
    assert status(out / "w2s" / "seed0")["step"] == 1


def test_a_stop_in_the_last_step_finds_a_finished_run(undisturbed: Path, nursery: Nursery, tmp_path: Path) -> None:
    out, said = tmp_path / "runs", tmp_path / "said.txt"
    assert nursery.run(Blow(TAKE_STEP, 30, number=signal.SIGTERM), said, *command(undisturbed, out)) == 0
    assert_same_course(out / "w2s" / "seed0", undisturbed / "w2s" / "seed0")
