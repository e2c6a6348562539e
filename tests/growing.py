"""Compare a grown network with its teacher, and train it for some steps."""

from collections.abc import Callable, Collection
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

CLOSE = {"rtol": 0, "atol": 1e-9}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomise(model: nn.Module, seed: int = 5) -> nn.Module:
    """Set norms and biases to random values, as after training, instead of the zeros and ones of a fresh network."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.dim() == 1 and tensor.is_floating_point():
                is_positive = name.endswith(("running_var", "weight"))
                tensor.copy_(torch.rand_like(tensor) + 0.5 if is_positive else torch.randn_like(tensor) / 4)
    return model


def pictures(seed: int = 0, examples: int = 3, side: int = 32, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(examples, 3, side, side, dtype=dtype, generator=generator(seed))


def assert_same_function(
    student: nn.Module,
    teacher: nn.Module,
    call: Callable[[nn.Module], Any] = lambda model: model(pictures()),
    dtype: torch.dtype = torch.float64,
    **tolerance: float,
) -> None:
    """Compare copies in eval mode, in train mode, and in eval mode with the statistics of the pass in train mode."""
    student, teacher = deepcopy(student).to(dtype), deepcopy(teacher).to(dtype)
    with torch.no_grad():
        for mode in (False, True, False):
            outputs = call(student.train(mode)), call(teacher.train(mode))
            torch.testing.assert_close(*outputs, **(CLOSE | tolerance))


OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=1e-3),
}


def train(
    model: nn.Module, loss_of: Callable[[nn.Module], Tensor], optimizer: str, steps: int, loss_scale: float = 1.0
) -> dict[str, Tensor]:
    """Train in place and return how far each trained tensor has moved: the largest change of its elements."""
    start = deepcopy(model.state_dict())
    rule = OPTIMIZERS[optimizer]([parameter for parameter in model.parameters() if parameter.requires_grad])
    model.train()
    for _ in range(steps):
        rule.zero_grad()
        (loss_scale * loss_of(model)).backward()
        rule.step()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {name: (model.state_dict()[name] - start[name]).abs().max() for name in trained}


def cross_entropy(model: nn.Module) -> Tensor:
    """The loss of a classifier on random pictures."""
    dtype = next(model.parameters()).dtype
    return nn.functional.cross_entropy(model(pictures(1, 4, dtype=dtype)), torch.tensor([0, 1, 2, 1]))


def gaps_between_copies(model: nn.Module, call: Callable[[nn.Module], Any], names: Collection[str]) -> dict[str, float]:
    """Run a model that is twice as wide as its teacher and compare the outputs of the layers with these names.

    Returns:
        For every layer, the median over pairs of copies, which are next to each other, of their relative difference.
    """
    gaps = {}

    def compare(name: str, layer: nn.Module, _: Any, output: Tensor) -> None:
        channels = output.movedim(-1 if isinstance(layer, nn.Linear | nn.LayerNorm) else 1, 0).flatten(1)
        apart = (channels[::2] - channels[1::2]).norm(dim=1)
        gaps[name] = (apart / channels[::2].norm(dim=1)).median().item()

    probes = [model.get_submodule(name).register_forward_hook(partial(compare, name)) for name in names]
    with torch.no_grad():
        call(model)
    for probe in probes:
        probe.remove()
    return gaps
