import json
import math
import subprocess
import sys

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR

from w2skd.method.schedule import DistillSchedule, Phase, Switch, SwitchedOff
from w2skd.recipe.duration import Duration
from w2skd.recipe.schema import DistillSection, SoftenedDistillSection, SwitchSection
from w2skd.recipe.train import (
    ConstantSection,
    CosineSection,
    MultiStepSection,
    OneCycleSection,
    TriangularSection,
    WsdSection,
)
from w2skd.training.learning_rate import lr_factor


def schedule(**changes):
    of_switch = {key: changes.pop(key) for key in list(changes) if key in Switch.__dataclass_fields__}
    values = {"weight": 2.0, "warmup_steps": 4, "hold_steps": 3, "decay_steps": 5}
    switch = Switch(**{"teacher_value": None, "higher_is_better": True, **of_switch})
    return DistillSchedule(**{**values, **changes}, switch=switch)


def test_lambda_rises_holds_and_falls():
    weights = [schedule().weight_at(step) for step in range(14)]
    assert weights == pytest.approx([0, 0.5, 1, 1.5, 2, 2, 2, 2, 1.6, 1.2, 0.8, 0.4, 0, 0])


def test_phases_change_at_the_same_steps_as_lambda():
    phases = [schedule().phase_at(step) for step in range(13)]
    assert phases == [Phase.WARM_UP] * 4 + [Phase.HOLD] * 3 + [Phase.DECAY] * 5 + [Phase.OFF]
    assert schedule().end_step == 12


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"warmup_steps": 0}, [2, 2, 2, 2, 1.6]),
        ({"hold_steps": 0}, [0, 0.5, 1, 1.5, 2, 1.6]),
        ({"decay_steps": 0}, [0, 0.5, 1, 1.5, 2, 2, 2, 0]),
        ({"warmup_steps": 0, "hold_steps": 0, "decay_steps": 0}, [0, 0]),
        ({"weight": 0.0}, [0, 0, 0, 0, 0]),
    ],
)
def test_phases_of_length_zero_are_skipped(changes, expected):
    one = schedule(**changes)
    assert [one.weight_at(step) for step in range(len(expected))] == pytest.approx(expected)


def test_the_end_of_the_schedule_is_reported_once():
    one = schedule(teacher_value=0.5)
    events = [one.finish_step(steps_done) for steps_done in range(1, 15)]
    assert events == [None] * 11 + [SwitchedOff(12, "ended", None, 0.5)] + [None] * 2
    assert one.switched_off == events[11]


def test_observe_reports_the_end_to_a_loop_that_only_validates():
    one = schedule(teacher_value=0.5)
    assert one.observe(20, 0.9) == SwitchedOff(20, "ended", None, 0.5)
    assert one.observe(21, 0.9) is None


def test_patience_counts_validations_in_a_row():
    one = schedule(hold_steps=100, teacher_value=0.5, patience=2)
    assert [one.observe(step, value) for step, value in [(5, 0.6), (6, 0.4), (7, 0.6)]] == [None] * 3
    assert one.weight_at(8) == 2.0
    assert one.observe(8, 0.7) == SwitchedOff(8, "surpassed", 0.7, 0.5)
    assert one.weight_at(8) == one.weight_at(9) == 0
    assert one.phase_at(9) is Phase.OFF


def test_switching_off_is_permanent_and_reported_once():
    one = schedule(hold_steps=100, teacher_value=0.5, patience=1)
    assert one.observe(5, 0.6) is not None
    assert one.observe(6, 0.1) is None
    assert one.observe(7, 0.6) is None
    assert one.finish_step(200) is None
    assert one.switched_off == SwitchedOff(5, "surpassed", 0.6, 0.5, patience=1)
    assert one.weight_at(8) == 0


@pytest.mark.parametrize(
    ("higher_is_better", "value", "off"),
    [
        (True, 0.625, False),  # exactly the margin is not enough (all numbers are exact in binary)
        (True, 0.626, True),
        (True, 0.374, False),
        (False, 0.375, False),
        (False, 0.374, True),
        (False, 0.626, False),
        (True, math.nan, False),
        (False, math.nan, False),
    ],
)
def test_the_student_must_be_better_by_more_than_the_margin(higher_is_better, value, off):
    one = schedule(higher_is_better=higher_is_better, teacher_value=0.5, margin=0.125, patience=1)
    assert (one.observe(5, value) is not None) == off


