"""The training loop on a task that can be checked by hand: linear student and teacher, numbered batches."""

import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_ranks, values
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from w2skd.errors import TrainingError
from w2skd.method.schedule import DistillSchedule, Switch
from w2skd.method.teacher import FrozenTeacher, state_fingerprint
from w2skd.platform.ranks import Ranks, process_group
from w2skd.recipe.schema import TrainSection
from w2skd.records.rows import EvalRow, EventRow, StepRow
from w2skd.tasks.base import Evaluation, Losses, Metric, Remark, Role, Snapshot
from w2skd.training.clock import Clock
from w2skd.training.compiled import Compiled
from w2skd.training.engine import Distillation, Engine, SaveDue, evaluate, weigh
from w2skd.training.process import Process

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ToyBatch:
    inputs: Tensor
    targets: Tensor
    ids: Tensor

    @property
    def model_inputs(self) -> tuple[Tensor, ...]:
        return (self.inputs,)

    def __len__(self) -> int:
        return len(self.ids)


class ToyTask:
    """Learn y = 2x. Batch k depends on k only. The metric is a scripted score, or the negative loss."""

    metric = Metric("score", True)
    steps_per_epoch = 5

    def __init__(self, accumulate: int = 1, scores: list[float] | None = None, poison: tuple[int, ...] = ()):
        self.accumulate = accumulate
        self.scores = scores
        self.poison = poison
        self.evaluations = 0
        self.asked_with_teacher: list[bool] = []
        self.dropout_draws: list[Tensor] = []

    def describe_data(self) -> dict[str, str | int]:
        return {}

    def describe_model(self) -> dict[str, Any]:
        return {}

    def build_model(self, role: Role) -> nn.Module:
        return nn.Linear(1, 1)

    def example_batch(self) -> ToyBatch:
        return next(self.train_batches(0))

    def train_batches(self, first_step: int) -> Iterator[ToyBatch]:
        step = first_step
        while True:
            inputs = torch.arange(4 * step, 4 * step + 4, dtype=torch.float32).remainder(7)[:, None]
            if step in self.poison:
                inputs = inputs * torch.nan
            for part in range(self.accumulate):
                rows = slice(part * 4 // self.accumulate, (part + 1) * 4 // self.accumulate)
                yield ToyBatch(inputs[rows], 2 * inputs[rows], torch.arange(4 * step, 4 * step + 4)[rows])
            step += 1

    def losses(self, student: nn.Module, teacher: FrozenTeacher | None, batch: ToyBatch) -> Losses:
        self.asked_with_teacher.append(teacher is not None)
        self.dropout_draws.append(torch.rand(1))
        predictions = student(batch.inputs)
        task = {"mse": nn.functional.mse_loss(predictions, batch.targets)}
        distill = {} if teacher is None else {"mse": nn.functional.mse_loss(predictions, teacher(batch.inputs))}
        return Losses(task, distill)

    def evaluate(self, model: nn.Module, *, with_predictions: bool = False) -> Evaluation:
        assert not model.training
        value = self.scores[self.evaluations] if self.scores else -float(model(torch.ones(1, 1)).sub(2).square())
        self.evaluations += 1
        return Evaluation({"score": value})


def train_section(**changes: Any) -> TrainSection:
    values = {
        "steps": 20,
        "batch_size": 4,
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
        "lr_schedule": {"name": "constant"},
        "log_every": 5,
        "validate_every": "5step",
    }
    return TrainSection.model_validate({**values, **changes})


def schedule(teacher_value: float | None = None, **changes: Any) -> DistillSchedule:
    arguments = {"weight": 1.0, "warmup_steps": 0, "hold_steps": 10, "decay_steps": 4}
    switch = Switch(teacher_value, higher_is_better=True, patience=changes.pop("patience", 2))
    return DistillSchedule(**{**arguments, **changes}, switch=switch)


def teacher(clock: Clock | None = None) -> FrozenTeacher:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 1.5)
    nn.init.zeros_(model.bias)
    return FrozenTeacher(model, device=CPU, clock=clock)


