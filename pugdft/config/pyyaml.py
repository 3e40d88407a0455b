"""Read and write YAML 1.2 by PyYAML: what :mod:`pugdft.config.yaml` cannot do with its faster reader.

A module of its own, because the import of PyYAML takes longer than reading twenty records.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from pugdft.errors import reason, refuse

_MOST_DIGITS = 3500  # Python prints no longer whole number, not even in a message
_MOST_LEVELS = 128  # as ryaml has it


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars and without repeated keys or aliases."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012
    depth = 0

    def dispose(self) -> None:
        """Drop all references: after an error, half-built values refer to the loader."""
        vars(self).clear()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            raise _refusal(f"*{alias.anchor}: aliases are not read; write the value out", alias)
        if self.depth == _MOST_LEVELS:
            raise yaml.YAMLError("nested too deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refusal("a key must be a word or a number", key_node)
            key = self.construct_object(key_node)
            if key in seen:
                raise _refusal(f'the key "{key}" stands twice', key_node)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper without aliases, whose words no reader of YAML 1.1 or 1.2 takes for numbers."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_NUMBER_START = list("-+.0123456789")

for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", _NUMBER_START),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", _NUMBER_START),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", _NUMBER_START),
):
    # The dumper keeps those of YAML 1.1 beside them.
    for _each in (_Loader, _Dumper):
        _each.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def _refusal(problem: str, node: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    digits = text.lstrip("+-").removeprefix("0x")
    if len(digits) > _MOST_DIGITS:
        raise _refusal(f"a whole number of {len(digits):,} digits is not readable", node)
    # Decimal even with a leading zero: YAML 1.1 would read 010 as eight.
    return int(text, 16) if text.startswith("0x") else int(text)


def _represent_str(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML would write Unicode's other line breaks as they are, and read them as spaces.
    style = '"' if not value.isascii() and re.search("[\x85\u2028\u2029]", value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Dumper.add_representer(str, _represent_str)


def parse(text: str, source: str) -> Any:
    """The value of one YAML document, as :func:`pugdft.config.yaml.parse` has it; errors know the place."""
    with refuse(_UNREADABLE, lambda error: _problem(error, source)):
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)


# PyYAML's constructors raise Python's errors for values such as `!!bool word`.
_UNREADABLE = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError)


def _problem(error: Exception, source: str) -> str:
    """What a parser's error says, with its place."""
    said = f"not readable as YAML: {reason(error)}"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        said = f"{place}{error.problem or error.context}"
    return f"{source}: {said}".removeprefix(": ")


def dump(value: Any) -> str:
    """Block-style YAML of plain data, keys in the given order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
