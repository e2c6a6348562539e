"""The recipe's value for `torch.compile`."""

from typing import Annotated, Literal

from pydantic import BeforeValidator

from w2skd.recipe.problems import show


def _check(value: object) -> object:
    """Report a wrong value once, not once per member of the union."""
    if not isinstance(value, bool) and value != "reduce-overhead":
        raise ValueError(f"should be true, false or 'reduce-overhead', not {show(value)}")
    return value


Compile = Annotated[bool | Literal["reduce-overhead"], BeforeValidator(_check)]
