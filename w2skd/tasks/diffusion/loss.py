"""The training loss of denoising networks."""

import torch
from torch import Tensor


def weighted_squared_error(predicted: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean squared error of a denoising network's prediction, weighted per example.

    Serves as task loss, where the target is the noise (Ho et al. 2020, equation 14) or v, and as distillation loss,
    where the target is the teacher's prediction. Both are therefore on the same scale.

    Args:
        predicted: [N, 3, S, S], any floating dtype.
        target: [N, 3, S, S]; no gradient flows to it.
        weights: [N], non-negative; the weight of each example's timestep.

    Returns:
        0-d float32: the mean over colours and pixels, times the weight, averaged over the batch (not divided by the
        sum of the weights). Computed in float32 even under autocast.

    Raises:
        ValueError: the shapes do not match.
    """
    if predicted.shape != target.shape or predicted.ndim != 4:
        shapes = f"{list(predicted.shape)} and {list(target.shape)}"
        raise ValueError(f"prediction and target must both have shape [N, 3, S, S], got {shapes}")
    if weights.shape != predicted.shape[:1]:
        raise ValueError(f"weights must have shape [{len(predicted)}], got {list(weights.shape)}")
    with torch.autocast(predicted.device.type, enabled=False):
        errors = (predicted.float() - target.detach().float()).square().flatten(1).mean(1)
        return (weights.float() * errors).mean()