def engine(
    task: ToyTask,
    section: TrainSection | None = None,
    distillation: Distillation | None = None,
    student: nn.Module | None = None,
    **process: Any,
) -> Engine:
    torch.manual_seed(0)
    return Engine(
        task,
        student or nn.Linear(1, 1),
        train=section or train_section(),
        seed=1,
        process=Process(CPU, **process),
        distillation=distillation,
    )


def test_baseline_equals_a_hand_written_loop() -> None:
    task = ToyTask()
    trained = engine(task, train_section(clip_grad_norm=1.0))
    reference = nn.Linear(1, 1)
    reference.load_state_dict(trained.student.state_dict())
    list(trained.train())
    optimizer = torch.optim.SGD(reference.parameters(), 0.01, momentum=0.9)
    for batch, _ in zip(task.train_batches(0), range(20), strict=False):
        optimizer.zero_grad()
        nn.functional.mse_loss(reference(batch.inputs), batch.targets).backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()
    for ours, theirs in zip(trained.student.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_rows_come_at_log_points_and_validations() -> None:
    task = ToyTask(scores=[0.1, 0.2])
    rows = list(engine(task, train_section(log_every=4, validate_every="10step")).train())
    assert [row.step for row in rows if isinstance(row, StepRow)] == [4, 8, 10, 12, 16, 20]
    assert [(row.step, row.epoch, row.examples) for row in rows if isinstance(row, EvalRow)] == [
        (10, 2, 40),
        (20, 4, 80),
    ]
    assert [row.best for row in rows if isinstance(row, SaveDue)] == [True, True]


def test_the_end_is_validated_even_between_intervals() -> None:
    rows = list(engine(ToyTask(), train_section(steps=7)).train())
    assert [row.step for row in rows if isinstance(row, EvalRow)] == [5, 7]
    assert isinstance(rows[-1], SaveDue)
    assert not rows[-1].stopping


def test_lambda_is_applied_in_one_place_and_the_task_weight_never_jumps() -> None:
    losses = Losses({"a": torch.tensor(2.0), "b": torch.tensor(3.0)}, {"kl": torch.tensor(10.0)})
    assert weigh(losses, 0.25).item() == 7.5
    assert weigh(replace_distill(losses), 0.25).item() == 5.0
    rows = list(engine(ToyTask(), train_section(log_every=1), distillation=Distillation(teacher(), schedule())).train())
    steps = [row for row in rows if isinstance(row, StepRow)]
    assert [row.lambda_ for row in steps] == [1.0] * 11 + [0.75, 0.5, 0.25] + [0.0] * 6
    for row in steps:
        assert row.loss == pytest.approx(
            row.parts["task.mse"] + row.lambda_ * row.parts.get("distill.mse", 0), rel=1e-5
        )


def replace_distill(losses: Losses) -> Losses:
    return losses._replace(distill={})


def test_the_teacher_is_asked_only_while_lambda_is_above_zero() -> None:
    task = ToyTask()
    list(
        engine(
            task, distillation=Distillation(teacher(), schedule(warmup_steps=2, hold_steps=3, decay_steps=2))
        ).train()
    )
    # Step 0 of a warm-up has weight 0; the last step of the decay has a positive weight.
    assert task.asked_with_teacher == [False] + [True] * 6 + [False] * 13


def test_the_switch_needs_two_validations_in_a_row_and_frees_the_teacher() -> None:
    task = ToyTask(scores=[0.8, 0.6, 0.8, 0.9])
    held = teacher()
    watched = weakref.ref(held)
    trained = engine(task, distillation=Distillation(held, schedule(0.7, hold_steps=100)))
    del held
    events = []
    for row in trained.train():
        if isinstance(row, EvalRow) and row.step == 15:
            assert watched() is not None
        if isinstance(row, EventRow):
            events.append(row)
            gc.collect()
            assert watched() is None
    expected = {"reason": "surpassed", "student": 0.9, "teacher": 0.7, "patience": 2, "epoch": 4.0}
    assert events == [EventRow(20, "distillation_off", expected)]


def test_the_teacher_is_never_called_after_the_switch() -> None:
    task = ToyTask(scores=[0.8, 0.9, 0.9, 0.9])
    list(engine(task, distillation=Distillation(teacher(), schedule(0.7, hold_steps=100))).train())
    assert task.asked_with_teacher == [True] * 10 + [False] * 10


def test_a_weight_of_zero_trains_exactly_like_the_baseline() -> None:
    plain, distilled = engine(ToyTask()), engine(ToyTask(), distillation=Distillation(teacher(), schedule(weight=0.0)))
    list(plain.train()), list(distilled.train())
    for ours, theirs in zip(plain.student.parameters(), distilled.student.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_teacher_is_not_in_the_state_and_does_not_change() -> None:
    held = teacher()
    before = state_fingerprint(held.model)
    trained = engine(ToyTask(), distillation=Distillation(held, schedule()))
    list(trained.train())
    assert state_fingerprint(held.model) == before
    assert set(trained.state_dict()["model"]) == {"weight", "bias"}
    assert "teacher" not in trained.state_dict()


def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    whole, parts = engine(ToyTask()), engine(ToyTask(accumulate=2), train_section(accumulate=2))
    rows = [list(trained.train()) for trained in (whole, parts)]
    for ours, theirs in zip(whole.student.parameters(), parts.student.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    losses = [[row.loss for row in run if isinstance(row, StepRow)] for run in rows]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("optimizer", [{"name": "sgd", "lr": 0.01, "momentum": 0.9}, {"name": "adamw", "lr": 0.01}])
@pytest.mark.parametrize(
    ("ema", "precision"),
    [
        (None, "fp32"),
        ({"decay": 0.9}, "fp32"),
        ({"decay": 0.9}, "fp16"),
        ({"half_life": "1ep", "ramp_up": 0.3}, "fp32"),
    ],
)
@pytest.mark.parametrize("cut", [3, 8, 12, 15, 18])
def test_a_resume_at_any_step_ends_bit_for_bit_the_same(
    optimizer: dict[str, Any], ema: Any, precision: str, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("w2skd.training.precision.GROWTH_STEPS", 4)  # so that the scale changes before and after a cut
    section = train_section(optimizer=optimizer, ema=ema, precision=precision)

    def fresh(stop_at: int | None = None) -> Engine:
        distillation = Distillation(teacher(), schedule(-0.5, patience=1, hold_steps=8))
        made = engine(ToyTask(scores=None), section, distillation, should_stop=lambda: made.step == stop_at)
        return made

    undisturbed = fresh()
    rows = list(undisturbed.train())
    first = fresh(stop_at=cut)
    before = list(first.train())
    assert first.step == cut
    second = fresh()
    second.load_state_dict(first.state_dict())
    after = list(second.train())
    for name, value in undisturbed.evaluated_model.state_dict().items():
        assert torch.equal(value, second.evaluated_model.state_dict()[name])
    assert evaluations(before + after) == evaluations(rows)
    assert second.best == undisturbed.best
    assert second.loss_scale.state_dict() == undisturbed.loss_scale.state_dict()


def evaluations(rows: list[Any]) -> list[Any]:
    kept = [row for row in rows if isinstance(row, EvalRow) or (isinstance(row, EventRow) and row.name != "rescaled")]
    return [replace(row, clock={}) if isinstance(row, EvalRow) else row for row in kept]


def test_random_draws_are_a_function_of_the_step() -> None:
    whole, cut = ToyTask(), ToyTask()
    list(engine(whole).train())
    resumed = engine(cut)
    state = resumed.state_dict() | {"step": 12}
    resumed.load_state_dict(state)
    torch.rand(100)  # draws of other code in between
    list(resumed.train())
    assert torch.equal(torch.cat(cut.dropout_draws), torch.cat(whole.dropout_draws)[12:])
    assert len(torch.cat(whole.dropout_draws).unique()) == 20


def test_a_non_finite_step_changes_nothing_and_is_reported_with_its_examples() -> None:
    poisoned = engine(ToyTask(poison=(7,)))
    rows = []
    for row in poisoned.train():
        rows.append(row)
    events = [row for row in rows if isinstance(row, EventRow)]
    assert events == [EventRow(10, "non_finite", {"steps": [7], "ids": [28, 29, 30, 31]})]
    assert all(parameter.isfinite().all() for parameter in poisoned.student.parameters())


def test_non_finite_for_several_steps_stops_with_step_and_learning_rate() -> None:
    with pytest.raises(TrainingError, match=r"3 steps in a row.*step 9.*learning rate 0\.01"):
        list(engine(ToyTask(poison=(7, 8, 9)), train_section(max_non_finite_steps=2)).train())


def test_float16_adapts_its_scale_and_reports_skipped_steps() -> None:
    trained = engine(ToyTask(), train_section(steps=60, precision="fp16"))
    rows = list(trained.train())
    events = [row for row in rows if isinstance(row, EventRow)]
    assert {event.name for event in events} == {"rescaled"}
    skipped = sum(event.details["skipped_steps"] for event in events)
    assert 0 < skipped < 8  # a gradient of about 10 times 2^16 overflows float16
    assert trained.loss_scale.value == 2.0 ** (16 - skipped) == events[-1].details["loss_scale"]
    losses = [row.loss for row in rows if isinstance(row, StepRow)]
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize("optimizer", [{"name": "sgd", "lr": 0.01, "momentum": 0.9}, {"name": "adamw", "lr": 0.01}])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_clipped_steps_in_float16_are_those_of_float32(
    optimizer: dict[str, Any], accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("w2skd.training.precision.FIRST_SCALE", 256.0)  # nothing overflows, so no step is skipped
    exact = engine(ToyTask(), train_section(optimizer=optimizer, clip_grad_norm=1.0))
    section = train_section(optimizer=optimizer, clip_grad_norm=1.0, precision="fp16", accumulate=accumulate)
    scaled = engine(ToyTask(accumulate), section)
    list(exact.train()), list(scaled.train())
    for ours, theirs in zip(scaled.student.parameters(), exact.student.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)


def test_float16_without_a_finite_step_stops() -> None:
    poison = tuple(range(60))
    rows: list[Any] = []
    with pytest.raises(TrainingError, match=r"non-finite for 4 steps in a row, last at step 19"):
        rows.extend(
            engine(ToyTask(poison=poison), train_section(steps=60, precision="fp16", max_non_finite_steps=3)).train()
        )


def overflow_on_rank_1(ranks: Ranks) -> tuple[Any, ...]:
    with process_group(ranks, CPU):
        trained = engine(
            ToyTask(poison=(7, 12) if ranks.rank == 1 else ()), train_section(precision="fp16"), ranks=ranks
        )
        events = [row for row in trained.train() if isinstance(row, EventRow)]
        return events, trained.loss_scale.state_dict(), trained.student.weight.item()


def test_ranks_agree_on_the_scale_when_one_of_them_overflows() -> None:
    ours, theirs = values(run_ranks(overflow_on_rank_1))
    assert ours == theirs
    alone = engine(ToyTask(poison=(7, 12)), train_section(precision="fp16"))
    events = [row for row in alone.train() if isinstance(row, EventRow)]
    assert (events, alone.loss_scale.state_dict()) == ours[:2]
    assert alone.student.weight.item() == pytest.approx(ours[2], rel=1e-4)


def test_a_checkpoint_without_a_loss_scale_loads() -> None:
    state = engine(ToyTask()).state_dict()
    assert state.pop("loss_scale") is None
    resumed = engine(ToyTask(), train_section(precision="fp16"))
    resumed.load_state_dict(state)
    assert resumed.loss_scale.state_dict() == {"scale": 2.0**16, "good_steps": 0}


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


class NoWaiting(TorchDispatchMode):
    """Forbid synchronisation with the device: conversions of a tensor to a number or a bool."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a step waits for its device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("optimizer", [{"name": "sgd", "lr": 0.01, "momentum": 0.9}, {"name": "adamw", "lr": 0.01}])
def test_a_step_never_synchronises_with_the_device(
    optimizer: dict[str, Any], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = train_section(optimizer=optimizer, precision=precision, clip_grad_norm=1.0, accumulate=2)
    trained = engine(ToyTask(accumulate=2, poison=(2,)), section, distillation=Distillation(teacher(), schedule()))
    batches = trained.task.train_batches(0)
    for name in ("tolist", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, lambda *_, **__: pytest.fail("a step waits for its device"))
    with NoWaiting():
        for _ in range(4):
            trained._take_step(batches)
    # The check does detect a log row's synchronisation, and a tensor in a condition.
    with pytest.raises(pytest.fail.Exception, match="waits"):
        list(trained._log())
    with NoWaiting(), pytest.raises(AssertionError, match="waits"):
        bool(torch.ones(()))


def test_a_stop_request_ends_the_run_with_a_checkpoint() -> None:
    stopped = engine(ToyTask(), should_stop=lambda: True)
    rows = list(stopped.train())
    assert rows[-1] == SaveDue(best=False, stopping=True)
    assert stopped.step == 1


def test_the_average_is_validated() -> None:
    trained = engine(ToyTask(), train_section(ema={"decay": 0.9}))
    list(trained.train())
    assert trained.evaluated_model is not trained.student
    assert not torch.equal(trained.evaluated_model.weight, trained.student.weight)


def test_a_half_life_counts_the_tasks_epochs_and_the_runs_steps() -> None:
    averages = []
    for half_life in ("10step", "2ep", "0.5run"):
        trained = engine(ToyTask(), train_section(ema={"half_life": half_life}))
        list(trained.train())
        averages.append(trained.evaluated_model.state_dict()["weight"])
    assert torch.equal(averages[0], averages[1])
    assert torch.equal(averages[0], averages[2])


def test_remarks_and_a_snapshot_follow_their_validation_and_precede_its_checkpoint() -> None:
    def draw(path: Path) -> None:
        raise AssertionError(f"the engine draws {path} itself")

    class Drawing(ToyTask):
        def evaluate(self, model: nn.Module, *, with_predictions: bool = False) -> Evaluation:
            plain = super().evaluate(model)
            return replace(plain, notes=("one", "two"), snapshot=draw if self.evaluations == 2 else None)

    rows = list(engine(Drawing(), train_section(steps=10, log_every=100)).train())
    assert [type(row) for row in rows] == [
        *(StepRow, EvalRow, Remark, Remark, SaveDue),
        *(StepRow, EvalRow, Remark, Remark, Snapshot, SaveDue),
    ]
    assert rows[2:4] == [Remark(5, "one"), Remark(5, "two")]
    assert rows[-2] == Snapshot(10, draw)


def test_evaluation_restores_the_mode() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    model.train()
    evaluate(ToyTask(), model, CPU, "fp32")
    assert model.training


def test_evaluation_and_training_time_are_separate() -> None:
    now = [0.0]

    def tick() -> float:
        now[0] += 1.0
        return now[0]

    rows = list(engine(ToyTask(), clock=Clock(now=tick)).train())
    last = [row for row in rows if isinstance(row, EvalRow)][-1]
    assert last.clock["evaluate"] > 0
    assert last.clock["train"] > 0
    assert last.clock["data"] > 0
    assert last.clock["teacher"] == 0
