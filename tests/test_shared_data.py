"""The recipe for the CIFAR-10 images in ../shared/data."""

import json
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from w2skd.cli.main import app

pytestmark = pytest.mark.shared_data


@pytest.fixture(scope="module")
def images(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first hundred images of each class."""
    target = tmp_path_factory.mktemp("images")
    with tarfile.open(shared_data / "cifar10-jpeg.tar.xz") as archive:
        few = [member for member in archive if member.isfile() and int(Path(member.name).stem) < 100]
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 or newer
        archive.extractall(target, few)
    return target / "cifar10-jpeg"


def test_the_smoke_recipe_runs_the_whole_experiment_on_real_images(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "experiment"
    command = ["compare", "-r", "cifar10_cpu_smoke", "--seeds", "0", "--out", str(out), "--set", f"data.root={images}"]
    done = CliRunner().invoke(app, [*command, "--json", "-q"])
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert {threshold["name"] for threshold in report["thresholds"]} >= {"teacher"}
    assert (out / "report" / "curves.png").stat().st_size > 10_000
    environment = json.loads((out / "w2s" / "seed0" / "environment.json").read_text())
    assert environment["parameters"] == {"student": 269_722, "teacher": 75_290}
