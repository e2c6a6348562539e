"""Growing a trained network into a larger one that computes the same function."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Growth:
    """What growing did.

    Attributes:
        new_norms: names of the normalisations that only the larger network has.
    """

    new_norms: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Return plain values for the run's records."""
        return {"new_norms": len(self.new_norms)}


def fill_running_statistics(model: nn.Module, names: Iterable[str], passes: Iterable[Callable[[], Any]]) -> None:
    """Average the running statistics of some normalisations over forward passes."""
    raise NotImplementedError
