"""Names that look alike: equal on the screen, or nearly so, but different in their characters."""

import unicodedata
from collections.abc import Iterable


def composed(name: str) -> str:
    """Return a name in Unicode's composed form (NFC): macOS and Linux write the same accents differently."""
    return unicodedata.normalize("NFC", name)


def look_alike(name: str) -> str:
    """Return what a reader sees of a name: without Unicode form, letter case, kind of slash and stray spaces."""
    return " ".join(unicodedata.normalize("NFKC", name).replace("\\", "/").casefold().split())


def alike_in(name: str, others: Iterable[str]) -> str | None:
    """Describe the first other name that looks like `name`, and in what they differ; None if there is none."""
    for other in others:
        if other != name and look_alike(other) == look_alike(name):
            return f"'{name}' and '{other}' differ only in {_difference(name, other)}"
    return None


def all_alike(names: Iterable[str]) -> list[str]:
    """Describe one pair of each group of names that look alike, as `alike_in` does."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(look_alike(name), []).append(name)
    return [alike for group in groups.values() if len(group) > 1 and (alike := alike_in(group[0], group)) is not None]


def _difference(one: str, other: str) -> str:
    steps = {
        "their Unicode form (composed or decomposed characters)": composed,
        "slash and backslash": lambda name: name.replace("\\", "/"),
        "spaces": lambda name: " ".join(name.split()),
        "letter case": str.casefold,
    }
    for what, step in steps.items():
        if step(one) == step(other):
            return what
    return "Unicode form, letter case or spaces"
