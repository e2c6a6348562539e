from collections.abc import Callable
from pathlib import Path

import pytest

RECIPE = """
name: tiny
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


@pytest.fixture
def recipe_file(tmp_path: Path) -> Callable[..., str]:
    """Writes a recipe, a good one unless told otherwise, and gives its path."""

    def write(content: str | bytes = RECIPE) -> str:
        path = tmp_path / "tiny.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write
