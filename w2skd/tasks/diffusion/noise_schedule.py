"""The noising process, what a network may predict of it, and the formulas between the two predictions.

An image x_0 at timestep t is noised to x_t = a x_0 + s e, with e standard normal, a^2 = alpha_bar(t) and s^2 = 1 - a^2
(Ho et al. 2020, equation 4). A network predicts e, or v = a e - s x_0 (Salimans & Ho 2022, section 4); x_t being known,

    e = a v + s x_t
    v = (e - s x_t) / a

The first only loses what it rounds. The second divides a prediction's error, and the rounding of the difference, by a:
at the last of 1,000 timesteps that is by 0.0064 with linear betas, by 0.00005 with the cosine's.

Shape letters: N images, S px, T timesteps.
"""

import copy
from typing import Literal

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from w2skd.tasks.diffusion.recipe import DiffusionSection, TimestepWeighting
from w2skd.tasks.diffusion.unet import DenoisingUNet

Prediction = Literal["epsilon", "v"]

GAMMA = 5.0
"""The signal-to-noise ratio above which min-SNR weighting gives no more (Hang et al. 2023, section 4.2)."""

_DIFFUSERS_NAMES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


class NoiseSchedule(nn.Module):
    """How much noise every timestep has. No method waits for the device.

    It is a module without state, so that it can move to a device as part of one.

    Args:
        section: of the recipe.
        device: of the tables, and so of all tensors that the methods take.
        dtype: of the tables. In float32 the results are within some units of rounding of the exact ones.

    Attributes:
        timesteps: T.
        prediction: what networks predict.
        alpha_bars: share of the image in the noised image's variance, float64 [T] on the CPU, falling.
    """

    _image_scales: Tensor
    _noise_scales: Tensor
    _uniform: Tensor
    _min_snr: Tensor

    def __init__(self, section: DiffusionSection, device: torch.device | str, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.timesteps = section.timesteps
        self.prediction: Prediction = section.prediction
        betas: Tensor = DDPMScheduler(
            num_train_timesteps=section.timesteps,
            beta_start=0.0001,
            beta_end=0.02,
            beta_schedule=_DIFFUSERS_NAMES[section.beta_schedule],
        ).betas
        # Not diffusers' own product: in float32, 1 - alpha_bar of the first timestep has only three digits.
        self.alpha_bars = (1 - betas.double()).cumprod(0)
        ratios = self.alpha_bars / (1 - self.alpha_bars)
        capped = ratios.clamp(max=GAMMA) / (ratios if self.prediction == "epsilon" else ratios + 1)
        for name, values in (
            ("_image_scales", self.alpha_bars.sqrt().to(dtype)),
            ("_noise_scales", (1 - self.alpha_bars).sqrt().to(dtype)),
            ("_uniform", torch.ones_like(ratios).float()),
            ("_min_snr", capped.float()),
        ):
            self.register_buffer(name, values.to(device), persistent=False)

    def add_noise(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of images x_0 and noise, [N, 3, S, S] each, at timesteps, int64 [N]."""
        a, s = self._at(timesteps)
        return a * images + s * noise

    def target(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a network should predict, [N, 3, S, S]; arguments as of `add_noise`."""
        if self.prediction == "epsilon":
            return noise
        a, s = self._at(timesteps)
        return a * noise - s * images

    def weights(self, timesteps: Tensor, weighting: TimestepWeighting) -> Tensor:
        """Factors of the squared error at each timestep, float32 [N].

        ``uniform``: 1. ``min_snr`` (Hang et al. 2023, section 3.4): with r = a^2 / s^2, min(r, 5) / r of the error of
        e, min(r, 5) / (r + 1) of that of v; both are min(r, 5) times the error of the image that they stand for.
        """
        return (self._min_snr if weighting == "min_snr" else self._uniform)[timesteps]

    def to_epsilon(self, v: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The e that a predicted v stands for at noised images, [N, 3, S, S]."""
        a, s = self._at(timesteps)
        return a * v + s * noisy

    def to_v(self, epsilon: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The v that a predicted e stands for at noised images, [N, 3, S, S]."""
        a, s = self._at(timesteps)
        return (epsilon - s * noisy) / a

    def _at(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        return self._image_scales[timesteps][:, None, None, None], self._noise_scales[timesteps][:, None, None, None]


class Converted(nn.Module):
    """A network that predicts the other quantity, answering in the schedule's, in float32 whatever autocast says.

    It moves to other devices with what it needs, and adds nothing to the state dict but the prefix ``model.``.

    Args:
        model: predicts v where the schedule's networks predict epsilon, and the other way round.
        schedule: the noising process that both were made for.
    """

    def __init__(self, model: DenoisingUNet, schedule: NoiseSchedule):
        super().__init__()
        self.model = model
        self.schedule = copy.deepcopy(schedule)  # moving this module must not move the caller's

    def forward(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        """See `DenoisingUNet.forward`."""
        answer = self.model(noisy, timesteps, labels).float()
        convert = self.schedule.to_epsilon if self.schedule.prediction == "epsilon" else self.schedule.to_v
        return convert(answer, noisy.float(), timesteps)
