"""Image generation by DDIM (Song et al. 2021, "Denoising diffusion implicit models"), without added noise.

Shapes: n images, S px.
"""

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from w2skd.tasks.diffusion.noise_schedule import NoiseSchedule
from w2skd.tasks.diffusion.recipe import SamplerSection


@torch.no_grad()
def generate(
    model: nn.Module, noise: Tensor, *, schedule: NoiseSchedule, sampler: SamplerSection, labels: Tensor | None = None
) -> Tensor:
    """Generate images from noise. Up to rounding, an image does not depend on the others of its batch.

    A step from timestep t to the next one, u, estimates the clean image and the noise (equation 12 with sigma 0):

        x_0 = (x_t - s_t e) / a_t,  clipped to [-1, 1] if `sampler.clip`
        x_u = a_u x_0 + s_u e

    with the predicted e, and a = 1, s = 0 after the last step. This equals diffusers' `DDIMScheduler` with
    ``set_alpha_to_one``, except where the number of steps does not divide the number of timesteps: diffusers' steps
    are then shorter than the distances between the timesteps that it passes to the network.

    Never synchronises with the device. Infinities and NaNs of the network propagate to its image.

    Args:
        model: maps (noisy, timesteps, labels) to the schedule's prediction, in any precision; in eval mode, on the
            noise's device. The steps are computed in float32.
        noise: standard normal, float32 [n, 3, S, S].
        schedule: the noising process.
        sampler: number and spacing of the steps, and whether to clip.
        labels: classes, int64 [n], for a class-conditional network.

    Returns:
        float32 [n, 3, S, S], from -1 (black) to 1 (white); without clipping, values may lie slightly outside.
    """
    images = noise
    timesteps = chosen_timesteps(schedule.timesteps, sampler)
    for current, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        prediction = model(images, torch.full((len(noise),), current, device=noise.device), labels).float()
        a, s = _scales(schedule, current)
        if schedule.prediction == "epsilon":
            epsilon = prediction
            clean = (images - s * prediction) / a
        else:
            epsilon = a * prediction + s * images
            clean = a * images - s * prediction
        if sampler.clip:
            clean = clean.clamp(-1, 1)
        a, s = (1.0, 0.0) if following is None else _scales(schedule, following)
        images = a * clean + s * epsilon
    return images


def chosen_timesteps(timesteps: int, sampler: SamplerSection) -> list[int]:
    """Return the `sampler.steps` timesteps that the network sees, decreasing, as diffusers spaces them."""
    scheduler = DDIMScheduler(num_train_timesteps=timesteps, timestep_spacing=sampler.spacing, steps_offset=0)
    scheduler.set_timesteps(sampler.steps)
    return [int(timestep) for timestep in scheduler.timesteps]


def _scales(schedule: NoiseSchedule, timestep: int) -> tuple[float, float]:
    alpha_bar = float(schedule.alpha_bars[timestep])
    return alpha_bar**0.5, (1 - alpha_bar) ** 0.5
