"""A recipe as dotted keys, for telling two of them apart."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain values as one level: ``{"a": {"b": 1}}`` is ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def select(flat: Mapping[str, Any], sections: Sequence[str], ignored: Collection[str] = ()) -> dict[str, Any]:
    """The keys that are, or lie below, one of `sections`, but for those that are or lie below one of `ignored`."""
    return {
        key: value
        for key, value in flat.items()
        if any(_is_below(key, section) for section in sections) and not any(_is_below(key, name) for name in ignored)
    }


def _is_below(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")
