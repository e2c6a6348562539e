"""A model gets the same score from every kind of file."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import contents, done, evaluations, refused, weights

from w2skd.data import shapes
from w2skd.models.small_cnn import SmallCnn
from w2skd.platform.ranks import Ranks
from w2skd.recipe.evaluation import Output
from w2skd.runs.options import ScoreOptions
from w2skd.runs.score import score_model
from w2skd.tasks.base import Evaluation
from w2skd.tasks.classification.recipe import ClassificationRecipe
from w2skd.tasks.classification.task import ClassificationTask
from w2skd.tasks.diffusion.sample_pictures import write_samples
from w2skd.training.checkpoint import load_checkpoint
from w2skd.weights.load import Weights, load_weights


@pytest.fixture
def run(experiment: Path) -> Path:
    return experiment / "w2s" / "seed0"


def score(*arguments: object) -> dict[str, Any]:
    return json.loads(done("evaluate", "--json", "--checkpoint", *arguments).out)


def test_all_forms_of_a_model_score_alike(run: Path, recipe: Path, tmp_path: Path) -> None:
    torch.save(weights(run), tmp_path / "bare.pt")
    save_file(weights(run), tmp_path / "bare.safetensors")
    last = run / "checkpoints" / "last.pt"
    found = [
        *(score(path) for path in (run, run / "model.safetensors", last)),
        *(score(path, "--recipe", recipe) for path in (run, last, tmp_path / "bare.pt", tmp_path / "bare.safetensors")),
    ]
    expected = evaluations(run)[-1][-1]
    for each in found:
        assert each["metrics"] == pytest.approx(expected, rel=1e-6)
        assert each["metrics"] == found[0]["metrics"]
        assert each["tables"] == found[0]["tables"]
        assert each["model"] == "small_cnn_weak"
    assert [Path(each["checkpoint"]).name for each in found[:3]] == [
        "model.safetensors",
        "model.safetensors",
        "last.pt",
    ]


def test_the_best_checkpoint_scores_what_it_was_kept_for(run: Path) -> None:
    best = run / "checkpoints" / "best.pt"
    engine = load_checkpoint(best)["engine"]
    assert score(best)["metrics"]["loss"] == pytest.approx(engine["best"], rel=1e-6)
    assert engine["best"] == min(metrics["loss"] for *_, metrics in evaluations(run))


def test_a_teacher_is_scored_as_a_teacher(experiment: Path, recipe: Path, tmp_path: Path) -> None:
    teacher = experiment / "teacher"
    torch.save(weights(teacher), tmp_path / "bare.pt")
    expected = pytest.approx(evaluations(teacher)[-1][-1], rel=1e-6)
    assert score(teacher)["metrics"] == expected
    assert score(tmp_path / "bare.pt", "--recipe", recipe, "--role", "teacher")["metrics"] == expected
    line = refused("evaluate", "-c", tmp_path / "bare.pt", "--recipe", recipe, code=1)
    assert line.startswith(f"{tmp_path}/bare.pt: not the weights of small_cnn_weak: ")
    line = refused("evaluate", "-c", teacher, "--role", "student", code=1)
    assert line == f"{teacher}/model.safetensors: made for cifar_resnet8, not for small_cnn_weak"


def test_the_recipe_can_be_changed(run: Path) -> None:
    fewer = score(run, "--set", "data.eval_examples=10")
    assert sum(row["examples"] for row in fewer["tables"]["classes"]) == 10


def test_scoring_changes_nothing(experiment: Path, run: Path) -> None:
    before = contents(experiment)
    done("evaluate", "-c", run)
    assert contents(experiment) == before


def test_what_people_see_has_every_metric_and_every_class(run: Path) -> None:
    said = done("evaluate", "-c", run).out
    for word in ("small_cnn_weak", "top1", "top5", "loss", "classes"):
        assert word in said
    assert said.count("\n") > 10


def test_written_files_are_listed(run: Path, tmp_path: Path) -> None:
    said = done("evaluate", "-c", run, "--predictions", tmp_path / "p.csv", "--confusion", tmp_path / "c.png").out
    assert said.splitlines()[-2:] == [f"saved {tmp_path}/p.csv", f"saved {tmp_path}/c.png"]


def test_samples_are_for_tasks_that_have_some(run: Path, tmp_path: Path) -> None:
    line = refused("evaluate", "-c", run, "--samples", tmp_path / "new", code=2)
    assert line == "--samples: not an output of classification, which offers --predictions, --confusion"
    assert contents(tmp_path) == {}


def test_a_folder_in_which_samples_would_mix_with_other_files_is_refused_before_anything_else(tmp_path: Path) -> None:
    (tmp_path / "mine.png").touch()
    (tmp_path / "model.pt").write_text("no model")
    line = refused("evaluate", "-c", tmp_path / "model.pt", "--samples", tmp_path, code=2)
    assert line == f"--samples {tmp_path}: the folder is not empty; give a new or an empty one"
    line = refused("evaluate", "-c", tmp_path / "model.pt", "--samples", tmp_path / "mine.png" / "new", code=1)
    assert line == f"cannot write {tmp_path}/mine.png/new: Not a directory"


def test_samples_go_where_they_are_wanted(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ClassificationTask.evaluate
    images = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8)

    def evaluate(self: ClassificationTask, model: Any, *, with_predictions: bool = False) -> Evaluation:
        assert with_predictions
        files = {"samples": partial(write_samples, images)}
        return replace(original(self, model, with_predictions=True), files=files)

    monkeypatch.setattr(ClassificationTask, "evaluate", evaluate)
    monkeypatch.setattr(ClassificationRecipe, "outputs", {"samples": Output("Write samples.")})
    said = done("evaluate", "-c", run, "--samples", tmp_path / "new" / "samples").out
    assert said.splitlines()[-1] == f"saved {tmp_path}/new/samples"
    assert list(contents(tmp_path)) == [f"new/samples/00000{number}.png" for number in range(3)]


def test_a_bare_state_dict_needs_a_recipe(run: Path, tmp_path: Path) -> None:
    torch.save(weights(run), tmp_path / "bare.pt")
    line = refused("evaluate", "-c", tmp_path / "bare.pt", code=1)
    assert line == f"{tmp_path}/bare.pt: contains no recipe; name one with --recipe"


def test_published_weights_need_a_recipe_and_a_known_model(recipe: Path) -> None:
    line = refused("evaluate", "--model", "torchvision:resnet18", code=2)
    assert line == "--recipe is missing: it names the data on which torchvision:resnet18 is scored"
    line = refused("evaluate", "--model", "resnet18", "--recipe", recipe, code=2)
    assert line.startswith("--model: teacher.model: unknown model 'resnet18' (did you mean 'torchvision:resnet18'")


@pytest.mark.parametrize(("name", "problem"), [("missing.pt", "no such checkpoint"), ("", "not a run directory")])
def test_missing_things_are_reported(name: str, problem: str, tmp_path: Path) -> None:
    assert f"{tmp_path / name}: {problem}" in refused("evaluate", "-c", tmp_path / name, code=1)


def test_a_folder_of_an_experiment_lists_its_runs(experiment: Path) -> None:
    line = refused("evaluate", "-c", experiment, code=1)
    assert line.startswith(f"{experiment}: not a run directory, model.safetensors is missing; finished runs in it: ")
    assert f"{experiment}/w2s/seed0" in line


def test_a_run_that_is_not_finished_is_reported(experiment: Path, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"state": "running"}')
    assert "run not finished" in refused("evaluate", "-c", tmp_path, code=1)


def test_from_python(run: Path) -> None:
    scored = score_model(ScoreOptions(run, device="cpu"), Ranks())
    assert (scored.model, scored.recipe.metric.name) == ("small_cnn_weak", "loss")
    assert scored.evaluation.metrics == pytest.approx(evaluations(run)[-1][-1], rel=1e-6)


def published(run: Path, **preprocessing: Any) -> Weights:
    """A run's weights as a library would publish them, for images of 24 px cropped to 20 px."""
    details = {
        "classes": list(shapes.CLASSES),
        "normalization": [0.5] * 6,
        "preprocessing": {"resize_px": 24, "crop_px": 20, "interpolation": "bilinear", **preprocessing},
    }
    return Weights(run / "model.safetensors", load_weights(run).state, details=details)


def test_published_weights_see_images_as_their_library_prepares_them(
    run: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the recipe sets another image size for its teacher."""
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(ClassificationTask, "open_weights", lambda *_: published(run))
    forward = SmallCnn.forward
    monkeypatch.setattr(SmallCnn, "forward", lambda self, x: (seen.append(x.shape[1:]), forward(self, x))[1])
    settings = ("--set", "data.workers=0", "--set", "teacher.image_size=8", "--model", "small_cnn_weak")
    assert score("pretrained", "--recipe", recipe, *settings)["account"] == [
        "preprocessing of its library: resize of the shorter side to 24 px (bilinear), center crop of 20 px; in fp32"
    ]
    assert seen[-1] == (3, 20, 20)


def test_a_difference_from_the_librarys_preprocessing_is_reported(
    run: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClassificationTask, "open_weights", lambda *_: published(run, crop_mode="squash"))
    found = score("pretrained", "--recipe", recipe, "--set", "data.workers=0", "--model", "small_cnn_weak")
    assert found["account"][1:] == [
        "its library squashes whole images to a square; a center crop is used here, so scores differ"
    ]
