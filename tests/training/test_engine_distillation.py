"""The training loop with a teacher: the weight of its loss, the switch, and what is left of it."""

import gc
import weakref

import pytest
import torch
from toy import ToyTask, engine, schedule, teacher, train_section

from w2skd.method.teacher import state_fingerprint
from w2skd.records.rows import EvalRow, EventRow, StepRow
from w2skd.tasks.base import Losses
from w2skd.training.engine import Distillation, weigh


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