def test_nan_resets_the_patience():
    one = schedule(hold_steps=100, teacher_value=0.5, patience=2)
    assert [one.observe(step, value) for step, value in enumerate([0.6, math.nan, 0.6])] == [None] * 3
    assert one.observe(4, 0.6) is not None


@pytest.mark.parametrize("teacher_value", [None, math.nan])
def test_an_unknown_teacher_is_never_surpassed(teacher_value):
    one = schedule(hold_steps=100, teacher_value=teacher_value, patience=1)
    assert one.observe(5, 1.0) is None
    assert one.weight_at(6) == 2.0


def test_the_state_is_plain_and_resumes():
    first, second = (schedule(hold_steps=100, teacher_value=0.5, patience=2) for _ in range(2))
    first.observe(5, 0.6)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert first.observe(6, 0.6) == second.observe(6, 0.6) == SwitchedOff(6, "surpassed", 0.6, 0.5)
    third = schedule(hold_steps=100, teacher_value=0.5, patience=2)
    third.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert third.switched_off == first.switched_off
    assert third.weight_at(7) == 0


@pytest.mark.parametrize("changes", [{"weight": -1.0}, {"hold_steps": -1}, {"margin": -0.1}, {"patience": 0}])
def test_impossible_arguments_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        schedule(**changes)


def test_a_recipe_has_lengths_in_three_units():
    section = DistillSection(
        weight=3.0,
        warmup=Duration(0.5, "ep"),
        hold=Duration(7, "step"),
        decay=Duration(0.25, "run"),
        switch=SwitchSection(margin=0.25, patience=3),
    )
    switch = Switch(2.0, higher_is_better=False, **section.switch.model_dump())
    one = DistillSchedule(weight=section.weight, **section.lengths(10, 40), switch=switch)
    assert (one.warmup_steps, one.hold_steps, one.decay_steps, one.weight) == (5, 7, 10, 3.0)
    assert [one.observe(step, 1.7) is not None for step in range(3)] == [False, False, True]


def test_the_temperature_is_linear_until_the_end_of_the_decay():
    spans = {"warmup": Duration(2, "step"), "hold": Duration(2, "step"), "decay": Duration(4, "step")}
    section = SoftenedDistillSection(temperature=4.0, final_temperature=2.0, **spans)
    assert [section.temperature_at(step, 10, 100) for step in (0, 4, 8, 50)] == [4.0, 3.0, 2.0, 2.0]
    assert SoftenedDistillSection(temperature=4.0, **spans).temperature_at(6, 10, 100) == 4.0


def torch_factors(make, total_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(total_steps):
        factors.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return factors


def factors(section, total_steps, steps_per_epoch=10):
    return [
        lr_factor(section, step, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
        for step in range(total_steps)
    ]


@pytest.mark.parametrize("final_ratio", [0.0, 0.1])
def test_cosine_equals_torch(final_ratio):
    section = CosineSection(name="cosine", final_ratio=final_ratio)
    expected = torch_factors(lambda optimizer: CosineAnnealingLR(optimizer, 37, eta_min=final_ratio), 37)
    assert factors(section, 37) == pytest.approx(expected, abs=1e-12)


def test_cosine_starts_at_the_peak_after_its_warm_up():
    section = CosineSection(name="cosine", warmup=Duration(4, "step"))
    expected = [0.25, 0.5, 0.75, 1.0, *torch_factors(lambda optimizer: CosineAnnealingLR(optimizer, 16), 16)]
    assert factors(section, 20) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("initial_ratio", "final_ratio"), [(0.04, 0.004), (0.1, 0.02)])
def test_one_cycle_equals_torch(initial_ratio, final_ratio):
    section = OneCycleSection(
        name="one_cycle", warmup=Duration(0.3, "run"), initial_ratio=initial_ratio, final_ratio=final_ratio
    )

    def make(optimizer):
        return OneCycleLR(
            optimizer,
            max_lr=1.0,
            total_steps=51,  # one more than used: torch raises past the end
            pct_start=15 / 51,
            anneal_strategy="cos",
            cycle_momentum=False,
            div_factor=1 / initial_ratio,
            final_div_factor=initial_ratio / final_ratio,
        )

    ours = [lr_factor(section, step, steps_per_epoch=10, total_steps=51) for step in range(50)]
    assert Duration(0.3, "run").steps(10, 51) == 15
    assert ours == pytest.approx(torch_factors(make, 50), abs=1e-12)
    assert max(ours) == ours[14] == 1.0
    assert lr_factor(section, 50, steps_per_epoch=10, total_steps=51) == pytest.approx(final_ratio)


def test_triangular_rises_and_falls_in_equal_steps():
    section = TriangularSection(name="triangular", warmup=Duration(5, "step"), initial_ratio=0.2, final_ratio=0.1)
    expected = [0.2, 0.4, 0.6, 0.8, 1.0, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1]
    assert factors(section, 11) == pytest.approx(expected, abs=1e-12)
    assert lr_factor(section, 11, steps_per_epoch=10, total_steps=11) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("shape", "cooldown"), [("linear", [1.0, 0.75, 0.5, 0.25]), ("sqrt", [1.0, 0.5, 1 - 0.5**0.5, 1 - 0.75**0.5])]
)
def test_wsd_rises_stays_and_cools_down(shape, cooldown):
    section = WsdSection(name="wsd", warmup=Duration(2, "step"), cooldown=Duration(0.4, "run"), shape=shape)
    assert factors(section, 10) == pytest.approx([0.5, *[1.0] * 5, *cooldown], abs=1e-12)
    assert lr_factor(section, 10, steps_per_epoch=10, total_steps=10) == 0.0


