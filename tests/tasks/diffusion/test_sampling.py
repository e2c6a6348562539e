"""DDIM against diffusers' own scheduler, and with a perfect network."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import nn

from w2skd.tasks.diffusion.noise_schedule import NoiseSchedule
from w2skd.tasks.diffusion.recipe import DiffusionSection, SamplerSection
from w2skd.tasks.diffusion.sampling import chosen_timesteps, generate
from w2skd.tasks.diffusion.starting_noise import starting_noise
from w2skd.tasks.diffusion.unet import build_unet

THEIR_BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
THEIR_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}


def schedule(beta="linear", prediction="epsilon", timesteps=1000):
    section = DiffusionSection(timesteps=timesteps, beta_schedule=beta, prediction=prediction)
    return NoiseSchedule(section, "cpu")


def network(classes=None):
    torch.manual_seed(0)
    return build_unet("unet_mini_nc16_rb1", size_px=8, classes=classes).eval()


class Perfect(nn.Module):
    """Knows the only image, and records the timesteps of its calls."""

    def __init__(self, image, made):
        super().__init__()
        self.image, self.made, self.seen = image, made, []

    def forward(self, noisy, timesteps, labels=None):
        self.seen.append(timesteps.tolist())
        alpha_bars = self.made.alpha_bars[timesteps][:, None, None, None]
        a, s = alpha_bars.sqrt(), (1 - alpha_bars).sqrt()
        epsilon = (noisy.double() - a * self.image) / s
        return (epsilon if self.made.prediction == "epsilon" else a * epsilon - s * self.image).float()


def bare_loop(model, noise, made, sampler, beta):
    """The loop of diffusers' documentation."""
    scheduler = DDIMScheduler(
        made.timesteps,
        beta_start=0.0001,
        beta_end=0.02,
        beta_schedule=THEIR_BETAS[beta],
        prediction_type=THEIR_PREDICTIONS[made.prediction],
        clip_sample=sampler.clip,
        timestep_spacing=sampler.spacing,
    )
    scheduler.set_timesteps(sampler.steps)
    images = noise
    with torch.no_grad():
        for step in scheduler.timesteps:
            images = scheduler.step(model(images, step.expand(len(noise))), step, images).prev_sample
    return images


