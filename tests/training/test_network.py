from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from processes import run_ranks, values
from torch import nn

from w2skd.errors import TrainingError
from w2skd.platform.ranks import Ranks, process_group
from w2skd.training.network import Network

Compile = Callable[..., Any]


@pytest.fixture
def compile_with(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Compile], None]]:
    """Replace the backend of `torch.compile`, which is slow and needs a C++ compiler."""

    def replace(backend: Compile) -> None:
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))

    yield replace
    torch.compiler.reset()


def network(model: nn.Module, compiled: bool = False) -> Network:
    return Network(model, ranks=Ranks(), compiled=compiled)


def test_with_one_rank_and_uncompiled_it_is_the_student() -> None:
    model = nn.Linear(2, 2)
    assert network(model).module is model


def test_inputs_are_new_once_for_each_shape() -> None:
    met = network(nn.Linear(2, 2), compiled=True)
    small, large = torch.ones(2, 3, 8, 8), torch.ones(2, 3, 16, 16)
    assert [met.meets((images,)) for images in (small, small, large, small, large)] == [True, False, True, False, False]
    assert [met.meets((small, large)), met.meets((large, small)), met.meets((small, large))] == [True, True, False]


def test_without_compilation_only_the_first_step_has_one_off_costs() -> None:
    met = network(nn.Linear(2, 2))
    assert [met.meets((torch.ones(2, side),)) for side in (3, 3, 4, 5)] == [True, False, False, False]


def test_every_shape_gets_a_static_graph_of_its_own(compile_with: Callable[[Compile], None]) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append([value for value in inputs if not isinstance(value, torch.Tensor)])
        return graph.forward

    compile_with(backend)
    model = nn.Linear(2, 2)
    compiled = network(model, compiled=True)
    for rows in (4, 4, 6, 4, 6):
        inputs = torch.ones(rows, 2)
        assert torch.equal(compiled.module(inputs), model(inputs))
    assert graphs == [[], []]  # a second one for 6 rows; no symbolic sizes among the inputs
    assert set(model.state_dict()) == {"weight", "bias"}


def test_the_last_of_many_shapes_is_compiled_too(compile_with: Callable[[Compile], None]) -> None:
    graphs: list[Any] = []
    compile_with(lambda graph, inputs: (graphs.append(graph), graph.forward)[1])
    compiled = network(nn.Linear(2, 2), compiled=True)
    for rows in range(2, 14):
        compiled.module(torch.ones(rows, 2))
    assert len(graphs) == 12


class Line(nn.Module):
    """A custom module: inside DDP, torch does not compile its own modules such as a bare `nn.Linear`."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.slope


def accumulate_compiled(ranks: Ranks) -> tuple[list[float], int]:
    """Return the gradients after the first and the last of two micro-batches, and the number of compiled graphs."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compile = partial(torch.compile, backend=backend)
    with process_group(ranks, torch.device("cpu")):
        model = Line()
        compiled = Network(model, ranks=ranks, compiled=True)
        gradients = []
        for micro, last in enumerate((False, True)):
            with compiled.sync_gradients(last):
                compiled.module(torch.full((1, 1), 1.0 + 2 * ranks.rank + 4 * micro)).sum().backward()
            gradients.append(model.slope.grad.item())
        return gradients, len(graphs)


def test_compiled_ranks_reduce_gradients_once_per_step() -> None:
    for rank, (gradients, graphs) in enumerate(values(run_ranks(accumulate_compiled))):
        assert gradients == [1 + 2 * rank, ((1 + 5) + (3 + 7)) / 2]
        assert graphs == 1


def test_a_failed_compilation_is_a_one_line_error(compile_with: Callable[[Compile], None]) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("No working C++ compiler found.\nSet this and that")

    compile_with(backend)
    compiled = network(nn.Linear(2, 2), compiled=True)
    with pytest.raises(
        TrainingError, match=r"^train\.compile: [^\n]*No working C\+\+ compiler found; [^\n]*train\.compile=false$"
    ):
        compiled.module(torch.ones(1, 2))


def test_an_unsupported_python_is_reported_at_startup(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(module: nn.Module, **_: Any) -> nn.Module:
        raise RuntimeError("torch.compile is not supported on Python 3.99+")

    monkeypatch.setattr(torch, "compile", unsupported)
    with pytest.raises(TrainingError, match=r"^train\.compile: [^\n]*Python 3\.99\+; [^\n]*train\.compile=false$"):
        network(nn.Linear(2, 2), compiled=True)


def test_an_error_of_the_model_itself_is_passed_on(compile_with: Callable[[Compile], None]) -> None:
    class Odd(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            raise KeyError("a bug")

    compile_with(lambda graph, inputs: graph.forward)
    with pytest.raises(KeyError, match="a bug"):
        network(Odd(), compiled=True).module(torch.ones(1, 2))
