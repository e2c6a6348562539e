"""The start of a run: initial weights, batches, and a teacher that fits."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from known import load_recipe, validate_recipe
from tiny import (
    assert_same_course,
    assert_same_weights,
    contents,
    done,
    evaluations,
    events,
    refused,
    rows,
    run_in,
    status,
    step_rows,
    stopped_at,
    weights,
)

from w2skd.data import shapes
from w2skd.errors import UsageError
from w2skd.method.teacher import FrozenTeacher, state_fingerprint
from w2skd.models.catalog import build_classifier
from w2skd.platform.ranks import Ranks
from w2skd.records.rows import EventRow, Row
from w2skd.records.rundir import RunDir
from w2skd.runs.options import RunOptions
from w2skd.runs.setup import set_up
from w2skd.tasks.classification.task import ClassificationTask
from w2skd.training.checkpoint import load_checkpoint
from w2skd.weights.load import load_weights, save_model


def test_both_arms_of_a_seed_begin_alike(recipe: Path, out: Path) -> None:
    """The first step is not distilled: same weights, same batch, same loss."""
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


@pytest.mark.parametrize("key", ["train.compile", "teacher.compile"])
def test_cuda_graphs_are_refused_with_several_ranks(key: str, recipe: Path, out: Path, experiment: Path) -> None:
    loaded = load_recipe(str(recipe), [f"{key}=reduce-overhead"])
    with pytest.raises(UsageError, match=rf"^{key}: reduce-overhead is for a single GPU, not for 2 ranks; set it to"):
        set_up(loaded, "w2s", RunOptions(experiment), Ranks(rank=0, world=2, local_rank=0))


def test_tf32_is_allowed_for_the_run_only(recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def allowed() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before, seen, losses = allowed(), [], ClassificationTask.losses

    def watch(*arguments: Any) -> Any:
        seen.append(allowed())
        return losses(*arguments)

    monkeypatch.setattr(ClassificationTask, "losses", watch)
    for precision, expected in (("tf32", True), ("fp32", False)):
        done(
            "distill",
            "--recipe",
            recipe,
            "--out",
            out / precision,
            "--baseline",
            "--set",
            f"train.precision={precision}",
        )
        assert set(seen[1:]) == {(expected, expected)}  # the first is the count of FLOPs
        seen.clear()
    assert allowed() == before


def test_the_teacher_can_have_its_own_precision(
    recipe: Path, out: Path, experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    init = FrozenTeacher.__init__
    monkeypatch.setattr(
        FrozenTeacher,
        "__init__",
        lambda self, model, **given: seen.append(given["precision"]) or init(self, model, **given),
    )
    done(
        "distill", "--recipe", recipe, "--out", out, "--set", "teacher.precision=bf16", "--set", "train.precision=tf32"
    )
    assert seen == ["bf16"]


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
    assert seen == [True] * 7, "six steps, and once to count FLOPs"
    assert not torch.are_deterministic_algorithms_enabled()
    assert json.loads((tmp_path / "teacher" / "environment.json").read_text())["deterministic"] is True


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
    problem = "the teacher has 7 unnamed classes, the data has 10: cannot match them; "
    assert line.startswith(f"{out}/seven.pt: {problem}")


def test_a_teacher_of_other_classes_is_refused(distill: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "classes", ("zebra", *shapes.CLASSES[1:]))
        line = refused(*distill, code=1)
    assert line.startswith(
        f"{out}/teacher/model.safetensors: the teacher lacks 1 of the data's 10 classes: 'zebra'; rename them to "
    )


def test_a_teacher_with_the_same_classes_in_another_order_teaches_the_same(
    distill: Any, out: Path, experiment: Path
) -> None:
    """The classes of its head are reversed, as its file states; its predictions stay the same."""
    teacher = load_weights(out / "teacher")
    assert teacher.recipe is not None
    turned = dict(teacher.state) | {name: teacher.state[name].flip(0) for name in ("head.weight", "head.bias")}
    details = teacher.details | {"classes": teacher.details["classes"][::-1]}
    save_model(
        out / "teacher" / "model.safetensors", turned, validate_recipe(teacher.recipe, "here"), "teacher", details
    )
    said = done(*distill)
    assert "the same 10 classes in a different order" in said.err
    ours, theirs = events(run_in(out), "teacher")[0], events(run_in(experiment), "teacher")[0]
    assert ours.details["metrics"] == pytest.approx(theirs.details["metrics"])
    for mine, other in zip(evaluations(run_in(out)), evaluations(run_in(experiment)), strict=True):
        assert mine[-1] == pytest.approx(other[-1], rel=1e-3)


def test_a_teacher_with_another_normalization_is_given_its_own(distill: Any, out: Path, experiment: Path) -> None:
    """The file states another normalisation, so the same images give other logits."""
    teacher = load_weights(out / "teacher")
    assert teacher.recipe is not None
    details = teacher.details | {"normalization": [0.8, 0.8, 0.8, 0.4, 0.4, 0.4]}
    save_model(
        out / "teacher" / "model.safetensors",
        teacher.state,
        validate_recipe(teacher.recipe, "here"),
        "teacher",
        details,
    )
    setup = set_up(load_recipe(str(experiment.parent / "tiny.yaml")), "w2s", RunOptions(out), Ranks())
    assert setup.teacher is not None
    images = setup.task.example_batch().images
    plain = build_classifier("cifar_resnet8", 10).eval()
    plain.load_state_dict(dict(teacher.state))
    seen_its_way = (images * 0.2 + 0.4 - 0.8) / 0.4
    torch.testing.assert_close(setup.teacher.model.eval()(images), plain(seen_its_way))


def test_a_resume_with_another_teacher_is_refused(distill: Any, out: Path, experiment: Path) -> None:
    stopped_at(14, *distill)
    state = {name: tensor + 0.5 for name, tensor in weights(out / "teacher").items() if tensor.is_floating_point()}
    torch.save({**weights(out / "teacher"), **state}, out / "other.pt")
    line = refused(*distill, "--teacher", out / "other.pt", code=1)
    assert line.startswith(f"{out}/other.pt: not the teacher that this run started with (")
    done(*distill)
    assert_same_course(run_in(out), run_in(experiment))


def test_after_the_switch_the_teacher_no_longer_matters(distill: Any, out: Path, experiment: Path) -> None:
    stopped_at(26, *distill)
    state = {name: torch.zeros_like(tensor) for name, tensor in weights(out / "teacher").items()}
    torch.save(state, out / "other.pt")
    done(*distill, "--teacher", out / "other.pt")
    assert_same_course(run_in(out), run_in(experiment))


def test_images_too_small_for_a_model_are_reported(recipe: Path, out: Path) -> None:
    settings = ("--set", "data.image_size=8", "--set", "student.model=small_cnn_strong")
    line = refused("distill", "--baseline", "--recipe", recipe, "--out", out, *settings, code=2)
    assert line.startswith("small_cnn_strong cannot process images of 8 px: ")
    assert not run_in(out, "baseline").exists()


def test_a_distillation_longer_than_the_run_is_reported(recipe: Path, out: Path) -> None:
    said = done("distill", "--recipe", recipe, "--out", out, "--set", "distill.hold=40step")
    assert "warm-up, hold and decay take 60 steps, but the run has 30" in said.err
    said = done("distill", "--recipe", recipe, "--out", out, "--seed", 1)
    assert "distillation lasts" not in said.err
