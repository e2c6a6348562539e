"""Problems with the scoring of samples are reported as one-line errors at startup, and no file is written.

``test_features.py`` covers all ways in which weights can be wrong; these tests cover what the command line prints.
"""

import json
from pathlib import Path

import pytest
import torch
from known import load_recipe
from PIL import Image
from tiny import contents, done, evaluations, refused, run_in
from tiny_noise import recipe_of

from w2skd.weights.load import load_weights, save_model


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and, in ``runs``, a teacher trained for one step; read only."""
    folder = tmp_path_factory.mktemp("noise")
    done("train-teacher", "-r", recipe_of(folder), "--out", folder / "runs", "--device", "cpu", "--quiet")
    return folder


def train(taught: Path, out: Path, *settings: str) -> tuple[object, ...]:
    """Command line of a baseline run."""
    command = ("distill", "--baseline", "-r", taught / "noise.yaml", "--out", out, "--device", "cpu")
    return (*command, *(word for setting in settings for word in ("--set", setting)))


INCEPTION = "fid.extractor=inception-v3-compat"


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_the_error_for_missing_inception_weights_says_where_to_put_them(
    dry: tuple[str, ...], taught: Path, offline: Path, tmp_path: Path
) -> None:
    line = refused(*train(taught, tmp_path / "runs", INCEPTION), *dry, code=1)
    assert line.startswith("weights of inception-v3-compat: weights-inception-2015-12-05-6726825d.pth is not in ")
    for way in (str(offline), "set by TORCH_HOME", "fid.weights", "fid.extractor to checkpoint:RUN"):
        assert way in line
    assert [name for name in contents(tmp_path) if not name.startswith("torch/")] == []


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"features.0.weight": torch.zeros(3)}, "Conv2d_1a_3x3.conv.weight is missing, and "),
        ({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 7, 7)}, "Conv2d_1a_3x3.conv.weight is (32, 3, 7, 7), exp"),
    ],
)
def test_weights_of_another_network_are_refused(
    state: dict[str, torch.Tensor], problem: str, taught: Path, tmp_path: Path
) -> None:
    file = tmp_path / "inception.pth"
    torch.save(state, file)
    line = refused(*train(taught, tmp_path / "runs", INCEPTION, f"fid.weights={file}"), code=1)
    assert line.startswith(f"{file}: not the weights of inception-v3-compat: {problem}")
    assert list(contents(tmp_path)) == ["inception.pth"]


def test_missing_unsafe_and_truncated_weights_are_refused(taught: Path, tmp_path: Path) -> None:
    file = tmp_path / "inception.pth"
    line = refused(*train(taught, tmp_path / "runs", INCEPTION, f"fid.weights={file}"), code=1)
    assert line == f"fid.weights: {file}: no such file"
    torch.save({"weights": Path("code")}, file)
    line = refused(*train(taught, tmp_path / "runs", INCEPTION, f"fid.weights={file}"), code=1)
    assert line.startswith(f"{file}: refused: it contains pickled code")
    file.write_bytes(file.read_bytes()[:100])
    line = refused(*train(taught, tmp_path / "runs", INCEPTION, f"fid.weights={file}"), code=1)
    assert line.startswith(f"{file}: ")


def test_an_extractor_that_is_not_a_classifier_is_refused(taught: Path, tmp_path: Path) -> None:
    line = refused(*train(taught, tmp_path / "runs", f"fid.extractor='checkpoint:{taught}/runs/teacher'"), code=1)
    assert line == f"{taught}/runs/teacher/model.safetensors: fid.extractor: not a classifier trained with w2skd"
    line = refused(*train(taught, tmp_path / "runs", f"fid.extractor='checkpoint:{taught}/runs'"), code=1)
    assert line.startswith(f"fid.extractor: {taught}/runs: not a run directory, model.safetensors is missing; ")
    assert contents(tmp_path) == {}


def test_too_few_samples_are_reported_before_training_and_kid_is_suggested(taught: Path, tmp_path: Path) -> None:
    warning = (
        "fid of 12 samples and 24 real images in 64 features is too high: each covariance needs at least 65 images to "
        "have full rank; kid has no such bias (report.metric: kid)"
    )
    facts = json.loads(done(*train(taught, tmp_path / "runs"), "--dry-run", "--json").out)
    assert facts["data_account"] == [warning]
    enough = train(taught, tmp_path / "runs", "fid.samples=65", "data.train_examples=70")
    assert json.loads(done(*enough, "--dry-run", "--json").out)["data_account"] == []
    scored = json.loads(done("evaluate", "-c", taught / "runs" / "teacher", "--device", "cpu", "--json").out)
    assert scored["account"].count(warning) == 1
    line = refused(*train(taught, tmp_path / "runs", "fid.samples=1"), code=2)
    assert "fid.samples: should be greater than or equal to 2" in line


def test_images_of_mixed_size_and_mode_are_used_and_reported(taught: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        folder = tmp_path / "data" / part / "thing"
        folder.mkdir(parents=True)
        for number, (mode, size) in enumerate([("RGB", (8, 8)), ("L", (20, 9)), ("RGBA", (8, 8)), ("RGB", (9, 30))]):
            Image.new(mode, size, 80 * number if mode == "L" else (80 * number,) * len(mode)).save(
                folder / f"{number}.png"
            )
    source = f"data={{source: image_folder, root: {tmp_path}/data, image_size: 8, workers: 0}}"
    warning = (
        f"{tmp_path}/data/train: 4 images inspected: 3 sizes; 1 greyscale; 1 with transparency, which is dropped. Each "
        "is cropped to its central square, resized to 8 px and converted to RGB"
    )
    once = train(taught, tmp_path / "runs", source, "train.steps=1")
    assert warning in json.loads(done(*once, "--dry-run", "--json").out)["data_account"]
    assert warning in done(*once).err
    [(_, _, _, metrics)] = evaluations(run_in(tmp_path / "runs", "baseline"))
    assert metrics["fid"] > 0


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("data.image_size=16", "was trained with another data.image_size: 8, not 16"),
        ("diffusion.timesteps=100", "was trained with another diffusion.timesteps: 40, not 100"),
        ("diffusion.beta_schedule=cosine", "was trained with another diffusion.beta_schedule: linear, not cosine"),
        (
            "diffusion.class_conditional=true",
            "was trained with other classes (diffusion.class_conditional): none, not 10",
        ),
        ("teacher.model=unet_mini_nc24_rb1", "made for unet_mini_nc16_rb1, not for unet_mini_nc24_rb1"),
    ],
)
def test_a_teacher_with_another_size_or_process_is_refused(
    setting: str, problem: str, taught: Path, tmp_path: Path
) -> None:
    command = ("distill", "-r", taught / "noise.yaml", "--out", tmp_path / "runs", "--device", "cpu")
    for dry in ((), ("--dry-run",)):
        line = refused(*command, "--teacher", taught / "runs" / "teacher", "--set", setting, *dry, code=1)
        assert line == f"{taught}/runs/teacher/model.safetensors: {problem}"
    assert contents(tmp_path) == {}


def test_non_finite_samples_are_reported_and_have_no_score(taught: Path, tmp_path: Path) -> None:
    """For training, see ``test_diffusion_runs.py``."""
    weights = load_weights(taught / "runs" / "teacher")
    state = {name: torch.full_like(tensor, 3e38) for name, tensor in weights.state.items()}
    file = tmp_path / "broken.safetensors"
    save_model(file, state, load_recipe(str(taught / "noise.yaml")), "teacher", weights.details)
    scored = json.loads(done("evaluate", "-c", file, "--device", "cpu", "--json").out)
    assert scored["metrics"] == {"fid": None, "kid": None}
    assert "12 of 12 samples are non-finite: fid and kid are undefined" in scored["account"]


def test_a_damaged_or_foreign_cache_is_recomputed_and_reported(taught: Path, tmp_path: Path) -> None:
    def scored(reference: str = "train") -> tuple[dict[str, float], list[str]]:
        settings = (
            "--set",
            f"fid.cache={tmp_path}",
            "--set",
            f"fid.reference={reference}",
            "--device",
            "cpu",
            "--json",
        )
        result = json.loads(done("evaluate", "-c", taught / "runs" / "teacher", *settings).out)
        return result["metrics"], [line for line in result["account"] if line.startswith(str(tmp_path))]

    metrics, notes = scored()
    assert notes == []
    [own] = tmp_path.iterdir()
    good = own.read_bytes()
    scored("eval")
    [other] = set(tmp_path.iterdir()) - {own}
    for damaged, problem in (
        (good[: len(good) // 2], "damaged or truncated ("),
        (good[:-8] + bytes(8), "damaged (wrong checksum)"),
        (other.read_bytes(), "belongs to other images"),
    ):
        own.write_bytes(damaged)
        found, [line] = scored()
        assert line.startswith(f"{own}: {problem}")
        assert line.endswith(": recomputed the features of the real images")
        assert found == metrics
    assert scored() == (metrics, [])
