"""Merging of recipe settings before validation."""

from typing import Any

OTHER_LENGTH = {"epochs": "steps", "steps": "epochs"}
"""Setting one of these keys removes the other."""


def overlay(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge nested keys of `over` into `base`.

    A section with another ``name`` replaces the old one, because options differ between names. A length in one unit
    replaces a length in the other.
    """
    merged = {key: value for key, value in base.items() if OTHER_LENGTH.get(key) not in over}
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("name", old.get("name")) == old.get("name"):
            merged[key] = overlay(old, value)
        else:
            merged[key] = value
    return merged
