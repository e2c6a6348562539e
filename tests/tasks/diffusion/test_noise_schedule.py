"""The noising process against diffusers' own, and against formulas in float64."""

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from w2skd.tasks.diffusion.noise_schedule import Converted, NoiseSchedule
from w2skd.tasks.diffusion.recipe import DiffusionSection
from w2skd.tasks.diffusion.unet import build_unet

KINDS = [(beta, prediction) for beta in ("linear", "cosine") for prediction in ("epsilon", "v")]
ALL = torch.arange(1000)


def schedule(beta="linear", prediction="epsilon", timesteps=1000, dtype=torch.float64):
    section = DiffusionSection(timesteps=timesteps, beta_schedule=beta, prediction=prediction)
    return NoiseSchedule(section, "cpu", dtype)


def a_and_s(made):
    alpha_bars = made.alpha_bars[:, None, None, None]
    return alpha_bars.sqrt(), (1 - alpha_bars).sqrt()


def draws(count=1000, dtype=torch.float64):
    torch.manual_seed(0)
    return torch.rand(count, 3, 2, 2, dtype=dtype) * 2 - 1, torch.randn(count, 3, 2, 2, dtype=dtype)


def test_known_values_of_both_schedules():
    linear, cosine = schedule("linear"), schedule("cosine")
    assert linear.alpha_bars[0].item() == pytest.approx(1 - 0.0001, abs=1e-10)
    exact = math.prod(1 - (0.0001 + (0.02 - 0.0001) * step / 999) for step in range(1000))
    assert linear.alpha_bars[-1].item() == pytest.approx(exact, rel=1e-5)
    assert exact == pytest.approx(4.036e-5, rel=1e-3)

    def f(share):  # Nichol & Dhariwal 2021, equation 17
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    for step in (0, 250, 499, 900):
        assert cosine.alpha_bars[step].item() == pytest.approx(f((step + 1) / 1000) / f(0), rel=1e-5)


