"""YAML in and out as people mean it: ``1e-3`` is a number, ``no`` is a word, a key stands once.

PyYAML speaks YAML 1.1, where ``1e-3`` is a string, ``no`` is false, ``1:30`` is 90 and a repeated key
silently wins. The loader here resolves plain scalars by YAML 1.2's core schema instead. It is built on
``SafeLoader``: a tag such as ``!!python/object`` is an error, never a call. What :func:`dump` wrote is read
by ``block_yaml``, with the same result and much sooner.
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from pugdft import block_yaml
from pugdft.errors import UserError

LARGEST_BYTES = 256 << 20  # of a file; a record with a history of a million epochs is smaller

# A longer whole number cannot be written out, not even into a message (``sys.get_int_max_str_digits``).
_MOST_DIGITS, _MOST_DIGITS_HEXADECIMAL = 4300, 3500


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars and without repeated keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def dispose(self) -> None:
        """Let go of everything: after an error, what was half built still refers to the loader."""
        vars(self).clear()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "unhashable key: a key is a word or a number", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f'the key "{key}" stands twice', key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper whose text every YAML reader takes as it was meant: numbers as numbers, words as words."""

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
    # The dumper has those of YAML 1.1 as well: a word is quoted that is a number to either, such as 12e5.
    for _each in (_Loader, _Dumper):
        _each.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if len(text) > (_MOST_DIGITS_HEXADECIMAL if text.startswith("0x") else _MOST_DIGITS):
        digits = len(text.lstrip("+-").removeprefix("0x"))
        raise yaml.constructor.ConstructorError(
            None, None, f"a whole number of {digits:,} digits is not readable", node.start_mark
        )
    # Decimal even with a leading zero: YAML 1.1 would read 010 as eight.
    return int(text, 16) if text.startswith("0x") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        UserError: it cannot be read, is no file of a sensible size, or is no text in UTF-8.
    """
    try:
        status = path.stat()
        # A pipe would be waited for, and a device has no end.
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_BYTES:
            raise UserError(f"{path}: is not a file of at most {LARGEST_BYTES >> 20} MiB")
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: is not text in UTF-8 (line {number}); save it as UTF-8") from None


def parse(text: str, source: str = "", aliases: bool = False) -> Any:
    """The value of one YAML document.

    Args:
        text: the document.
        source: the file's name, for messages.
        aliases: whether ``*name`` is allowed. A few lines of nested aliases stand for gigabytes.

    Raises:
        UserError: not YAML; a repeated key; a tag that YAML's safe schema does not have. The message
            names the line and the column.
    """
    try:
        return block_yaml.read(text, lambda section: _parse_in_full(section, source, aliases))
    except (block_yaml.Unusual, UserError):
        return _parse_in_full(text, source, aliases)  # which has the right place in its message


def _parse_in_full(text: str, source: str, aliases: bool) -> Any:
    """What :func:`parse` gives, by the parser of all of YAML."""
    prefix = f"{source}: " if source else ""
    try:
        if not aliases and "*" in text:
            for event in yaml.parse(text, Loader=_Loader):
                if isinstance(event, yaml.AliasEvent):
                    mark = event.start_mark
                    assert mark is not None
                    place = f"{prefix}line {mark.line + 1}, column {mark.column + 1}"
                    raise UserError(f"{place}: *{event.anchor}: aliases are not read; write the value out")
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{prefix}{place}{error.problem or error.context}") from None
    except UserError:
        raise
    except RecursionError:
        raise UserError(f"{prefix}not readable as YAML: nested too deep") from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        # PyYAML's constructors let these out on values such as `!!bool word` or a mapping as a key.
        reason = (str(error).splitlines() or [""])[0]
        kind = "" if isinstance(error, yaml.YAMLError) else f"{type(error).__name__}: "
        raise UserError(f"{prefix}not readable as YAML: {kind}{reason}") from None


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = {math.inf: ".inf", -math.inf: "-.inf"}.get(value, ".nan" if value != value else repr(value))
    if "e" in text and "." not in text.split("e")[0]:
        text = text.replace("e", ".0e")  # YAML 1.1 readers take 1e-05 for a string
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _represent_str(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML would write Unicode's other line breaks as they are, and read them as spaces.
    style = '"' if not value.isascii() and re.search("[\x85\u2028\u2029]", value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(float, _represent_float)
_Dumper.add_representer(str, _represent_str)


def dump(value: Any) -> str:
    """Block-style YAML of plain data, keys in the given order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
