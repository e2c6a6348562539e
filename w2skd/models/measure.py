"""How large a model is, and how much work its forward."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from w2skd.models.modes import in_eval_mode


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
    counter = FlopCounterMode(display=False)
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        # Torch's counter does not know the fused transformer layers of eval mode, nor the CPU's fused attention, and
        # would count nothing for them: written out as matrix products, they count the same on every device.
        torch.backends.mha.set_fastpath_enabled(False)
        with in_eval_mode(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(*example_inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    examples = next(len(value) for value in example_inputs if isinstance(value, Tensor | list))
    return round(counter.get_total_flops() / examples)


def activation_bytes(model: nn.Module, example_inputs: tuple[Any, ...]) -> int:
    """What a forward keeps for its backward, in bytes an example; what does not grow with the batch does not count.

    Args:
        model: left in the modes in which it was; measured in eval mode, which keeps about what train mode keeps.
        example_inputs: of any number of examples, tensors and sequences by example; whatever autocast the caller is in
            counts.
    """
    twice = tuple(torch.cat([value, value]) if isinstance(value, Tensor) else value + value for value in example_inputs)
    return (_kept_bytes(model, twice) - _kept_bytes(model, example_inputs)) // len(example_inputs[0])


def _kept_bytes(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with in_eval_mode(model), torch.enable_grad(), hooks:
        outputs = model(*inputs)  # kept alive until all is counted, lest another storage takes a freed one's place
    del outputs
    return sum(kept.values())