@pytest.mark.parametrize(("beta", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
@pytest.mark.parametrize("timesteps", [2, 10, 1000])
def test_noised_images_and_targets_equal_diffusers(beta, theirs, timesteps):
    images, noise = draws(timesteps, torch.float32)
    steps = torch.arange(timesteps)
    reference = DDPMScheduler(timesteps, beta_schedule=theirs)
    ours = schedule(beta, "v", timesteps, torch.float32)
    # Limited by the digits of diffusers' 1 - alpha_bar in float32.
    torch.testing.assert_close(
        ours.add_noise(images, noise, steps), reference.add_noise(images, noise, steps), atol=2e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        ours.target(images, noise, steps), reference.get_velocity(images, noise, steps), atol=2e-5, rtol=1e-5
    )
    assert schedule(beta, "epsilon", timesteps).target(images, noise, steps) is noise


@pytest.mark.parametrize(("beta", "prediction"), KINDS)
def test_conversions_of_exact_predictions_are_exact(beta, prediction):
    made = schedule(beta, prediction)
    images, noise = draws()
    a, s = a_and_s(made)
    noisy, v = made.add_noise(images, noise, ALL), a * noise - s * images
    torch.testing.assert_close(made.to_epsilon(v, noisy, ALL), noise, atol=1e-12, rtol=0)
    torch.testing.assert_close(made.to_v(noise, noisy, ALL) * a, v * a, atol=1e-12, rtol=0)


@pytest.mark.parametrize("beta", ["linear", "cosine"])
def test_conversions_invert_each_other(beta):
    made = schedule(beta)
    predicted, noisy = draws()
    torch.testing.assert_close(
        made.to_epsilon(made.to_v(predicted, noisy, ALL), noisy, ALL), predicted, atol=1e-12, rtol=0
    )
    torch.testing.assert_close(
        made.to_v(made.to_epsilon(predicted, noisy, ALL), noisy, ALL), predicted, atol=1e-10, rtol=0
    )


@pytest.mark.parametrize(("beta", "last_loss"), [("linear", 1 / 0.00635), ("cosine", 1 / 4.93e-5)])
def test_in_float32_conversion_to_epsilon_is_exact_and_to_v_divides_errors_by_a(beta, last_loss):
    exact, rounded = schedule(beta), schedule(beta, dtype=torch.float32)
    predicted, noisy = draws()
    single = predicted.float(), noisy.float(), ALL
    to_epsilon, to_v = rounded.to_epsilon(*single), rounded.to_v(*single)
    assert to_epsilon.dtype is torch.float32
    unit = 2.0**-24
    torch.testing.assert_close(to_epsilon.double(), exact.to_epsilon(predicted, noisy, ALL), atol=30 * unit, rtol=0)
    a = exact.alpha_bars.sqrt()
    errors = (to_v.double() - exact.to_v(predicted, noisy, ALL)).abs().amax((1, 2, 3)) * a
    assert errors.max() < 30 * unit
    assert 1 / a[-1].item() == pytest.approx(last_loss, rel=0.01)


@pytest.mark.parametrize("beta", ["linear", "cosine"])
def test_min_snr_weights_both_predictions_by_the_error_of_the_implied_image(beta):
    """Hang et al. 2023: min(snr, 5) times the squared error of the image, for either prediction."""
    made = schedule(beta)
    a, s = a_and_s(made)
    images, noise = draws()
    noisy = made.add_noise(images, noise, ALL)
    wrong = images + 0.1
    expected = (a**2 / s**2).clamp(max=5) * (wrong - images) ** 2
    epsilon, wrong_epsilon = noise, (noisy - a * wrong) / s
    v, wrong_v = a * noise - s * images, a * wrong_epsilon - s * wrong
    for prediction, error in (("epsilon", wrong_epsilon - epsilon), ("v", wrong_v - v)):
        weights = schedule(beta, prediction).weights(ALL, "min_snr")
        assert weights.dtype is torch.float32
        torch.testing.assert_close(weights.double()[:, None, None, None] * error**2, expected, rtol=1e-5, atol=1e-12)


def test_min_snr_weights_depend_on_timesteps_and_uniform_ones_do_not():
    made = schedule()
    steps = torch.tensor([999, 0, 500, 0])
    weights = made.weights(steps, "min_snr")
    assert weights[0] == 1, "more noise than signal: not capped"
    assert weights[1].item() == pytest.approx(5 / (0.9999 / 0.0001), rel=1e-4)
    assert weights[1] == weights[3]
    assert made.weights(steps, "uniform").tolist() == [1, 1, 1, 1]


def test_each_example_has_its_own_timestep():
    made = schedule(prediction="v")
    images, noise = draws(3)
    steps = torch.tensor([7, 900, 7])
    for index, step in enumerate(steps):
        one = images[index : index + 1], noise[index : index + 1], step[None]
        assert torch.equal(made.add_noise(images, noise, steps)[index], made.add_noise(*one)[0])
        assert torch.equal(made.target(images, noise, steps)[index], made.target(*one)[0])
        assert torch.equal(made.to_v(images, noise, steps)[index], made.to_v(*one)[0])


def test_a_schedule_has_no_state():
    assert schedule().state_dict() == {}


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_a_converted_network_predicts_the_recipes_quantity(prediction):
    torch.manual_seed(0)
    made = schedule(prediction=prediction, dtype=torch.float32)
    network = build_unet("unet_mini_nc16_rb1", size_px=8, classes=2).eval()
    converted = Converted(network, made).eval()
    noisy, steps, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 400, 999]), torch.tensor([0, 1, 0])
    with torch.no_grad():
        inner = network(noisy, steps, labels)
        expected = (made.to_epsilon if prediction == "epsilon" else made.to_v)(inner, noisy, steps)
        torch.testing.assert_close(converted(noisy, steps, labels), expected, rtol=0, atol=0)
        with torch.autocast("cpu", torch.bfloat16):
            inner, answer = network(noisy, steps, labels), converted(noisy, steps, labels)
        assert inner.dtype is torch.bfloat16
        assert answer.dtype is torch.float32
        expected = (made.to_epsilon if prediction == "epsilon" else made.to_v)(inner.float(), noisy, steps)
        torch.testing.assert_close(answer, expected, rtol=0, atol=0)


def test_moving_a_converted_network_moves_its_own_tables_only():
    made = schedule(dtype=torch.float32)
    converted = Converted(build_unet("unet_mini_nc16_rb1", size_px=8, classes=None), made)
    assert {name.partition(".")[0] for name in converted.state_dict()} == {"model"}
    converted.to("meta")
    noisy = torch.empty(1, 3, 8, 8, device="meta")
    assert converted(noisy, torch.zeros(1, dtype=torch.int64, device="meta")).is_meta
    assert not made.weights(torch.tensor([1]), "min_snr").is_meta


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_no_method_synchronises_with_the_device(prediction):
    """Meta tensors have no values: reading one is an error, where on a GPU it would synchronise."""
    made = NoiseSchedule(DiffusionSection(prediction=prediction), "meta")
    images, steps = torch.empty(2, 3, 8, 8, device="meta"), torch.empty(2, dtype=torch.int64, device="meta")
    for method in (made.add_noise, made.target, made.to_epsilon, made.to_v):
        assert method(images, images, steps).is_meta
    for weighting in ("uniform", "min_snr"):
        assert made.weights(steps, weighting).is_meta
