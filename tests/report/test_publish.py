"""Records without weights, from which the report can be rebuilt."""

import json
from pathlib import Path
from typing import Any

import pytest
from known import publish, write_report
from synthetic_runs import FID_FAST, FID_SLOW, GENERATED, MakeRun, two_arms

from w2skd.errors import OutputError, RunDirError
from w2skd.records.rows import EventRow
from w2skd.report.publish import RECORDS
from w2skd.report.render import as_json


@pytest.fixture
def trained(make_run: MakeRun, experiment: Path) -> Path:
    two_arms(make_run)
    for run in ("baseline", "w2s"):
        (experiment / run / "seed0" / "model.safetensors").write_bytes(b"weights")
        (experiment / run / "seed0" / "checkpoints").mkdir()
    return experiment


def test_records_and_report_are_copied_and_weights_are_not(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "docs" / "tiny"
    report = publish(trained, target)
    for run in ("baseline/seed0", "w2s/seed0"):
        assert sorted(path.name for path in (target / run).iterdir()) == sorted(RECORDS)
    assert as_json(report) == as_json(write_report(trained))
    assert (target / "report" / "report.md").read_bytes() == (trained / "report" / "report.md").read_bytes()


def test_the_last_pictures_come_along_and_the_report_shows_the_arms_beside_each_other(
    trained: Path, tmp_path: Path
) -> None:
    for run in ("baseline", "w2s"):
        pictures = trained / run / "seed0" / "pictures"
        pictures.mkdir()
        for name in ("step_00000090.png", "step_00000100.png", "teacher.png"):
            (pictures / name).write_bytes(f"{run} {name}".encode())
    target = tmp_path / "docs" / "tiny"
    earlier = target / "w2s" / "seed0" / "pictures" / "step_00000400.png"
    earlier.parent.mkdir(parents=True)
    earlier.write_bytes(b"of an earlier publication")
    report = publish(trained, target)
    last = "pictures/step_00000100.png"
    assert [run.picture for run in report.runs] == [f"{run}/seed0/{last}" for run in ("baseline", "w2s")]
    for run in ("baseline/seed0", "w2s/seed0"):
        assert [path.name for path in (target / run / "pictures").iterdir()] == [Path(last).name]
        assert (target / run / last).read_bytes() == (trained / run / last).read_bytes()
    text = (target / "report" / "report.md").read_text()
    assert f"| ![baseline/seed0](../baseline/seed0/{last}) | ![w2s/seed0](../w2s/seed0/{last}) |" in text


def test_where_things_lay_is_not_published(trained: Path, tmp_path: Path) -> None:
    run = trained / "w2s" / "seed0"
    recipe = (run / "recipe.yaml").read_text()
    assert "root: data\n" in recipe
    recipe = recipe.replace("root: data\n", "root: /home/me/secret/flowers\n")
    assert "checkpoint: null\n" in recipe
    recipe = recipe.replace("checkpoint: null\n", "checkpoint: /home/me/secret/old/teacher\n", 1)
    (run / "recipe.yaml").write_text(recipe)
    row = {"row": "event", "step": 0, "name": "teacher", "checkpoint": f"{trained}/teacher/model.safetensors"}
    metrics = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n" + metrics)
    publish(trained, tmp_path / "docs")
    published = tmp_path / "docs" / "w2s" / "seed0"
    assert "root: data/flowers\n" in (published / "recipe.yaml").read_text()
    first, _, rest = (published / "metrics.jsonl").read_text().partition("\n")
    assert json.loads(first)["checkpoint"] == f"runs/{trained.name}/teacher/model.safetensors"
    assert rest == metrics
    assert "checkpoint: runs/old/teacher\n" in (published / "recipe.yaml").read_text()
    assert "secret" not in "".join(path.read_text() for path in published.iterdir())


def test_where_the_network_of_a_score_lay_is_not_published(make_run: MakeRun, experiment: Path, tmp_path: Path) -> None:
    places = ["fid.weights=/home/me/secret/inception.pth", "fid.cache=/home/me/secret/stats"]
    make_run("baseline", 0, FID_SLOW, recipe=GENERATED, metric="fid", thresholds="[60.0]", overrides=places)
    of_run = ["fid.extractor=checkpoint:/home/me/secret/cifar/baseline/seed0"]
    make_run("w2s", 0, FID_FAST, recipe=GENERATED, metric="fid", thresholds="[60.0]", overrides=of_run)
    publish(experiment, tmp_path / "docs")
    first, second = (tmp_path / "docs" / arm / "seed0" / "recipe.yaml" for arm in ("baseline", "w2s"))
    assert "weights: runs/secret/inception.pth" in first.read_text()
    assert "cache: cache/stats" in first.read_text()
    assert "checkpoint:runs/baseline/seed0" in second.read_text()
    assert "/home" not in first.read_text() + second.read_text()


def test_where_networks_of_diffusers_lay_is_not_published(make_run: MakeRun, experiment: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"recipe": GENERATED, "metric": "fid", "thresholds": "[60.0]"}
    models = ["teacher.model=diffusers:/home/me/ddpm", "student.model=diffusers:/home/me/half"]
    elsewhere = ["teacher.checkpoint=/home/me/old/teacher"]
    event = EventRow(0, "teacher", {"checkpoint": "/home/me/ddpm/unet/diffusion_pytorch_model.safetensors"})
    make_run("w2s", 0, FID_FAST, overrides=[*models, *elsewhere], extra=[event], **given)
    publish(experiment, tmp_path / "docs")
    published = tmp_path / "docs" / "w2s" / "seed0"
    recipe = (published / "recipe.yaml").read_text()
    for value in ("diffusers:models/ddpm", "diffusers:models/half", "checkpoint: runs/old/teacher"):
        assert value in recipe
    last = (published / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["checkpoint"] == "models/ddpm/unet/diffusion_pytorch_model.safetensors"
    assert "/me" not in "".join(path.read_text() for path in published.iterdir())


def test_published_again_it_takes_the_place_of_what_was_there(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "docs"
    publish(trained, target)
    (target / "w2s" / "seed0" / "metrics.jsonl").write_text("")
    publish(trained, target)
    assert (target / "w2s" / "seed0" / "metrics.jsonl").read_text() != ""


def test_an_experiment_is_not_published_over_itself_or_another(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "w2s" / "seed0"
    other.mkdir(parents=True)
    (other / "model.safetensors").write_bytes(b"weights")
    for target in (trained, tmp_path / "other"):
        with pytest.raises(RunDirError, match="holds runs with weights"):
            publish(trained, target)


def test_a_target_that_cannot_be_written_is_an_error(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        publish(trained, tmp_path / "file" / "docs")
