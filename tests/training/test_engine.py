"""The training loop on a task that can be checked by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy import CPU, ToyTask, engine, schedule, teacher, train_section

from w2skd.records.rows import EvalRow, EventRow, StepRow
from w2skd.tasks.base import Evaluation, Remark, Snapshot
from w2skd.training.clock import Clock
from w2skd.training.engine import Distillation, Engine, SaveDue, evaluate


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
