import copy
import math

import pytest
import torch
from torch import nn

from w2skd.platform.ranks import Ranks
from w2skd.records.rows import EventRow
from w2skd.training.finite import BadStep, FiniteGuard, take_step
from w2skd.training.precision import LossScale

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, weight_decay=1e-2, fused=True),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-2, fused=True),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=1e-2, fused=True),
}
BAD, GOOD = torch.tensor(1.0), torch.tensor(0.0)
UNSCALED = LossScale(torch.device("cpu"), enabled=False)


@pytest.fixture(params=OPTIMIZERS)
def make(request):
    def make_pair(device="cpu"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 3)).to(device)
        return model, OPTIMIZERS[request.param](model.parameters())

    return make_pair


def set_gradients(model, seed, poison=False):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    if poison:
        next(model.parameters()).grad[0, 0, 0, 0] = math.nan


def everything(model, optimizer):
    """Return all values that a step can change. A missing momentum counts as zero."""
    values = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        values += [state[name].clone() for name in sorted(state)]
    return values


def assert_identical(first, second):
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_finite_step_is_a_plain_step(make):
    (guarded, guarded_optimizer), (plain, plain_optimizer) = make(), make()
    for seed in range(4):
        set_gradients(guarded, seed)
        set_gradients(plain, seed)
        take_step(guarded_optimizer, GOOD)
        plain_optimizer.step()
        assert_identical(everything(guarded, guarded_optimizer), everything(plain, plain_optimizer))
    assert not hasattr(guarded_optimizer, "found_inf")


def test_a_bad_step_changes_nothing(make):
    model, optimizer = make()
    for seed in range(2):
        set_gradients(model, seed)
        take_step(optimizer, GOOD)
    before = everything(model, optimizer)
    set_gradients(model, 9, poison=True)
    take_step(optimizer, BAD)
    assert_identical(everything(model, optimizer), before)


def test_a_bad_first_step_leaves_no_trace(make):
    (guarded, guarded_optimizer), (plain, plain_optimizer) = make(), make()
    before = [parameter.detach().clone() for parameter in guarded.parameters()]
    set_gradients(guarded, 9, poison=True)
    take_step(guarded_optimizer, BAD)
    assert_identical([parameter.detach() for parameter in guarded.parameters()], before)
    assert all(value.isfinite().all() for value in everything(guarded, guarded_optimizer))
    for seed in range(3):
        set_gradients(guarded, seed)
        set_gradients(plain, seed)
        take_step(guarded_optimizer, GOOD)
        plain_optimizer.step()
        assert_identical(everything(guarded, guarded_optimizer), everything(plain, plain_optimizer))


def test_scaled_gradients_make_the_same_step(make):
    (scaled, scaled_optimizer), (plain, plain_optimizer) = make(), make()
    for seed in range(3):
        set_gradients(scaled, seed)
        set_gradients(plain, seed)
        for parameter in scaled.parameters():
            parameter.grad.mul_(1024)
        take_step(scaled_optimizer, GOOD, torch.tensor(1024.0))
        plain_optimizer.step()
        assert_identical(everything(scaled, scaled_optimizer), everything(plain, plain_optimizer))
    before = everything(scaled, scaled_optimizer)
    set_gradients(scaled, 9, poison=True)
    take_step(scaled_optimizer, BAD, torch.tensor(1024.0))
    assert_identical(everything(scaled, scaled_optimizer), before)
    assert not hasattr(scaled_optimizer, "grad_scale")


def test_parameters_can_get_their_first_gradient_later(make):
    model, optimizer = make()
    set_gradients(model, 0)
    late = list(model.parameters())[-1]
    late.grad = None
    take_step(optimizer, GOOD)
    before = late.detach().clone()
    set_gradients(model, 1)
    take_step(optimizer, GOOD)
    assert late.isfinite().all()
    assert not torch.equal(late.detach(), before)


def test_frozen_parameters_never_change(make):
    model, optimizer = make()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    before = frozen.clone()
    for seed, flag in enumerate((BAD, GOOD, BAD, GOOD)):
        set_gradients(model, seed)
        frozen.grad = None
        take_step(optimizer, flag)
    assert torch.equal(frozen, before)
    assert frozen not in optimizer.state
    again, other = make()
    next(again.parameters()).requires_grad_(False)
    again.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for pair in ((model, optimizer), (again, other)):
        set_gradients(pair[0], 7)
        next(pair[0].parameters()).grad = None
        take_step(pair[1], GOOD)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))