@pytest.mark.parametrize("beta", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("clip", [True, False])
def test_images_equal_those_of_diffusers_loop(beta, prediction, spacing, clip):
    made, model = schedule(beta, prediction), network()
    sampler = SamplerSection(steps=5, spacing=spacing, clip=clip)
    noise = starting_noise(0, torch.arange(2), 8)
    expected = bare_loop(model, noise, made, sampler, beta)
    scale = expected.abs().max().clamp(min=1)  # unclipped images of an untrained network are large
    torch.testing.assert_close(
        generate(model, noise, schedule=made, sampler=sampler) / scale, expected / scale, atol=2e-3, rtol=0
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize(("timesteps", "steps"), [(1000, 50), (1000, 7), (100, 60), (10, 10), (1000, 1)])
def test_a_perfect_network_yields_its_image_for_any_steps(prediction, spacing, timesteps, steps):
    made = schedule("linear", prediction, timesteps)
    image = torch.rand(3, 8, 8, dtype=torch.float64) * 2 - 1
    model = Perfect(image, made)
    sampler = SamplerSection(steps=steps, spacing=spacing)
    images = generate(model, starting_noise(0, torch.arange(3), 8), schedule=made, sampler=sampler)
    assert images.dtype is torch.float32
    torch.testing.assert_close(images, image.float().expand(3, 3, 8, 8), atol=2e-4, rtol=0)
    assert model.seen == [[step] * 3 for step in chosen_timesteps(timesteps, sampler)]


def test_the_noise_of_the_networks_input_matches_its_timestep():
    """Also where the steps don't divide the timesteps, where diffusers' steps are too short."""
    made = schedule()
    image = torch.zeros(3, 64, 64, dtype=torch.float64)
    expected, actual = [], []

    class Watching(Perfect):
        def forward(self, noisy, timesteps, labels=None):
            expected.append((1 - made.alpha_bars[timesteps[0]]).sqrt().item())
            actual.append(noisy.std().item())
            return super().forward(noisy, timesteps)

    noise = starting_noise(0, torch.arange(1), 64)
    noise = noise * (first := (1 - made.alpha_bars[-1]).sqrt().item()) / noise.std()
    generate(Watching(image, made), noise, schedule=made, sampler=SamplerSection(steps=600))
    assert expected[0] == pytest.approx(first)
    assert actual == pytest.approx(expected, rel=1e-4)


def test_trailing_starts_at_the_last_timestep_and_leading_ends_at_the_first():
    assert chosen_timesteps(1000, SamplerSection(steps=4)) == [999, 749, 499, 249]
    assert chosen_timesteps(1000, SamplerSection(steps=4, spacing="leading")) == [750, 500, 250, 0]
    assert chosen_timesteps(10, SamplerSection(steps=10)) == list(range(9, -1, -1))


def test_a_sample_does_not_depend_on_its_batch():
    made, model, sampler = schedule(prediction="v"), network(), SamplerSection(steps=4, seed=3)
    ids = torch.arange(7)
    whole = generate(model, starting_noise(3, ids, 8), schedule=made, sampler=sampler)
    assert whole.std(0).min() > 0, "all samples are the same"
    for size in (1, 2, 3):
        parts = [
            generate(model, starting_noise(3, some, 8), schedule=made, sampler=sampler) for some in ids.split(size)
        ]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)


def test_labels_reach_the_network():
    made, model, sampler = schedule(prediction="v"), network(classes=2), SamplerSection(steps=2)
    noise = starting_noise(0, torch.zeros(2, dtype=torch.int64), 8)
    first, second = generate(model, noise, schedule=made, sampler=sampler, labels=torch.tensor([0, 1]))
    assert not torch.equal(first, second)
    again = generate(model, noise[:1], schedule=made, sampler=sampler, labels=torch.tensor([1]))
    torch.testing.assert_close(again[0], second, atol=1e-5, rtol=0)


def test_clipped_images_are_in_minus_one_to_one():
    made, model, noise = schedule(), network(), starting_noise(0, torch.arange(2), 8)
    assert generate(model, noise, schedule=made, sampler=SamplerSection(steps=3)).abs().max() <= 1
    assert generate(model, noise, schedule=made, sampler=SamplerSection(steps=3, clip=False)).abs().max() > 1


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_what_is_not_finite_stays_visible_in_its_own_image_only(prediction):
    made = schedule(prediction=prediction)
    model = Perfect(torch.zeros(3, 8, 8, dtype=torch.float64), made)
    noise = starting_noise(0, torch.arange(3), 8)
    noise[1, 0, 0, 0] = torch.nan
    images = generate(model, noise, schedule=made, sampler=SamplerSection(steps=3))
    assert images.isfinite().flatten(1).all(1).tolist() == [True, False, True]


def test_steps_are_computed_in_float32_under_autocast():
    made, model, sampler = schedule(), network(), SamplerSection(steps=4)
    noise = starting_noise(0, torch.arange(2), 8)
    with torch.autocast("cpu", torch.bfloat16):
        images = generate(model, noise, schedule=made, sampler=sampler)
    assert images.dtype is torch.float32
    assert not torch.equal(images, images.bfloat16().float()), "rounded to bfloat16"


def test_generation_has_no_gradients_and_keeps_its_noise():
    made, model = schedule(), network()
    noise = starting_noise(0, torch.arange(2), 8)
    images = generate(model, noise, schedule=made, sampler=SamplerSection(steps=2))
    assert not images.requires_grad
    assert torch.equal(noise, starting_noise(0, torch.arange(2), 8))


def test_generation_never_synchronises_with_the_device():
    """Meta tensors have no values: reading one is an error, where on a GPU it would synchronise."""
    made = NoiseSchedule(DiffusionSection(), "meta")
    with torch.device("meta"):
        model = build_unet("unet_mini_nc16_rb1", size_px=8, classes=2)
        noise, labels = torch.empty(2, 3, 8, 8), torch.empty(2, dtype=torch.int64)
    assert generate(model, noise, schedule=made, sampler=SamplerSection(steps=2), labels=labels).is_meta
