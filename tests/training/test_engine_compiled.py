"""The training loop with a compiled student or teacher."""

import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from toy import CPU, ToyBatch, ToyTask, engine, schedule, teacher, train_section

from w2skd.method.teacher import FrozenTeacher
from w2skd.records.rows import StepRow
from w2skd.training.clock import Clock
from w2skd.training.compiled import Compiled
from w2skd.training.engine import Distillation, Engine


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Record the graphs that `torch.compile` compiles, and run them uncompiled."""
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    yield compiled
    torch.compiler.reset()


def test_training_before_and_after_the_switch_shares_one_compiled_graph(graphs: list[Any]) -> None:
    task = ToyTask(scores=[0.6, 0.8, 0.9, 0.9], accumulate=2)
    changes = {"accumulate": 2, "ema": {"decay": 0.9}}
    held = teacher()
    watched = weakref.ref(held)
    trained = engine(
        task, train_section(compile=True, **changes), distillation=Distillation(held, schedule(0.7, hold_steps=100))
    )
    del held
    list(trained.train())
    assert task.asked_with_teacher == [True] * 30 + [False] * 10
    assert watched() is None
    assert len(graphs) == 1
    eager = engine(
        ToyTask(scores=task.scores, accumulate=2),
        train_section(**changes),
        Distillation(teacher(), schedule(0.7, hold_steps=100)),
    )
    list(eager.train())
    assert len(graphs) == 1
    for name, value in eager.state_dict()["model"].items():
        torch.testing.assert_close(trained.state_dict()["model"][name], value)


def test_accumulated_gradients_lie_outside_of_cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    trained = engine(ToyTask(accumulate=2), train_section(compile="reduce-overhead", accumulate=2))
    places = [parameter.grad.data_ptr() for parameter in trained.student.parameters()]
    list(trained.train())
    assert [parameter.grad.data_ptr() for parameter in trained.student.parameters()] == places
    plain = engine(ToyTask(accumulate=2), train_section(accumulate=2))
    list(plain.train())
    for name, value in plain.state_dict()["model"].items():
        assert torch.equal(trained.state_dict()["model"][name], value)


def test_a_compiled_teacher_has_the_same_outputs_and_is_freed_after_the_switch(graphs: list[Any]) -> None:
    def trained(compiled: bool) -> tuple[Engine, list[Any], bool]:
        clock = Clock()
        model = teacher().model
        call = Compiled(model, True, "teacher.compile") if compiled else None
        held = FrozenTeacher(model, device=CPU, compiled=call, clock=clock)
        watched = weakref.ref(model)
        del model, call
        run = engine(
            ToyTask(scores=[0.6, 0.8, 0.9, 0.9]),
            distillation=Distillation(held, schedule(0.7, warmup_steps=4, hold_steps=100)),
            clock=clock,
        )
        del held
        return run, list(run.train()), watched() is None

    (eager, _, _), (compiled, rows, gone) = trained(False), trained(True)
    assert len(graphs) == 1
    assert gone
    for name, value in eager.state_dict()["model"].items():
        assert torch.equal(compiled.state_dict()["model"][name], value)
    seconds = [row.clock for row in rows if isinstance(row, StepRow)]
    assert 0 < seconds[0]["teacher"] < seconds[0]["compile"]  # the first answer, at step 1, includes the compilation


@pytest.mark.parametrize("compiled", [True, False])
def test_one_off_costs_are_counted_separately(compiled: bool, graphs: list[Any]) -> None:
    """These are in the first step of a process and, if compiled, in the first step with each shape."""

    class Growing(ToyTask):
        def train_batches(self, first_step: int) -> Iterator[ToyBatch]:
            for step, batch in enumerate(super().train_batches(first_step)):
                rows = slice(0, 2 if step < 3 else 4)
                yield ToyBatch(batch.inputs[rows], batch.targets[rows], batch.ids[rows])

    now = [0.0]

    def tick() -> float:
        now[0] += 1.0
        return now[0]

    section = train_section(steps=6, log_every=1, validate_every="6step", compile=compiled)
    rows = [row for row in engine(Growing(), section, clock=Clock(now=tick)).train() if isinstance(row, StepRow)]
    seconds = [row.clock["compile"] for row in rows]
    assert seconds[0] > 0
    assert seconds[1] == seconds[2] == seconds[0]
    assert (seconds[3] > seconds[2]) == compiled
    assert seconds[4] == seconds[5] == seconds[3]
