"""Recipes as flat mappings of dotted keys, for comparing two recipes."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def select(flat: Mapping[str, Any], sections: Sequence[str], ignored: Collection[str] = ()) -> dict[str, Any]:
    """Return the entries of `sections` and everything below them, without `ignored` and everything below those."""
    return {
        key: value
        for key, value in flat.items()
        if any(_is_below(key, section) for section in sections) and not any(_is_below(key, name) for name in ignored)
    }


def _is_below(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")