def test_wsd_runs_of_all_lengths_agree_before_their_cooldowns():
    section = WsdSection(name="wsd", warmup=Duration(1, "ep"), cooldown=Duration(0.2, "run"))
    for shorter in (20, 50, 80):
        before = round(0.8 * shorter)
        assert factors(section, shorter)[:before] == factors(section, 100)[:before]


def test_triangular_equals_torchs_one_cycle_with_linear_annealing():
    section = TriangularSection(name="triangular", warmup=Duration(0.3, "run"), initial_ratio=0.1, final_ratio=0.02)

    def make(optimizer):
        return OneCycleLR(
            optimizer,
            max_lr=1.0,
            total_steps=51,
            pct_start=15 / 51,
            anneal_strategy="linear",
            cycle_momentum=False,
            div_factor=10,
            final_div_factor=5,
        )

    ours = [lr_factor(section, step, steps_per_epoch=10, total_steps=51) for step in range(50)]
    assert ours == pytest.approx(torch_factors(make, 50), abs=1e-12)


def test_multi_step_equals_torch():
    section = MultiStepSection(
        name="multi_step", milestones=(Duration(1, "ep"), Duration(0.75, "run"), Duration(38, "step")), gamma=0.2
    )
    expected = torch_factors(lambda optimizer: MultiStepLR(optimizer, [10, 30, 38], gamma=0.2), 40)
    assert factors(section, 40) == pytest.approx(expected, abs=1e-12)


def test_constant_and_multi_step_warm_up_linearly():
    ramp = [1 / 3, 2 / 3, 1.0, 1.0, 1.0]
    assert factors(ConstantSection(name="constant", warmup=Duration(3, "step")), 5) == pytest.approx(ramp)
    section = MultiStepSection(name="multi_step", milestones=(Duration(4, "step"),), warmup=Duration(3, "step"))
    assert factors(section, 5) == pytest.approx([*ramp[:4], 0.1])


@pytest.mark.parametrize("warmup", ["0step", "1step", "1run"])
@pytest.mark.parametrize("name", ["cosine", "one_cycle", "triangular"])
@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_shortest_runs_stay_within_bounds(name, warmup, total_steps):
    sections = {"cosine": CosineSection, "one_cycle": OneCycleSection, "triangular": TriangularSection}
    section = sections[name](name=name, warmup=Duration.parse(warmup))
    values = factors(section, total_steps)
    assert all(0 <= value <= 1 for value in values)
    assert max(values) == 1.0  # reached even if the warm-up is empty or the whole run


def test_without_a_switch_only_the_schedule_ends_distillation():
    one = DistillSchedule(weight=1.0, warmup_steps=0, hold_steps=3, decay_steps=0)
    assert [one.observe(step, 1.0) for step in (1, 2)] == [None] * 2
    assert one.observe(3, 1.0) == SwitchedOff(3, "ended", None, None)


def test_the_schedule_needs_no_torch():
    code = "import sys, w2skd.method.schedule; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
