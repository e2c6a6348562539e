"""The training loop with non-finite losses, and in float16."""

from typing import Any

import pytest
import torch
from processes import run_ranks, values
from toy import CPU, ToyTask, engine, train_section

from w2skd.errors import TrainingError
from w2skd.platform.ranks import Ranks, process_group
from w2skd.records.rows import EventRow, StepRow


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
