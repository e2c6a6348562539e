"""Reading and writing YAML, without implicit conversions that surprise authors of recipes."""

import re
from typing import Any

import yaml

from w2skd.errors import RecipeError

_MAX_ALIASES = 16
"""Nested aliases multiply content. This many can expand a file about a thousandfold."""


class _Loader(yaml.SafeLoader):
    """Loader that reads ``1e-3`` as a number, ``on``, ``no`` and dates as text, and refuses repeated keys."""

    _aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > _MAX_ALIASES:
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise yaml.composer.ComposerError(None, None, f"more than {_MAX_ALIASES} aliases", mark)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.composer.ComposerError(None, None, "a key must be text", key.start_mark)
            if key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"the key {key.value!r} occurs twice", key.start_mark)
            seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes text which `_Loader` would read as a number or a boolean."""


_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "bool": (r"(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9]*)$", "-+0123456789"),
    "float": (
        r"([-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.inf|\.nan)$",
        "-+0123456789.",
    ),
}
"""Type -> pattern of its plain scalars, and the characters that they can start with."""

_Loader.yaml_constructors = {
    _TAG + kind: yaml.SafeLoader.yaml_constructors[_TAG + kind]
    for kind in ("null", "bool", "int", "float", "str", "seq", "map")
} | {None: yaml.SafeLoader.yaml_constructors[None]}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (_TAG + "null", _TAG + "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind_of_scalar, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind_of_scalar, re.compile(_pattern), list(_first))


def parse_yaml(text: str, where: str) -> Any:
    """Parse one YAML document without executing code.

    Args:
        text: the document.
        where: its origin, for errors.

    Raises:
        RecipeError: the text is not valid YAML; the message has line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (ValueError, KeyError) as error:  # such as ``!!int many`` or an integer with 5,000 digits
        raise RecipeError(f"{where}: not valid YAML: a value does not fit its type: {error}") from None
    except RecursionError:
        raise RecipeError(f"{where}: not valid YAML: nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{where}: not valid YAML{place}: {problem}") from None


def dump_yaml(values: Any) -> str:
    """Write plain values as YAML that `parse_yaml` and other readers read back as equal values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
