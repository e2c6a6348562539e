"""The command line: output, exit codes, and files that stay untouched."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from known import load_recipe
from PIL import Image
from tiny import contents, done, refused, w2skd

import w2skd as w2skd_package
from w2skd import __version__
from w2skd.cli.printing import print_score
from w2skd.recipe.evaluation import Metric
from w2skd.recipe.load import shipped_recipes
from w2skd.tasks.classification.task import ClassificationTask

COMMANDS = ("train-teacher", "distill", "evaluate", "speedup-report", "compare", "pack", "recipes")


# Help


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_the_help_of_every_command_has_an_example(command: str, flag: str) -> None:
    said = " ".join(done(command, flag).out.split())
    assert "Example:" in said
    assert f"w2skd {command}" in said.partition("Example:")[2]


def test_every_command_is_listed() -> None:
    said = done("--help").out
    assert all(command in said for command in COMMANDS)
    assert w2skd().out.strip() == said.strip()


def test_the_version() -> None:
    assert done("--version").out == f"w2skd {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [("train",), ("distill",), ("distill", "--no-such"), ("distill", "-r", "demo", "--seed", "x")],
)
def test_unparsable_arguments_are_a_usage_error(arguments: Any) -> None:
    said = w2skd(*arguments)
    assert said.code == 2
    assert said.out == ""
    assert "Usage:" in said.err


# Recipes


def test_the_resolved_recipe_loads_back(recipe: Path, tmp_path: Path) -> None:
    settings = ("--set", "train.optimizer={name: adamw, lr: 1e-3}", "--set", "train.epochs=2", "--seed", 7)
    for command in (("distill", "--teacher", "my teacher.pt"), ("train-teacher",), ("distill", "--baseline")):
        said = done(*command, "-r", recipe, *settings, "--print-recipe", "--out", tmp_path / "runs")
        assert said.err == ""
        (tmp_path / "printed.yaml").write_text(said.out)
        loaded = load_recipe(str(tmp_path / "printed.yaml"))
        assert (loaded.seed, loaded.train.epochs, loaded.train.steps) == (7, 2, None)
        assert loaded.train.optimizer.name == "adamw"
        assert loaded.teacher.checkpoint == (Path("my teacher.pt") if "--teacher" in command else None)
        assert done(*command[:1], "-r", tmp_path / "printed.yaml", "--print-recipe").out == said.out
    assert os.listdir(tmp_path) == ["printed.yaml"]
    assert done("compare", "-r", recipe, "--print-recipe").out.startswith("name: tiny\n")


def test_shipped_recipes_are_listed_and_printed_as_written() -> None:
    listed = done("recipes").out
    for name, path in shipped_recipes().items():
        assert (f"{name} " in listed) != name.endswith("_smoke"), "smoke recipes are not listed"
        assert done("recipes", name).out == path.read_text()
        assert done("recipes", f"{name}.yaml").out == path.read_text()
    assert "did you mean 'demo'" in refused("recipes", "demmo", code=2)


# JSON output


def test_with_json_there_is_one_object_on_standard_output(recipe: Path, copied: Path, tmp_path: Path) -> None:
    common = ("-r", recipe, "--json")
    found = {
        "dry run": done("distill", *common, "--out", copied, "--dry-run"),
        "distill": done("distill", *common, "--out", copied, "--overwrite"),
        "again": done("distill", *common, "--out", copied),
        "baseline": done("distill", *common, "--out", copied, "--baseline"),
        "teacher": done("train-teacher", *common, "--out", copied),
        "evaluate": done("evaluate", "-c", copied / "teacher", "--json"),
        "report": done("speedup-report", copied, "--json"),
    }
    values = {name: json.loads(said.out, parse_constant=pytest.fail) for name, said in found.items()}
    assert all(isinstance(value, dict) for value in values.values())
    assert values["dry run"]["parameters"].keys() == {"student", "teacher"}
    assert values["dry run"]["distilled_step_floor"] > 1
    assert values["distill"] == values["again"]
    assert (values["distill"]["run"], values["distill"]["final"]["at"]["step"]) == ("w2s/seed0", 30)
    assert [line["name"] for line in values["distill"]["lines"]] == ["teacher", "2.6", "0.98*baseline"]
    assert (values["baseline"]["run"], values["teacher"]["run"]) == ("baseline/seed0", "teacher")
    assert values["evaluate"]["metrics"].keys() == {"top1", "top5", "loss"}
    assert values["report"] == json.loads((copied / "report" / "report.json").read_text())
    assert found["distill"].err.count("\n") > 10
    assert found["again"].err == f"{copied}/w2s/seed0: already finished\n"


def test_quiet_leaves_events_and_results(recipe: Path, copied: Path) -> None:
    said = done("distill", "-r", recipe, "--out", copied, "--overwrite", "--quiet")
    assert "step 2/30" not in said.err
    assert "distillation off" in said.err
    assert "finished" in said.err
    assert "w2s/seed0" in said.out


def test_a_metric_that_is_no_number_is_null_in_json(experiment: Path, tmp_path: Path) -> None:
    from tiny import weights

    state = {
        name: torch.full_like(tensor, 3e38) if tensor.is_floating_point() else tensor
        for name, tensor in weights(experiment / "teacher").items()
    }
    torch.save(state, tmp_path / "huge.pt")
    arguments = ("evaluate", "-c", tmp_path / "huge.pt", "-r", experiment.parent / "tiny.yaml", "--role", "teacher")
    values = json.loads(done(*arguments, "--json").out, parse_constant=pytest.fail)
    assert values["metrics"]["loss"] is None
    assert w2skd(*arguments, "--require", "loss<=1000").code == 3


# Dry runs


def scored_model(metrics: dict[str, float], tables: dict[str, Any]) -> Any:
    shares = tuple(Metric(name, higher_is_better=True, is_share=name in ("top1", "ap")) for name in metrics)
    recipe = SimpleNamespace(metric=shares[0], report=SimpleNamespace(metrics=shares))
    evaluation = SimpleNamespace(metrics=metrics, tables=tables)
    return SimpleNamespace(checkpoint=Path("a.pt"), model="m", recipe=recipe, notes=(), evaluation=evaluation)


def test_the_terminal_shows_the_lowest_rows_of_a_long_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"class": f"n{place}", "examples": 5, "top1": place / 100} for place in reversed(range(60))]
    rows[0]["top1"] = math.nan
    print_score(scored_model({"top1": 0.3}, {"classes": rows}), as_json=False)
    said = capsys.readouterr().out
    assert re.findall(r"n\d+ ", said) == [f"n{place} " for place in range(40)]
    assert "the lowest 40 of 60; --json prints all" in said


def test_numbers_have_the_digits_that_they_carry(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"fid": 41.25, "kid": 0.0012345, "top1": 0.0312, "loss": 2.5, "ap": math.nan}
    print_score(scored_model(metrics, {}), as_json=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert lines == [["fid", "41.2500"], ["kid", "0.001234"], ["top1", "0.0312"], ["loss", "2.5000"], ["ap", "nan"]]


def test_published_weights_only_teach(recipe: Path) -> None:
    line = refused("distill", "-r", recipe, "--baseline", "--init-from", "pretrained:IMAGENET1K_V1", code=2)
    assert line.startswith("--init-from pretrained:IMAGENET1K_V1: published weights can only teach; give a finished")


def test_flags_take_no_value() -> None:
    assert not re.search(
        r"--(json|quiet|dry-run|overwrite|baseline|print-recipe)\b.*bool", done("distill", "--help").out
    )


def test_evaluate_needs_a_checkpoint_or_a_model() -> None:
    line = refused("evaluate", code=2)
    assert line == "nothing to score: give --checkpoint CKPT, or --model NAME for published weights"


def test_a_dry_run_prints_the_scoring(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ClassificationTask.describe_data
    scoring = {"extractor": "vgg16", "samples": 2000}
    monkeypatch.setattr(ClassificationTask, "describe_data", lambda self: original(self) | {"scoring": scoring})
    said = done("distill", "-r", recipe, "--out", tmp_path, "--dry-run", "--baseline").out
    assert re.search(r"scores +extractor vgg16; samples 2,000", said)


def test_a_dry_run_prints_costs_and_writes_only_a_picture(recipe: Path, copied: Path, tmp_path: Path) -> None:
    before, files = contents(tmp_path), set(tmp_path.rglob("*"))
    said = done("distill", "-r", recipe, "--out", copied, "--dry-run").out
    for word in ("64 training, 40 evaluation", "30 steps, 4 per epoch", "small_cnn_weak", "cifar_resnet8", "MFLOPs"):
        assert word in said
    assert "a distilled step takes at least" in said
    assert "at 8 validations in a row" in " ".join(said.split())
    assert "64 training, 40 evaluation examples, resident" in said
    assert re.search(r"memory +about [\d.]+ MiB for training: weights [\d.]+ MiB, activations", said)
    assert str(copied / "first_batch_w2s.png") in re.sub(r"\s+", "", said)
    done("distill", "-r", recipe, "--out", tmp_path / "new", "--dry-run", "--baseline")
    said = done("train-teacher", "-r", recipe, "--out", tmp_path / "new", "--dry-run").out
    assert "6 steps, 4 per epoch" in said
    assert "small_cnn_weak" not in said
    new = tmp_path / "new"
    pictures = {copied / "first_batch_w2s.png", new / "first_batch_baseline.png", new / "first_batch_teacher.png"}
    assert set(tmp_path.rglob("*")) - files == {new, *pictures}
    for picture in pictures:
        assert Image.open(picture).width > 100
        picture.unlink()
    assert contents(tmp_path) == before


# Targets


@pytest.mark.parametrize("target", ["top1>=1.1", "loss<=0.1", "top5 >= 2e0"])
def test_a_missed_target_exits_with_3(target: str, experiment: Path) -> None:
    line = refused("evaluate", "-c", experiment / "teacher", "--require", "top1>=0", "--require", target, code=3)
    assert line.startswith(f"{target[:4]} is ")
    assert "required was" in line


def test_reached_targets_exit_with_0(experiment: Path) -> None:
    targets = ("--require", "top1>=0", "--require", "loss <= 1e6")
    plain = done("evaluate", "-c", experiment / "teacher")
    assert done("evaluate", "-c", experiment / "teacher", *targets).out == plain.out


@pytest.mark.parametrize(
    "target", ["top1", "top1>0.5", "top1=0.5", ">=1", "top1>=", "top1>=e", "top1>=nan", "top1>=1 2"]
)
def test_a_malformed_target_is_reported(target: str, experiment: Path) -> None:
    line = refused("evaluate", "-c", experiment / "teacher", "--require", target, code=2)
    assert line == f"--require {target}: write it as top1>=0.9 or loss<=0.5"


def test_a_target_of_an_unknown_metric_is_reported(experiment: Path) -> None:
    line = refused("evaluate", "-c", experiment / "teacher", "--require", "top2>=0.5", code=2)
    assert line.startswith("--require top2: no such metric (did you mean 'top")
    assert all(name in line.partition("known: ")[2] for name in ("top1", "top5", "loss"))


def test_an_unknown_role_is_reported(experiment: Path) -> None:
    line = refused("evaluate", "-c", experiment / "teacher", "--role", "pupil", code=2)
    assert line == "--role pupil: use teacher or student"


# Reports


def test_a_report_can_require_a_speedup(copied: Path) -> None:
    for run in ("baseline", "w2s"):  # the teacher is no better than chance and therefore no target
        path = copied / run / "seed0" / "recipe.yaml"
        values = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(values | {"report": {"metric": "loss", "thresholds": [2.6]}}))
    said = done("speedup-report", copied, "--require", "0.01")
    assert "Result" in said.out
    assert f"saved {copied}/report" in said.out
    line = refused("speedup-report", copied, "--require", "100", code=3)
    assert line.startswith("required was a speed-up of 100 at 2.6: ")
    line = refused("speedup-report", copied, "--require", "nan", code=2)
    assert line == "--require nan: give a number"
    assert w2skd("speedup-report", copied, "--require", "much").code == 2


def test_without_thresholds_a_speedup_cannot_be_required(copied: Path) -> None:
    for run in ("baseline", "w2s"):
        path = copied / run / "seed0" / "recipe.yaml"
        values = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(values | {"report": {"metric": "loss", "thresholds": []}}))
    done("speedup-report", copied)
    assert "the recipe has no thresholds" in refused("speedup-report", copied, "--require", "1", code=2)


def test_a_truncated_row_is_excluded_from_the_report(copied: Path) -> None:
    whole = json.loads(done("speedup-report", copied, "--json").out)
    with (copied / "w2s" / "seed0" / "metrics.jsonl").open("a") as file:
        file.write('{"row": "eval", "step": 33, "epo')
    assert json.loads(done("speedup-report", copied, "--json").out) == whole


def test_damaged_records_are_reported(copied: Path) -> None:
    metrics = copied / "w2s" / "seed0" / "metrics.jsonl"
    metrics.write_text("garbage\n" + metrics.read_text())
    before = contents(copied)
    assert refused("speedup-report", copied, code=2).startswith(f"{copied}/w2s/seed0: its records are damaged: ")
    assert contents(copied) == before


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_runs_is_reported(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refused("speedup-report", tmp_path / name, code=2).startswith(f"{tmp_path / name}: ")


def test_a_report_that_cannot_be_saved_is_reported(copied: Path) -> None:
    (copied / "report").write_text("mine")
    line = refused("speedup-report", copied, code=1)
    assert line == f"cannot write {copied}/report: File exists"
    assert (copied / "report").read_text() == "mine"


# Messages


def test_messages_are_printed_without_markup(tmp_path: Path) -> None:
    name = f"{tmp_path}/[bold]x[/nothing] :warning: {'long ' * 40}.yaml"
    assert refused("distill", "-r", name, code=2).startswith(f"recipe {name}: no such file")


def test_a_second_ctrl_c_exits_at_once_with_a_message(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from w2skd.training.engine import Engine

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "_take_step", interrupt)
    line = refused("train-teacher", "-r", recipe, "--out", tmp_path / "runs", code=130)
    assert line == "interrupted at once; earlier checkpoints are kept"
    assert json.loads((tmp_path / "runs/teacher/status.json").read_text())["state"] == "stopped"


def test_only_the_first_rank_prints() -> None:
    environment = os.environ | {
        "PYTHONPATH": str(Path(w2skd_package.__file__).parents[1]),
        "RANK": "1",
        "WORLD_SIZE": "2",
    }
    found = subprocess.run(
        [sys.executable, "-m", "w2skd", "distill", "-r", "nowhere"], capture_output=True, env=environment, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (2, b"", b"")


def test_a_rank_without_its_device_reports_it_itself(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    said = w2skd("distill", "--baseline", "-r", recipe, "--out", tmp_path / "runs", "--device", "cuda:9")
    assert said.code == 2
    assert "w2skd: rank 3: --device cuda:9: all 4 ranks would share it" in said.err


def test_only_the_first_of_several_ranks_prints_a_dry_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = ("distill", "-r", recipe, "--out", tmp_path / "new", "--dry-run", "--baseline")
    assert "small_cnn_weak" in done(*command).out
    monkeypatch.setenv("RANK", "1")
    assert done(*command).out == ""