def test_an_optimizer_that_cannot_suppress_is_refused():
    parameter = nn.Parameter(torch.zeros(2))
    with pytest.raises(AssertionError, match="fused"):
        take_step(torch.optim.SGD([parameter], lr=0.1), GOOD)


@pytest.mark.parametrize(("norm", "flag"), [(0.0, 0.0), (1e30, 0.0), (math.nan, 1.0), (math.inf, 1.0)])
def test_the_flag_is_a_tensor_for_the_optimizer(norm, flag):
    found_inf = FiniteGuard([], 3, UNSCALED).check(0, torch.tensor(norm, requires_grad=True), [])
    assert found_inf.dtype == torch.float32
    assert found_inf.shape == ()
    assert not found_inf.requires_grad
    assert found_inf.item() == flag


def feed(guard, norms, first_step=0):
    for step, norm in enumerate(norms, first_step):
        guard.check(step, torch.tensor(norm), [torch.tensor([10 * step, 10 * step + 1]), torch.tensor([10 * step + 2])])


def test_bad_steps_are_reported_once_with_their_examples():
    guard = FiniteGuard([], 3, UNSCALED)
    feed(guard, [1.0, math.nan, 1.0, math.inf])
    assert guard.report() == [BadStep(1, [10, 11, 12]), BadStep(3, [30, 31, 32])]
    assert guard.report() == []
    feed(guard, [1.0])
    assert guard.report() == []


def test_the_caller_may_change_its_list_of_ids():
    guard, ids = FiniteGuard([], 3, UNSCALED), [torch.tensor([4])]
    guard.check(0, torch.tensor(math.nan), ids)
    ids.clear()
    assert guard.report() == [BadStep(0, [4])]


def test_bad_steps_in_a_row_are_counted_across_reports():
    guard = FiniteGuard([], 3, UNSCALED)
    feed(guard, [1.0, math.nan, math.nan])
    guard.report()
    assert (guard.in_a_row, guard.exceeded) == (2, False)
    feed(guard, [math.nan])
    guard.report()
    assert (guard.in_a_row, guard.exceeded) == (3, False)
    feed(guard, [math.nan])
    guard.report()
    assert (guard.in_a_row, guard.exceeded) == (4, True)


def test_a_finite_step_ends_the_row_but_does_not_hide_it():
    guard = FiniteGuard([], 2, UNSCALED)
    feed(guard, [math.nan, math.nan, 1.0, math.nan])
    guard.report()
    assert (guard.in_a_row, guard.exceeded) == (1, False)
    feed(guard, [math.nan, math.nan, 1.0])
    guard.report()
    assert (guard.in_a_row, guard.exceeded) == (0, True)


def test_the_count_survives_a_resume():
    first, second = FiniteGuard([], 3, UNSCALED), FiniteGuard([], 3, UNSCALED)
    feed(first, [math.nan, math.nan])
    first.report()
    second.load_state_dict(first.state_dict())
    feed(second, [math.nan, math.nan])
    second.report()
    assert second.exceeded


def test_a_state_with_unreported_steps_is_refused():
    guard = FiniteGuard([], 3, UNSCALED)
    feed(guard, [1.0])
    with pytest.raises(AssertionError, match="1 steps"):
        guard.state_dict()


def batch_norm_after(model, batches):
    for batch in batches:
        model(batch)
    return copy.deepcopy(dict(model.named_buffers()))


def test_statistics_are_restored_from_the_last_report_without_a_bad_step():
    torch.manual_seed(0)
    model = nn.BatchNorm1d(3).train()
    guard = FiniteGuard([model], 3, UNSCALED)
    clean = batch_norm_after(model, [torch.randn(8, 3) for _ in range(2)])
    feed(guard, [1.0, 1.0])
    guard.report()
    spoilt = batch_norm_after(model, [torch.full((8, 3), math.nan), torch.randn(8, 3)])
    assert spoilt["running_mean"].isnan().all()  # a NaN stays forever
    feed(guard, [math.nan, 1.0], first_step=2)
    guard.report()
    assert torch.equal(model.running_mean, clean["running_mean"])
    assert torch.equal(model.running_var, clean["running_var"])


