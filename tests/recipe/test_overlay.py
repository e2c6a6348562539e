from typing import Any

import pytest

from w2skd.recipe.overlay import overlay


@pytest.mark.parametrize(
    ("base", "over", "expected"),
    [
        ({"a": 1, "b": 2}, {"b": 3}, {"a": 1, "b": 3}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}, {"a": {"x": 1, "y": 3}}),
        ({"a": {"x": 1}}, {"a": None}, {"a": None}),
        ({"a": None}, {"a": {"x": 1}}, {"a": {"x": 1}}),
        ({"a": 1}, {"a": {"x": 1}}, {"a": {"x": 1}}),
        ({"a": {"name": "sgd", "x": 1}}, {"a": {"name": "sgd", "y": 2}}, {"a": {"name": "sgd", "x": 1, "y": 2}}),
        ({"a": {"name": "sgd", "x": 1}}, {"a": {"y": 2}}, {"a": {"name": "sgd", "x": 1, "y": 2}}),
        ({"a": {"name": "sgd", "x": 1}}, {"a": {"name": "adamw", "y": 2}}, {"a": {"name": "adamw", "y": 2}}),
        ({"epochs": 5, "a": 1}, {"steps": 7}, {"steps": 7, "a": 1}),
        ({"steps": 7}, {"epochs": 5}, {"epochs": 5}),
        ({"epochs": 5}, {}, {"epochs": 5}),
        ({"a": [1, 2, 3]}, {"a": [4]}, {"a": [4]}),
    ],
)
def test_overlay(base: dict[str, Any], over: dict[str, Any], expected: dict[str, Any]) -> None:
    kept = repr(base)
    assert overlay(base, over) == expected
    assert repr(base) == kept
