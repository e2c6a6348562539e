from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from processes import run_ranks, values
from torch import nn

from w2skd.platform.ranks import Ranks, process_group
from w2skd.training.network import Network

Compile = Callable[..., Any]


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
    assert not met.meets((torch.ones(2, 3),), with_teacher=True)


def test_a_compiled_teacher_has_one_off_costs_when_it_is_first_asked() -> None:
    met = Network(nn.Linear(2, 2), ranks=Ranks(), compiled=False, teacher_compiled=True)
    small, large = (torch.ones(2, 3),), (torch.ones(2, 4),)
    asked = [(small, False), (small, True), (small, True), (large, True), (small, False)]
    assert [met.meets(inputs, with_teacher=taught) for inputs, taught in asked] == [True, True, False, True, False]


def test_dropping_a_compiled_teacher_has_one_off_costs_only_if_graphs_are_recorded_anew() -> None:
    inputs, larger = (torch.ones(2, 3),), (torch.ones(2, 4),)
    asked = [(inputs, True), (inputs, False), (larger, False)]
    cases: dict[Literal[False, True, "reduce-overhead"], list[bool]] = {
        False: [True, False, False],
        True: [True, False, True],
        "reduce-overhead": [True, True, True],
    }
    for compiled, expected in cases.items():
        met = Network(nn.Linear(2, 2), ranks=Ranks(), compiled=compiled, teacher_compiled=True)
        assert [met.meets(inputs, with_teacher=taught) for inputs, taught in asked] == expected


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
