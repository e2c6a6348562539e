"""The device of the CUDA tests."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def device() -> Iterator[torch.device]:
    """Return the GPU, without TF32, or the CPU in a rehearsal."""
    if not torch.cuda.is_available():
        yield torch.device("cpu")
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # convolutions; matrix products have full precision by default
    try:
        yield torch.device("cuda", 0)
    finally:
        torch.backends.cudnn.allow_tf32 = before
        torch.cuda.synchronize()


@pytest.fixture
def repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restrict convolutions to deterministic kernels."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
