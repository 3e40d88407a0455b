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
from collections.abc import Callable
from functools import lru_cache
from typing import Any

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
