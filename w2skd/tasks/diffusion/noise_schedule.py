"""The noising process, the prediction targets, and the conversion between the two kinds of prediction.

An image x_0 at timestep t is noised to x_t = a x_0 + s e, with e standard normal, a^2 = alpha_bar(t) and s^2 = 1 - a^2
(Ho et al. 2020, equation 4). A network predicts e, or v = a e - s x_0 (Salimans & Ho 2022, section 4). Given x_t,

    e = a v + s x_t
    v = (e - s x_t) / a

The first conversion is exact up to rounding. The second divides both the prediction error and the rounding error of
the difference by a. At the last of 1,000 timesteps, a is 0.0064 with linear betas and 0.00005 with the cosine's.

Shapes: N images, S px, T timesteps.
"""

import copy

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from w2skd.tasks.diffusion.recipe import DiffusionSection, TimestepWeighting
from w2skd.tasks.diffusion.unet import DenoisingUNet

GAMMA = 5.0
"""Signal-to-noise ratio at which min-SNR weighting is capped (Hang et al. 2023, section 4.2)."""

_DIFFUSERS_NAMES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


class NoiseSchedule(nn.Module):
    """The amount of noise at every timestep. No method synchronises with the device.

    It is a module without state, so that it moves to a device together with a module that contains it.

    Args:
        section: of the recipe.
        device: of the tables, and thus of all tensor arguments of the methods.
        dtype: of the tables. In float32 the results differ from the exact ones by some units of rounding.

    Attributes:
        timesteps: T.
        prediction: what the networks predict.
        alpha_bars: the image's share of the noised image's variance, float64 [T] on the CPU, decreasing.
    """

    _image_scales: Tensor
    _noise_scales: Tensor
    _min_snr: Tensor

    def __init__(self, section: DiffusionSection, device: torch.device | str, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.timesteps = section.timesteps
        self.prediction = section.prediction
        betas: Tensor = DDPMScheduler(
            num_train_timesteps=section.timesteps,
            beta_start=0.0001,
            beta_end=0.02,
            beta_schedule=_DIFFUSERS_NAMES[section.beta_schedule],
        ).betas
        # diffusers' own product is float32, where 1 - alpha_bar of the first timestep has only three digits.
        self.alpha_bars = (1 - betas.double()).cumprod(0)
        ratios = self.alpha_bars / (1 - self.alpha_bars)
        capped = ratios.clamp(max=GAMMA) / (ratios if self.prediction == "epsilon" else ratios + 1)
        for name, values in (
            ("_image_scales", self.alpha_bars.sqrt().to(dtype)),
            ("_noise_scales", (1 - self.alpha_bars).sqrt().to(dtype)),
            ("_min_snr", capped.float()),
        ):
            self.register_buffer(name, values.to(device), persistent=False)

    def add_noise(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_t for images x_0 and noise, [N, 3, S, S] each, at timesteps, int64 [N]."""
        a, s = self._scales(timesteps)
        return a * images + s * noise

    def target(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what a network should predict, [N, 3, S, S]; arguments as in `add_noise`."""
        if self.prediction == "epsilon":
            return noise
        a, s = self._scales(timesteps)
        return a * noise - s * images

    def weights(self, timesteps: Tensor, weighting: TimestepWeighting) -> Tensor:
        """Return the weights of the squared errors at timesteps, float32 [N].

        ``uniform``: 1. ``min_snr`` (Hang et al. 2023, section 3.4): with r = a^2 / s^2, min(r, 5) / r for e and
        min(r, 5) / (r + 1) for v. Both equal a weight of min(r, 5) on the squared error of the implied x_0.
        """
        if weighting == "min_snr":
            return self._min_snr[timesteps]
        return torch.ones_like(timesteps, dtype=torch.float32)

    def to_epsilon(self, v: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Convert a prediction of v for noised images to one of e, [N, 3, S, S]."""
        a, s = self._scales(timesteps)
        return a * v + s * noisy

    def to_v(self, epsilon: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Convert a prediction of e for noised images to one of v, [N, 3, S, S]."""
        a, s = self._scales(timesteps)
        return (epsilon - s * noisy) / a

    def _scales(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        return self._image_scales[timesteps][:, None, None, None], self._noise_scales[timesteps][:, None, None, None]


class Converted(nn.Module):
    """A network whose prediction is converted to the schedule's kind, in float32 even under autocast.

    The tables move to other devices with the module and are not in its state dict, whose names have prefix ``model.``.

    Args:
        model: predicts v if the schedule's networks predict epsilon, and vice versa.
        schedule: the noising process of both.
    """

    def __init__(self, model: DenoisingUNet, schedule: NoiseSchedule):
        super().__init__()
        self.model = model
        self.schedule = copy.deepcopy(schedule)  # moving this module must not move the caller's

    def forward(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        """See `DenoisingUNet.forward`."""
        prediction = self.model(noisy, timesteps, labels).float()
        convert = self.schedule.to_epsilon if self.schedule.prediction == "epsilon" else self.schedule.to_v
        return convert(prediction, noisy.float(), timesteps)
