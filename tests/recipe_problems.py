"""Collects the problems that a recipe is rejected with."""

from collections.abc import Callable

import pytest
from known import load_recipe

from w2skd.errors import RecipeError

Write = Callable[..., str]


def problems(write: Write, *overrides: str, content: str | None = None) -> list[str]:
    """Return the problems of the tiny recipe after overrides, one entry per problem, without the file's name."""
    path = write() if content is None else write(content)
    with pytest.raises(RecipeError) as raised:
        load_recipe(path, overrides)
    first, *others = str(raised.value).removeprefix(f"recipe {path}: ").splitlines()
    if others:
        assert first == f"{len(others)} problems"
        return [problem.strip() for problem in others]
    return [first]
