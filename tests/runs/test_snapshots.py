"""Pictures and remarks of validations."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import contents, crashed_at, done, evaluations, run_in, status
from torch import nn

from w2skd.platform.files import write_atomically
from w2skd.runs import arm as arm_module
from w2skd.tasks.base import Evaluation
from w2skd.tasks.classification.task import ClassificationTask

VALIDATED = range(3, 31, 3)


@pytest.fixture(autouse=True)
def _drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task draws its loss as text, and makes one remark at every validation and one at the end."""
    original = ClassificationTask.evaluate

    def evaluate(self: ClassificationTask, model: nn.Module, **arguments: Any) -> Evaluation:
        evaluation = original(self, model, **arguments)
        loss = evaluation.metrics["loss"]
        notes = ("of 40 images", "the loss is low") if loss < 2.6 else ("of 40 images",)

        def draw(path: Path) -> None:
            write_atomically(path, f"{loss:.17g}".encode())

        return replace(evaluation, notes=notes, snapshot=draw)

    monkeypatch.setattr(ClassificationTask, "evaluate", evaluate)


def pictures(run: Path) -> dict[str, bytes]:
    return contents(run / "pictures")


def test_every_validation_and_the_teacher_leave_a_picture(distill: Any, out: Path) -> None:
    done(*distill)
    run = run_in(out)
    assert list(pictures(run)) == [*(f"step_{step:08d}.png" for step in VALIDATED), "teacher.png"]
    assert len(set(pictures(run).values())) == len(VALIDATED) + 1
    assert status(run)["state"] == "finished"


def test_a_run_without_a_teacher_has_none_of_it(recipe: Path, out: Path) -> None:
    done("distill", "--baseline", "--recipe", recipe, "--out", out)
    assert list(pictures(run_in(out, "baseline"))) == [f"step_{step:08d}.png" for step in VALIDATED]


def test_after_a_resume_the_pictures_are_those_of_an_undisturbed_run(distill: Any, out: Path, tmp_path: Path) -> None:
    crashed_at(14, *distill)
    before = pictures(run_in(out))
    assert set(before) == {*(f"step_{step:08d}.png" for step in (3, 6, 9, 12)), "teacher.png"}
    (run_in(out) / "pictures" / ".step_00000015.png.xyz.part").write_text("what a killed process was drawing")
    done(*distill)
    resumed = pictures(run_in(out))
    done(*distill, "--overwrite")
    assert resumed == pictures(run_in(out))
    assert before.items() <= resumed.items()


def test_overwrite_discards_pictures_too(distill: Any, out: Path) -> None:
    done(*distill)
    done(*distill, "--overwrite", "--set", "train.steps=6", "--set", "distill.decay=6step")
    assert list(pictures(run_in(out))) == ["step_00000003.png", "step_00000006.png", "teacher.png"]


def test_a_picture_that_cannot_be_written_is_reported_and_not_worth_the_run(distill: Any, out: Path) -> None:
    crashed_at(4, *distill)
    for path in (run_in(out) / "pictures").iterdir():
        path.unlink()
    (run_in(out) / "pictures").rmdir()
    (run_in(out) / "pictures").write_text("in the way")
    said = done(*distill)
    assert f"no picture: cannot write {run_in(out)}/pictures: File exists" in said.err
    assert status(run_in(out))["state"] == "finished"


def test_what_is_no_matter_of_writing_ends_the_run(distill: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in a task's drawing code is a bug and must not be hidden."""
    original = ClassificationTask.evaluate

    def draw(path: Path) -> None:
        raise ZeroDivisionError(path)

    monkeypatch.setattr(ClassificationTask, "evaluate", lambda *a, **k: replace(original(*a, **k), snapshot=draw))
    with pytest.raises(ZeroDivisionError):
        done(*distill)


def test_drawing_counts_as_validation(distill: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[str | None] = []
    original = arm_module._Training._draw

    def draw(training: Any, draw_it: Any, path: Path) -> None:
        original(training, lambda _: held.append(training.clock.current), path)

    monkeypatch.setattr(arm_module._Training, "_draw", draw)
    done(*distill)
    assert held == ["evaluate"] * (len(VALIDATED) + 1)


def test_a_remark_is_reported_when_it_is_new(distill: Any, out: Path) -> None:
    said = done(*distill).err.splitlines()
    assert said.count("of 40 images") == 1
    assert said.count("teacher: of 40 images") == 1
    assert said.count("the loss is low") == 1, [row[-1] for row in evaluations(run_in(out))]
    assert said.index("of 40 images") < said.index("the loss is low")
