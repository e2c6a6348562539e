"""How large a model is, and how much work its forward."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """How many numbers a model learns or has learned."""
    return sum(parameter.numel() for parameter in model.parameters())


def forward_flops(model: nn.Module, example_inputs: tuple[Any, ...]) -> int:
    """Floating-point operations of one example's forward in eval mode, a multiply-add counting two.

    Counted are convolutions, matrix products and attention; normalisation, activations and pooling are not.

    Args:
        model: left in the modes in which it was.
        example_inputs: its arguments on its device; the first tensor or list among them says how many examples.
    """
    modes = {module: module.training for module in model.modules()}
    counter = FlopCounterMode(display=False)
    fused = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    try:
        # Torch's counter does not know the fused transformer layers of eval mode, nor the CPU's fused attention, and
        # would count nothing for them: written out as matrix products, they count the same on every device.
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(*example_inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in modes.items():
            module.training = training
    examples = next(len(value) for value in example_inputs if isinstance(value, Tensor | list))
    return round(counter.get_total_flops() / examples)
