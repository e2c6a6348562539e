"""Colours and line styles of the arms in plots."""

from collections.abc import Iterable
from typing import Any

from w2skd.recipe.arms import Arm

_PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""The colour-blind-safe palette of Okabe and Ito (2008) without black and yellow. The reference has the first."""


def looks(arms: Iterable[Arm]) -> dict[Arm, dict[str, Any]]:
    """Return the colour and line style of every arm, in the order of the arms."""
    return {
        arm: {"color": _PALETTE[number % len(_PALETTE)], "linestyle": "-" if number < len(_PALETTE) else "--"}
        for number, arm in enumerate(arms)
    }
