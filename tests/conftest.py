import os
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

# Set before torch is loaded, because several test processes share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# torch reads this once per process, at the first matrix product on a GPU, even if that product is not deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rehearse-cuda", action="store_true", help="without a GPU, run the cuda tests on the CPU where possible"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not SHARED_DATA.is_dir():
        for item in items:
            if item.get_closest_marker("shared_data"):
                item.add_marker(pytest.mark.skip(reason="no real images in ../shared/data"))
    on_gpu = [item for item in items if item.get_closest_marker("cuda")]
    if on_gpu:
        _skip_without_gpu(on_gpu, rehearsed=config.getoption("--rehearse-cuda"))


def _skip_without_gpu(items: list[pytest.Item], *, rehearsed: bool) -> None:
    import torch  # loaded late, because many tests do not need it

    if torch.cuda.is_available():
        return
    for item in items:
        real = item.get_closest_marker("needs_gpu")
        if real is not None:
            item.add_marker(pytest.mark.skip(reason=f"no GPU: {real.kwargs['reason']}"))
        elif not rehearsed:
            item.add_marker(pytest.mark.skip(reason="no GPU; --rehearse-cuda runs it on the CPU"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with archives of real images, for tests marked ``shared_data``."""
    return SHARED_DATA


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished tiny experiment; read only."""
    from tiny import finished_experiment  # loads torch, which many tests do not need

    return finished_experiment(tmp_path_factory.getbasetemp())


@pytest.fixture
def recipe(experiment: Path) -> Path:
    """The tiny experiment's recipe."""
    return experiment.parent / "tiny.yaml"


@pytest.fixture
def copied(experiment: Path, tmp_path: Path) -> Path:
    """A copy of the finished experiment that a test may change."""
    shutil.copytree(experiment, tmp_path / "copied")
    return tmp_path / "copied"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch cache and no network; return the cache's checkpoint folder."""
    import torch  # loaded late, see above

    def no_network(*_: object, **__: object) -> None:
        raise URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def recipe_file(tmp_path: Path) -> Callable[..., str]:
    """A function that writes a recipe, by default a valid one, and returns its path."""

    def write(content: str | bytes = RECIPE) -> str:
        path = tmp_path / "tiny.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write
