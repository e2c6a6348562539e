from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

Compile = Callable[..., Any]


@pytest.fixture
def compile_with(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Compile], None]]:
    """Replace the backend of `torch.compile`, which is slow and needs a C++ compiler."""

    def replace(backend: Compile) -> None:
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))

    yield replace
    torch.compiler.reset()