def test_a_bad_first_step_restores_the_statistics_of_the_start_or_the_checkpoint():
    model = nn.BatchNorm1d(3).train()
    guard = FiniteGuard([model], 3, UNSCALED)
    with torch.no_grad():
        model.running_mean.fill_(7.0)
    guard.load_state_dict({"in_a_row": 0})
    model(torch.full((8, 3), math.nan))
    feed(guard, [math.nan])
    guard.report()
    assert model.running_mean.tolist() == [7.0] * 3
    assert model.running_var.tolist() == [1.0] * 3


def test_buffers_may_appear_and_change_their_shape():
    model = torch.nn.Linear(2, 2)
    model.register_buffer("cache", None, persistent=False)
    guard = FiniteGuard([model], 3, UNSCALED)
    for rows in (4, 3):
        model.cache = torch.full((rows,), float(rows))
        feed(guard, [1.0])
        assert guard.report() == []
    model.cache.fill_(math.nan)
    feed(guard, [math.nan])
    guard.report()
    assert model.cache.tolist() == [3.0] * 3


def feed_scaled(guard, scale, norms):
    """Use guard and scale as a training step does."""
    for step, norm in enumerate(norms):
        scale.update(guard.check(step, torch.tensor(norm), [torch.tensor([step])]))


def test_an_overflow_is_no_bad_step_while_the_scale_can_fall():
    scale = LossScale(torch.device("cpu"), enabled=True)
    guard = FiniteGuard([], 2, scale)
    feed_scaled(guard, scale, [1.0, math.inf, 1.0, math.inf, math.nan, 1.0])
    assert guard.report() == []
    assert (guard.rescaled_steps, guard.in_a_row, guard.exceeded) == (3, 0, False)
    assert list(guard.events(6, [], Ranks())) == [EventRow(6, "rescaled", {"skipped_steps": 3, "loss_scale": 2.0**13})]
    assert guard.report() == []
    assert guard.rescaled_steps == 0
    assert list(guard.events(6, [], Ranks())) == []


def test_at_the_lowest_scale_steps_are_bad_and_counted():
    scale = LossScale(torch.device("cpu"), enabled=True)
    guard = FiniteGuard([], 2, scale)
    feed_scaled(guard, scale, [math.nan] * 18)
    bad = guard.report()
    assert bad == [BadStep(16, [16]), BadStep(17, [17])]
    assert (guard.rescaled_steps, guard.in_a_row, guard.exceeded) == (16, 2, False)
    assert list(guard.events(18, bad, Ranks())) == [
        EventRow(18, "rescaled", {"skipped_steps": 16, "loss_scale": 1.0}),
        EventRow(18, "non_finite", {"steps": [16, 17], "ids": [16, 17]}),
    ]
    feed_scaled(guard, scale, [math.nan])
    guard.report()
    assert guard.exceeded


@pytest.mark.parametrize("overflow", ["backward", "forward"])
def test_an_overflow_restores_statistics_only_if_they_are_spoilt(overflow):
    model, scale = nn.BatchNorm1d(3).train(), LossScale(torch.device("cpu"), enabled=True)
    guard = FiniteGuard([model], 3, scale)
    model(torch.full((8, 3), math.inf if overflow == "forward" else 5.0))
    feed_scaled(guard, scale, [math.inf])
    assert guard.report() == []
    assert model.running_mean.tolist() == [0.5 if overflow == "backward" else 0.0] * 3
    model(torch.full((8, 3), math.nan))
    feed(guard, [math.nan])
    guard.report()  # restores what the report before has kept
    assert model.running_mean.tolist() == [0.5 if overflow == "backward" else 0.0] * 3


@pytest.mark.cuda
@pytest.mark.needs_gpu(reason="counts synchronisations")
def test_cuda_checks_and_steps_do_not_synchronise(make):
    model, optimizer = make("cuda")
    guard = FiniteGuard([model], 3, UNSCALED)

    def step(poison):
        set_gradients_on_cuda(model, poison)
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            take_step(optimizer, guard.check(0, norm, []))
        finally:
            torch.cuda.set_sync_debug_mode("default")

    step(poison=True)
    step(poison=False)
    before = everything(model, optimizer)
    step(poison=True)
    assert_identical(everything(model, optimizer), before)
    assert len(guard.report()) == 2


def set_gradients_on_cuda(model, poison):
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan if poison else 0.5)
