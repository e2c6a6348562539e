"""Bad input gets one clear line and the right exit code, and nothing is lost or written.

What can go wrong with a run's directory, its checkpoints and its disk is in ``run/``.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import RECIPE, contents, done, evaluations, recipe_file, refused, w2skd

import w2skd as w2skd_package
from w2skd.recipe.load import shipped_recipes

# Recipes


def test_a_missing_recipe_is_reported_with_similar_names() -> None:
    line = refused("distill", "-r", "dmeo", code=2)
    assert line == "recipe dmeo: no such file or shipped recipe (did you mean 'demo'?)"
    line = refused("compare", "-r", "xyzzy", code=2)
    assert line.startswith("recipe xyzzy: no such file or shipped recipe; shipped recipes: ")
    assert line.endswith(", each also as NAME_smoke")
    assert all(name.removesuffix("_smoke") in line for name in shipped_recipes())


def test_a_recipe_file_without_its_extension_is_reported(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine")
    line = refused("distill", "-r", tmp_path / "mine", code=2)
    assert line.endswith(f" (did you mean the file {tmp_path}/mine.yaml?)")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        ("# only a comment\n", "empty"),
        ("name: [tiny\n", "not valid YAML, line 2, column 1: "),
        ("- name\n", "a recipe must be a mapping of keys to values, not a list"),
        (RECIPE.replace("name: tiny", "nmae: tiny"), ("name: missing", "nmae: unknown key (did you mean 'name'?)")),
        (RECIPE.replace("momentum", "mometum"), "train.optimizer.mometum: unknown key (did you mean 'momentum'?)"),
        (
            RECIPE.replace("small_cnn_weak", "small_cnn_week"),
            "student.model: unknown model 'small_cnn_week' (did you mean",
        ),
        (RECIPE.replace("shapes", "shape"), "data.source: should be 'cifar10', 'cifar100', 'fashion_mnist', 'image"),
        (RECIPE.replace("task: classification", "task: clasification"), "task: unknown task 'clasification' (did you"),
        (RECIPE.replace("metric: loss", "metric: los"), "report.metric: unknown metric 'los' (did you mean 'loss'?)"),
        (RECIPE.replace("steps: 6", "stepz: 6"), "teacher.train.stepz: unknown key (did you mean 'steps'?)"),
    ],
)
def test_a_wrong_recipe_is_reported_line_by_line(text: str, problem: Any, tmp_path: Path) -> None:
    path = recipe_file(tmp_path, text)
    said = w2skd("distill", "-r", path, "--out", tmp_path / "runs")
    assert said.code == 2
    (message,) = said.problems
    first, *others = message.splitlines()
    assert first.startswith(f"recipe {path}: ")
    if isinstance(problem, tuple):
        assert first == f"recipe {path}: {len(problem)} problems"
        assert sorted(line.strip() for line in others) == sorted(problem)
    else:
        assert problem in first
        assert not others
    assert os.listdir(tmp_path) == ["tiny.yaml"]


def test_all_problems_are_reported_in_one_message(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, RECIPE.replace("lr: 0.01", "lr: -1.0").replace("hold: 8step", "hold: 8"))
    (message,) = w2skd("distill", "-r", path).problems
    assert message.splitlines()[0] == f"recipe {path}: 2 problems"
    assert "train.optimizer.lr: should be greater than 0, not -1.0" in message
    assert "distill.hold: 8 is not a duration" in message


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("train.steps", "--set train.steps: expected section.key=value"),
        ("=3", "--set =3: expected section.key=value"),
        ("train.stepz=3", "train.stepz: unknown key (did you mean 'steps'?)"),
        ("name.x=3", "--set name.x=3: name is a value, not a section"),
        ("train.steps=[3", "--set train.steps=[3: not valid YAML"),
        ("train.steps=many", "train.steps: should be a valid integer, not 'many'"),
    ],
)
def test_a_setting_that_is_wrong_is_reported(setting: str, problem: str, recipe: Path, tmp_path: Path) -> None:
    assert problem in refused("distill", "-r", recipe, "--set", setting, "--out", tmp_path / "runs", code=2)
    assert os.listdir(tmp_path) == []


# Contradictory and invalid options


def test_a_baseline_has_no_teacher(recipe: Path) -> None:
    line = refused("distill", "-r", recipe, "--baseline", "--teacher", "x.pt", code=2)
    assert line == "--baseline trains without a teacher: leave out --teacher"


def test_overwrite_and_resume_of_a_checkpoint_exclude_each_other(recipe: Path, copied: Path) -> None:
    before = contents(copied)
    last = copied / "w2s" / "seed0" / "checkpoints" / "last.pt"
    line = refused("distill", "-r", recipe, "--out", copied, "--overwrite", "--resume", last, code=2)
    assert line == f"--overwrite discards the run that --resume {last} resumes: use one of the two"
    assert contents(copied) == before


@pytest.mark.parametrize("seeds", ["a,b", "", "0,,1", "0;1", "0.5", "-1", "1,1", "99999999999"])
def test_invalid_seeds_are_reported(seeds: str, recipe: Path, tmp_path: Path) -> None:
    line = refused("compare", "-r", recipe, f"--seeds={seeds}", "--out", tmp_path / "runs", code=2)
    assert line.startswith(f"--seeds {seeds}: ")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_out_of_range_is_a_usage_error(seed: int, recipe: Path, tmp_path: Path) -> None:
    assert w2skd("distill", "--baseline", "-r", recipe, f"--seed={seed}", "--out", tmp_path / "runs").code == 2
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("device", ["cuda:7", "foo", "cuda"])
@pytest.mark.parametrize("command", [("train-teacher",), ("distill", "--baseline"), ("compare",)])
def test_a_missing_device_is_reported(
    device: str, command: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    line = refused(*command, "-r", recipe, "--device", device, "--out", tmp_path / "runs", code=2)
    assert line.startswith(f"--device {device}: ")
    assert os.listdir(tmp_path) == []


# Teachers


def test_without_a_teacher_the_three_ways_to_get_one_are_listed(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    line = refused("distill", "-r", recipe, "--out", out, code=2)
    assert line.startswith("no teacher: ")
    for way in ("--teacher CHECKPOINT", "teacher.checkpoint", f"w2skd train-teacher --recipe ... --out {out}"):
        assert way in line
    assert os.listdir(tmp_path) == []


def test_without_a_teacher_torch_is_not_even_imported(recipe: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom w2skd.cli.main import app\n"
        "try:\n    app(sys.argv[1:])\nfinally:\n    print('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(w2skd_package.__file__).parents[1])}
    found = subprocess.run(
        [sys.executable, "-c", program, "distill", "-r", str(recipe), "--out", str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (found.returncode, found.stdout) == (2, "False\n")
    assert found.stderr.startswith("w2skd: no teacher: ")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing.pt", "no such checkpoint"),
        ("cut.safetensors", "damaged or truncated"),
        ("cut.pt", "damaged or truncated"),
        ("text.pt", "is a text file, not a checkpoint"),
        ("evil.pt", "refused: it contains pickled code (posix.mkdir) that loading could run"),
        ("folder", "not a run directory, model.safetensors is missing"),
    ],
)
def test_a_teacher_that_cannot_be_loaded_is_reported(
    name: str, problem: str, recipe: Path, experiment: Path, tmp_path: Path
) -> None:
    class Arms:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "was-run"),)

    teacher = experiment / "teacher"
    (tmp_path / "cut.safetensors").write_bytes((teacher / "model.safetensors").read_bytes()[:-100])
    (tmp_path / "cut.pt").write_bytes((teacher / "checkpoints" / "last.pt").read_bytes()[:-100])
    (tmp_path / "text.pt").write_text("not weights")
    (tmp_path / "folder").mkdir()
    torch.save({"weights": Arms()}, tmp_path / "evil.pt")
    before = contents(tmp_path)
    for extra in ((), ("--dry-run",)):
        line = refused(
            "distill", "-r", recipe, "--out", tmp_path / "runs", "--teacher", tmp_path / name, *extra, code=1
        )
        assert f"{tmp_path / name}: {problem}" in line
    assert not (tmp_path / "was-run").exists()
    assert contents(tmp_path) == before


# Data


def image_folder(root: Path) -> Path:
    """Two classes with eight training and four evaluation images each."""
    for part, count in (("train", 8), ("test", 4)):
        for label in ("cat", "dog"):
            (root / part / label).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (16, 16), (index * 9, 40, 200)).save(root / part / label / f"{index}.png")
    return root


def on_images(root: Path) -> tuple[object, ...]:
    source = f"data={{source: image_folder, root: {root}, image_size: 16}}"
    return ("--set", source, "--set", "train.batch_size=8", "--set", "train.steps=2")


def test_image_folders_are_trained_on(recipe: Path, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images")
    done("train-teacher", "-r", recipe, "--out", tmp_path / "runs", *on_images(root))
    assert evaluations(tmp_path / "runs" / "teacher")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: shutil.rmtree(root), ("data.root", "no such folder")),
        (lambda root: [shutil.rmtree(root / "train" / name) for name in ("cat", "dog")], ("train", "no folders")),
        (lambda root: [path.unlink() for path in (root / "train/cat").iterdir()], ("train/cat", "has no images")),
        (lambda root: (root / "train/dog/3.png").write_bytes(b"no image"), ("train/dog/3.png", "not an image")),
        (lambda root: os.rename(root / "test/dog", root / "test/wolf"), ("wolf", "dog", "differ")),
    ],
)
def test_unusable_images_are_reported(spoil: Any, words: tuple[str, ...], recipe: Path, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images")
    spoil(root)
    before = contents(tmp_path)
    line = refused("train-teacher", "-r", recipe, "--out", tmp_path / "runs", *on_images(root), code=1)
    assert all(word in line for word in words), line
    assert contents(tmp_path) == before


def test_a_teacher_of_other_classes_is_reported(recipe: Path, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images")
    done("train-teacher", "-r", recipe, "--out", tmp_path / "runs", *on_images(root))
    for part in ("train", "test"):
        os.rename(root / part / "dog", root / part / "dingo")
    os.rename(root, tmp_path / "others")
    line = refused("distill", "-r", recipe, "--out", tmp_path / "runs", *on_images(tmp_path / "others"), code=1)
    problem = "the teacher lacks 1 of the data's 2 classes: 'dingo'; rename them to "
    assert line.startswith(f"{tmp_path}/runs/teacher/model.safetensors: {problem}")
    line = refused("evaluate", "-c", tmp_path / "runs" / "teacher", "--set", f"data.root={tmp_path / 'others'}", code=1)
    assert line.startswith(f"{tmp_path}/runs/teacher/model.safetensors: {problem}")
