"""Images out of noise by DDIM (Song et al. 2021, "Denoising diffusion implicit models"), without added noise.

Shape letters: n images, S px.
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
    """Let a network make images of noise. What becomes of one does not depend on the others, but for rounding.

    A step from timestep t to the next one, u, estimates the clean image and the noise (equation 12 with sigma 0):

        x_0 = (x_t - s_t e) / a_t,  clipped to [-1, 1] if the section says so
        x_u = a_u x_0 + s_u e

    with e as it was predicted, and a = 1, s = 0 after the last step: so steps and result are those of diffusers'
    `DDIMScheduler` with ``set_alpha_to_one``. Only where the number of steps does not divide that of the timesteps does
    it differ: diffusers then takes steps that are shorter than what lies between the timesteps it tells the network.

    Nothing waits for the device. A network's infinities and NaNs stay visible in its image.

    Args:
        model: answers to (noisy, timesteps, labels) with the schedule's prediction; in eval mode, on the noise's
            device. Whatever precision it answers in, the steps are taken in float32.
        noise: standard normal, float32 [n, 3, S, S].
        schedule: of the noising process.
        sampler: how many steps, where, and whether to clip.
        labels: classes, int64 [n], for a network that wants them.

    Returns:
        float32 [n, 3, S, S], black being -1 and white 1; without clipping, a little beyond at places.
    """
    images = noise
    timesteps = chosen_timesteps(schedule.timesteps, sampler)
    for here, there in zip(timesteps, [*timesteps[1:], None], strict=True):
        steps = torch.full((len(noise),), here, device=noise.device)
        answer = model(images, steps, labels).float()
        a, s = _scales(schedule, here)
        if schedule.prediction == "epsilon":
            epsilon = answer
            clean = (images - s * answer) / a
        else:
            epsilon = a * answer + s * images
            clean = a * images - s * answer
        if sampler.clip:
            clean = clean.clamp(-1, 1)
        a, s = (1.0, 0.0) if there is None else _scales(schedule, there)
        images = a * clean + s * epsilon
    return images


def chosen_timesteps(timesteps: int, sampler: SamplerSection) -> list[int]:
    """Which timesteps the network sees, falling; `sampler.steps` of them, as diffusers chooses them."""
    scheduler = DDIMScheduler(num_train_timesteps=timesteps, timestep_spacing=sampler.spacing, steps_offset=0)
    scheduler.set_timesteps(sampler.steps)
    chosen: list[int] = scheduler.timesteps.tolist()
    return chosen


def _scales(schedule: NoiseSchedule, timestep: int) -> tuple[float, float]:
    alpha_bar = float(schedule.alpha_bars[timestep])
    return alpha_bar**0.5, (1 - alpha_bar) ** 0.5
