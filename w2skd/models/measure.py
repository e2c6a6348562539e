"""Parameters, FLOPs and activation memory of a model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from w2skd.models.modes import in_eval_mode


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, trainable or frozen."""
    return sum(parameter.numel() for parameter in model.parameters())


def forward_flops(model: nn.Module, example_inputs: tuple[Any, ...]) -> int:
    """Return the floating-point operations of one example's forward pass in eval mode; a multiply-add counts as two.

    Convolutions, matrix products and attention count; normalisation, activations and pooling do not.

    Args:
        model: its train and eval modes stay unchanged.
        example_inputs: arguments on the model's device; the length of the first tensor or list is the number of
            examples.
    """
    with in_eval_mode(model):
        total = counted_flops(lambda: model(*example_inputs))
    examples = next(len(value) for value in example_inputs if isinstance(value, Tensor | list))
    return round(total / examples)


def counted_flops(work: Callable[[], object]) -> int:
    """Return the floating-point operations of a function, counted as in `forward_flops`, without gradients."""
    counter = FlopCounterMode(display=False)
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        # Torch's counter ignores the fused transformer layers of eval mode and the CPU's fused attention. Without
        # fusion, their matrix products are counted alike on every device.
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            work()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops())


def single_valued_norms(model: nn.Module, example_inputs: tuple[Any, ...]) -> list[str]:
    """Return the names of the batch norms that see a single value per channel of one example.

    Training with one example per micro-batch is impossible with them: the value would be its own mean.

    Args:
        model: in train mode, except for norms that keep their statistics; its modes stay unchanged.
        example_inputs: arguments of one example.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def look(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs[0].numel() == inputs[0].shape[1]:
                found.append(name)

        return look

    norms = [(name, part) for name, part in model.named_modules() if isinstance(part, _BatchNorm) and part.training]
    hooks = [part.register_forward_pre_hook(watch(name)) for name, part in norms]
    try:
        with in_eval_mode(model), torch.no_grad():
            model(*example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def activation_bytes(model: nn.Module, example_inputs: tuple[Any, ...]) -> int:
    """Return the bytes per example that a forward pass saves for the backward pass.

    Memory that does not grow with the batch, such as weights, is excluded. The caller's autocast applies.

    Args:
        model: its modes stay unchanged; it is measured in eval mode, which saves about as much as train mode.
        example_inputs: tensors and sequences with one entry per example, for any number of examples.
    """
    twice = tuple(torch.cat([value, value]) if isinstance(value, Tensor) else value + value for value in example_inputs)
    return (_saved_bytes(model, twice) - _saved_bytes(model, example_inputs)) // len(example_inputs[0])


def _saved_bytes(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    saved: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
    with in_eval_mode(model), torch.enable_grad(), hooks:
        outputs = model(*inputs)  # kept alive so that no storage reuses a freed address
    del outputs
    return sum(saved.values())
