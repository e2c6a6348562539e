from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from w2skd.errors import TrainingError
from w2skd.training.compiled import Compiled

Compile = Callable[..., Any]


def test_a_failed_compilation_is_a_one_line_error(compile_with: Callable[[Compile], None]) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("No working C++ compiler found.\nSet this and that")

    compile_with(backend)
    compiled = Compiled(nn.Linear(2, 2), True, "teacher.compile")
    with pytest.raises(
        TrainingError, match=r"^teacher\.compile: [^\n]*No working C\+\+ compiler found; [^\n]*teacher\.compile=false$"
    ):
        compiled(torch.ones(1, 2))


def test_an_unsupported_python_is_reported_at_startup(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(module: nn.Module, **_: Any) -> nn.Module:
        raise RuntimeError("torch.compile is not supported on Python 3.99+")

    monkeypatch.setattr(torch, "compile", unsupported)
    with pytest.raises(TrainingError, match=r"^train\.compile: [^\n]*Python 3\.99\+; [^\n]*train\.compile=false$"):
        Compiled(nn.Linear(2, 2), True, "train.compile")


def test_an_error_of_the_model_itself_is_passed_on(compile_with: Callable[[Compile], None]) -> None:
    class Odd(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            raise KeyError("a bug")

    compile_with(lambda graph, inputs: graph.forward)
    with pytest.raises(KeyError, match="a bug"):
        Compiled(Odd(), True, "train.compile")(torch.ones(1, 2))


@pytest.mark.parametrize(("mode", "asked_for", "marks"), [(True, None, 0), ("reduce-overhead", "reduce-overhead", 3)])
def test_graphs_are_recorded_on_request_and_may_be_overwritten_by_the_next_step(
    mode: Any, asked_for: str | None, marks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: list[dict[str, Any]] = []
    marked: list[None] = []
    monkeypatch.setattr(torch, "compile", lambda module, **given: options.append(given) or module)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marked.append(None))
    compiled = Compiled(nn.Linear(2, 2), mode, "train.compile")
    for _ in range(3):
        compiled.begin_pass()
        compiled(torch.ones(1, 2))
    assert options == [{"dynamic": False, "mode": asked_for}]
    assert len(marked) == marks
