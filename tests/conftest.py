import os
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

# Before torch is loaded: several test processes share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

RECIPE = """name: tiny
task: classification
data: {source: shapes, train_examples: 64, eval_examples: 32}
teacher: {model: small_cnn_weak}
student: {model: small_cnn_strong}
train:
  epochs: 4
  batch_size: 8
  optimizer: {name: sgd, lr: 0.1, nesterov: true}
  lr_schedule: {name: one_cycle}
"""

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED_DATA.is_dir():
        return
    for item in items:
        if item.get_closest_marker("shared_data"):
            item.add_marker(pytest.mark.skip(reason="no real images in ../shared/data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with archives of real images; for tests marked ``shared_data``."""
    return SHARED_DATA


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny experiment, finished, and not to be changed."""
    from tiny import finished_experiment  # it loads torch, for which tests that do not need it should not wait

    return finished_experiment(tmp_path_factory.getbasetemp())


@pytest.fixture
def recipe(experiment: Path) -> Path:
    """The tiny experiment's recipe."""
    return experiment.parent / "tiny.yaml"


@pytest.fixture
def copied(experiment: Path, tmp_path: Path) -> Path:
    """All of the finished experiment, to be changed at will."""
    shutil.copytree(experiment, tmp_path / "copied")
    return tmp_path / "copied"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's cache, which is empty, and no network."""
    import torch  # as above

    def no_network(*_: object, **__: object) -> None:
        raise URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def recipe_file(tmp_path: Path) -> Callable[..., str]:
    """Writes a recipe, a good one unless told otherwise, and gives its path."""

    def write(content: str | bytes = RECIPE) -> str:
        path = tmp_path / "tiny.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write
