"""Read and write YAML 1.2, strictly: no repeated key, no alias, ``1e-3`` is a number, ``no`` a word.

``ryaml`` (Rust) reads a record of 100 epochs in 1.3 ms, PyYAML with its C parser in 28 ms; a leaderboard
reads ten thousand. A text that ``ryaml`` refuses or might read otherwise goes to PyYAML, whose messages name
line and column.
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import ryaml
import yaml

from pugdft.errors import UserError

LARGEST_BYTES = 256 << 20  # of a file; a record with a history of a million epochs is smaller

# A longer whole number cannot be written out, not even into a message (``sys.get_int_max_str_digits``).
_MOST_DIGITS, _MOST_DIGITS_HEXADECIMAL = 4300, 3500

# What ryaml reads otherwise than YAML 1.2's core schema with our rules.
_NODE_PROPERTY = re.compile(r"[\s\[{,:][&*!]")  # it reads aliases and ignores tags
_OTHER_BASE = re.compile(r"0(?:b[01_]|o[0-7_]|[xX][0-9a-fA-F_])(?<=[\s\[{,:+-]...)")
_WORD_FOR_NUMBER = re.compile(  # these it takes for words: a leading zero, or a number beyond a float
    r"[-+]?(?:0[0-9][0-9.]*(?:[eE][-+]?[0-9]+)?|[0-9.]+[eE][-+]?[0-9]{2,}|[0-9.]{19,}(?:[eE][-+]?[0-9]+)?)"
)
_LONG_NUMBER = re.compile(r"[0-9]{19}")  # beyond 64 bits, it makes whole numbers floats
_LARGEST_EXACT = 2.0**63
_MOST_FLOW_MAPPINGS = 1000


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars and without repeated keys or aliases."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def dispose(self) -> None:
        """Drop all references: after an error, half-built values still refer to the loader."""
        vars(self).clear()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _refusal("unhashable key: a key is a word or a number", key_node)
            if key in seen:
                raise _refusal(f'the key "{key}" stands twice', key_node)
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


def _refusal(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if len(text) > (_MOST_DIGITS_HEXADECIMAL if text.startswith("0x") else _MOST_DIGITS):
        digits = len(text.lstrip("+-").removeprefix("0x"))
        raise _refusal(f"a whole number of {digits:,} digits is not readable", node)
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


def parse(text: str, source: str = "") -> Any:
    """The value of one YAML document.

    Args:
        text: the document.
        source: the file's name, for messages.

    Raises:
        UserError: not YAML; a repeated key; an alias (a few lines of nested ones stand for gigabytes); a
            tag that YAML's safe schema does not have. The message names the line and the column.
    """
    start = f"\n{text}"  # so that what is searched for always has a character before it
    marked = any(mark in text for mark in "&*!") and _NODE_PROPERTY.search(start)
    # ryaml takes tabs for spaces, and its time grows with the square of the depth of flow mappings.
    plain = not marked and "\t" not in text and text.count("{") < _MOST_FLOW_MAPPINGS
    if plain and not _OTHER_BASE.search(start):
        try:
            value = ryaml.loads(text)
        except ValueError as error:
            if str(error).startswith("recursion limit"):  # PyYAML would take a minute to notice
                raise _unreadable("nested too deep", source) from None
            return _parse_in_full(text, source)  # a fault, or a number beyond 64 bits
        if _is_read_alike(value, text):
            return value
    return _parse_in_full(text, source)


def _is_read_alike(value: Any, text: str) -> bool:
    """Whether PyYAML with our rules gives the same value as ryaml gave."""
    kind = value.__class__
    if kind is dict:
        # Keys of other kinds may be equal to each other, as 1 and 1.0 are: only PyYAML refuses these.
        return all(key.__class__ is str and _is_read_alike(each, text) for key, each in value.items())
    if kind is list:
        return all(_is_read_alike(each, text) for each in value)
    if kind is str:
        return not _WORD_FOR_NUMBER.fullmatch(value)
    if kind is float and not -_LARGEST_EXACT < value < _LARGEST_EXACT:
        return not _LONG_NUMBER.search(text)
    return True


def _parse_in_full(text: str, source: str) -> Any:
    """What :func:`parse` gives, by PyYAML's own parser, whose errors know the place."""
    prefix = f"{source}: " if source else ""
    try:
        if "*" in text:
            for event in yaml.parse(text, Loader=_Loader):
                if isinstance(event, yaml.AliasEvent):
                    problem = f"*{event.anchor}: aliases are not read; write the value out"
                    place: Any = event.start_mark
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=place)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{prefix}{place}{error.problem or error.context}") from None
    except RecursionError:
        raise _unreadable("nested too deep", source) from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        # PyYAML's constructors raise these for values such as `!!bool word` or a mapping as a key.
        reason = (str(error).splitlines() or [""])[0]
        kind = "" if isinstance(error, yaml.YAMLError) else f"{type(error).__name__}: "
        raise _unreadable(f"{kind}{reason}", source) from None


def _unreadable(reason: str, source: str) -> UserError:
    return UserError(f"{source}: not readable as YAML: {reason}".removeprefix(": "))


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
