"""The plain block style that ``yaml_text.dump`` writes, read about a hundred times as fast as all of YAML.

A leaderboard reads ten thousand records, and each would take a parser of all of YAML milliseconds. Here
is a part of YAML in which every line says all about itself: ``key:``, ``key: scalar``, ``- scalar`` or
``- key: scalar``, plain or in single quotes, without comments, anchors, tags, flow style, escapes or folded
text. Anything else, be it wrong or merely unusual, is :class:`Unusual`, which says nothing about the text:
the caller reads it in the long way, whose word on faults is the only one.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Callable, Hashable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from pugdft.errors import UserError

_OTHER = -1  # in place of the indentation: the line is no `key: scalar`

_MOST_LEVELS = 32

_LONGEST_LINE = 1000  # of those that the cache may keep

# YAML 1.2's core schema.
_CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("null", "Null", "NULL", "~"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{f"{sign}.{word}": math.inf for sign in ("", "+") for word in ("inf", "Inf", "INF")},
    **{f"-.{word}": -math.inf for word in ("inf", "Inf", "INF")},
    **{f".{word}": math.nan for word in ("nan", "NaN", "NAN")},
}

_NUMBER_STARTS = frozenset("-+.0123456789")

_NUMBER = re.compile(
    r"([-+]?[0-9]+|0x[0-9a-fA-F]+)|[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
)

# Letters beyond ASCII, without the spaces, line breaks and marks among them.
_WORD = r"A-Za-z0-9_\u00a1-\u1fff\u3001-\ud7ff"
# A colon or a space inside a plain scalar has a neighbour on its right; ``#`` is left to the long way.
# Repeats are possessive (``++``), so that a line that does not fit is refused in linear time.
_INSIDE = rf"""[{_WORD}!"$%&'()*+,\-./;<=>?@\[\\\]^`{{|}}~]"""

_PLAIN = rf"(?:[-+](?=[{_WORD}.])|[{_WORD}./(]){_INSIDE}*+(?:(?::++| ++){_INSIDE}++)*+"

_QUOTED = rf"(?:[ -&(-~{_WORD}]++|'')*+"

_LINE = re.compile(
    rf"( *+)(- )?(?:([A-Za-z_][A-Za-z0-9_]{{0,99}}):(?: (?!$)|$))?(?:({_PLAIN})|'({_QUOTED})'|(\{{\}}|\[\]))?"
)

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")

_NEXT_SECTION = re.compile(r"\n(?=[A-Za-z_])")

_END_OF_ITEMS = re.compile(r"\n(?![- ])")
# A top-level key with what is indented below it, which no other section can reach into: no line that
# could end the document, no line break but ``\n``, no anchor.
_SECTION = re.compile(
    r"[A-Za-z_][A-Za-z0-9_]*:(?= |\n)[^&\n\r\x85\u2028\u2029]*\n(?:(?:(?: |- )[^&\n\r\x85\u2028\u2029]*)?\n)*"
)


class Unusual(ValueError):
    """The text is not in the plain block style."""


def read(text: str, read_section: Callable[[str], Any]) -> dict[str, Any]:
    """The mapping that ``text`` stands for.

    Args:
        text: a document.
        read_section: the long way, for a top-level key with its value where these alone are not in the
            plain style, such as an error's message folded over several lines.

    Raises:
        Unusual: the whole text is to be read in the long way.
    """
    if not text.endswith("\n"):
        raise Unusual
    try:
        return _read_lines(text)
    except Unusual:
        pass
    result: dict[str, Any] = {}
    unread = 0
    for part in _NEXT_SECTION.split(text.removesuffix("\n")):
        section = f"{part}\n"
        try:
            value = _read_lines(section)
        except Unusual:
            unread += len(section)
            # A text that is odd throughout must not be read twice.
            if 2 * unread > len(text) or not _SECTION.fullmatch(section):
                raise
            value = read_section(section)
        if not isinstance(value, dict) or len(value) != 1 or value.keys() & result.keys():
            raise Unusual
        result |= value
    return result


def _read_lines(text: str) -> dict[str, Any]:
    lines, tables = _split(text)
    root: dict[str, Any] = {}
    # What the lines so far left open, from the outside in: collections and their indentation.
    outer: list[tuple[Any, int]] = []
    inner: Any = root
    level = 0
    opened: str | None = None  # the key in `inner` whose value begins on this line
    following = 0  # the indentation of a `key: scalar` that goes on with `inner`; -2 if none can
    for indent, key, value in map(_read_line, lines):
        if indent == following:  # nearly always
            if key in inner:
                raise Unusual
            inner[key] = value
            continue
        is_item = False
        if indent == _OTHER:
            indent, is_item, value = value
        if opened is not None:
            # The items of a sequence may stand as far left as its key.
            if indent < level + (not is_item) or len(outer) >= _MOST_LEVELS:
                raise Unusual
            outer.append((inner, level))
            inner[opened] = [] if is_item else {}
            inner, level, opened = inner[opened], indent, None
        else:
            while outer and (level > indent or (level == indent and inner.__class__ is list and not is_item)):
                inner, level = outer.pop()
            if level != indent or (inner.__class__ is list) is not is_item:
                raise Unusual
        if value.__class__ is type:
            value = value()
        following = -2
        if is_item:
            if key is None:
                inner.append(value)
                continue
            if len(outer) >= _MOST_LEVELS:
                raise Unusual
            outer.append((inner, level))
            inner.append({})
            inner, level = inner[-1], indent + 2
        if key in inner:
            raise Unusual
        inner[key] = value
        if value is ...:
            opened = key
        else:
            following = level
    if opened is not None or not root:
        raise Unusual
    root.update(tables)
    return root


@lru_cache(maxsize=8192)  # records of one bench are alike in most lines
def _read_line(line: str) -> tuple[int, str | None, Any]:
    """Indentation, key and scalar, or else ``_OTHER``, key, and (indentation, is an item, value).

    The value of a line other than ``key: scalar`` may also be the class of an empty collection, or ``...``
    where it begins on the next line.
    """
    match = _LINE.fullmatch(line)
    if match is None or len(line) > _LONGEST_LINE:
        raise Unusual
    indent, dash, key, plain, quoted, empty = match.groups()
    if key in _CONSTANTS:
        raise Unusual
    value: Any = ...
    if plain is not None:
        value = _scalar(plain)
    elif quoted is not None:
        value = quoted.replace("''", "'")
    elif empty is not None:
        value = dict if empty == "{}" else list
    if dash is None and key is not None and empty is None and value is not ...:
        return len(indent), key, value
    if key is None and (dash is None or value is ...):
        raise Unusual
    return _OTHER, key, (len(indent), dash is not None, value)


def _scalar(text: str) -> Any:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[0] in _NUMBER_STARTS and (match := _NUMBER.fullmatch(text)):
        if match[1] is None:
            return float(text)
        try:
            return int(text, 16) if text.startswith("0x") else int(text)
        except ValueError:  # more digits than Python converts
            raise Unusual from None
    return text


def _split(text: str) -> tuple[list[str], dict[str, list[dict[str, Any]]]]:
    """The lines, and the tables of numbers, which are empty sequences among the lines."""
    if not text.endswith("\n"):
        raise Unusual
    tables: dict[str, list[dict[str, Any]]] = {}
    kept: list[str] = []
    done = 0
    colon = text.find(":\n- ")
    while colon >= 0:
        key = text[text.rfind("\n", 0, colon) + 1 : colon]
        end = _END_OF_ITEMS.search(text, colon + 2)
        assert end is not None
        if _KEY.fullmatch(key) and (rows := _read_table(text[colon + 2 : end.start()])):
            tables[key] = rows
            kept.append(text[done:colon])
            done = end.start()
        colon = text.find(":\n- ", end.start())
    kept.append(text[done:-1])
    return ": []".join(kept).split("\n"), tables


def _read_table(items: str) -> list[dict[str, Any]] | None:
    """The rows of a history: mappings of words to numbers or constants, which are nearly JSON already.

    None if they are anything else. JSON's numbers mean the same in YAML; what else JSON reads is refused
    beforehand, or found by counting: each key has two quotation marks, and nothing else has any.
    """
    for character in '"\\[]{},\t\rNI':
        if character in items:
            return None
    if ".nan" in items or ".inf" in items:
        items = items.replace(": .nan", ": NaN").replace(": .inf", ": Infinity")
        items = items.replace(": -.inf", ": -Infinity")
    spelled = items[2:].replace("\n- ", '},{"').replace("\n  ", ',"').replace(": ", '":')
    if "\n" in spelled:
        return None
    try:
        rows: list[dict[str, Any]] = json.loads(f'[{{"{spelled}}}]')
    except ValueError:
        return None
    if spelled.count('"') + 1 != 2 * sum(map(len, rows)):
        return None
    keys = set().union(*rows)
    return rows if all(map(_KEY.fullmatch, keys)) and not keys & _CONSTANTS.keys() else None


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
        return read(text, lambda section: _parse_in_full(section, source, aliases))
    except (Unusual, UserError):
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
