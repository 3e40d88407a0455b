"""Read and write YAML 1.2, strictly: no repeated key, no alias, ``1e-3`` is a number, ``no`` a word.

``ryaml`` (Rust) reads a record of 100 epochs in 1.3 ms, PyYAML with its C parser in 28 ms. A text that
``ryaml`` refuses or might read otherwise goes to PyYAML, whose messages name line and column.
"""

from __future__ import annotations

import marshal
import os
import re
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import ryaml
from pydantic_core import from_json

from pugdft.errors import UserError, reason, refuse

LARGEST_BYTES = 256 << 20  # of a file; a record with a history of a million epochs is smaller

_MOST_BRACKETS = 1000

# At the start of a value, after the colon of a quoted key too. Possessive, since it is tried at every value.
_READ_OTHERWISE = re.compile(
    r"""[\s\[{,"']:?(?=[-+.0-9&*!])(?:
        [&*!]                                       # ryaml follows aliases and ignores tags,
        | [-+]?(?:
            0b[01_]+ | 0o[0-7_]+ | 0[xX][0-9a-fA-F_]+   # reads more numbers of other bases,
            | 0[0-9][0-9.]*(?:[eE][-+]?[0-9]+)?         # takes 010 for a word,
            | [0-9]{20}[0-9.]*(?:[eE][-+]?[0-9]+)?      # makes floats of whole numbers beyond 64 bits,
            | [0-9.]++[eE]\+?[0-9]{3,}                  # and takes 1e400 for a word
        )(?=[\s\]},:]|\Z)
    )""",
    re.VERBOSE,
)


def read_text(path: Path) -> str:
    """The text of a file; a UserError if it cannot be read, is too large, or is no text in UTF-8."""

    def undecodable(error: UnicodeDecodeError) -> str:
        number = error.object[: error.start].count(b"\n") + 1
        return f"{path}: is not text in UTF-8 (line {number}); save it as UTF-8"

    cannot = refuse(OSError, lambda error: f"{path}: cannot be read: {reason(error)}")
    with cannot, refuse(UnicodeDecodeError, undecodable):
        status = os.stat(path)
        # A pipe would be waited for, and a device has no end.
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_BYTES:
            raise UserError(f"{path}: is not a file of at most {LARGEST_BYTES >> 20} MiB")
        # Bytes without a buffer: a text file takes three times as long to open.
        with open(path, "rb", buffering=0) as file:
            text = file.read().decode()
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def parse(text: str, source: str = "") -> Any:
    """The value of one YAML document; ``source`` names its file in messages.

    A UserError has line and column of what is not YAML, a repeated key, an alias (a few lines of nested ones
    stand for gigabytes) or a tag that YAML's safe schema does not have.
    """
    # ryaml takes tabs for spaces, and its time grows with the square of the depth of brackets.
    is_plain = "\t" not in text and text.count("{") + text.count("[") < _MOST_BRACKETS
    if is_plain and not _READ_OTHERWISE.search(f"\n{text}"):
        with suppress(ValueError):  # PyYAML says what is wrong, and where
            return ryaml.loads(text)
    from pugdft.config import pyyaml

    return pyyaml.parse(text, source)


# Where a section of a document begins, and a part of a section.
_SECTION, _PART = re.compile(r"\n(?=[a-z])"), re.compile(r"\n  (?=[a-z])")
_NO_NUMBER = re.compile(r"[^a-z0-9_:. \n+-]")


class Reader:
    """Parse many documents that have parts in common, as :func:`parse` would, in half of its time.

    What stands below the keys ``shared`` is parsed part by part, and each text once. A list of mappings of
    numbers, such as a run's history, is read as JSON.
    """

    def __init__(self, shared: Collection[str]) -> None:
        self._shared = shared
        self._parts: dict[str, bytes] = {}  # as bytes, so that no document can change the values of another

    def parse(self, text: str, source: str = "") -> Any:
        """The value of one document; errors are those of :func:`parse`."""
        with suppress(ValueError):
            return self._parsed(text)
        return parse(text, source)

    def _parsed(self, text: str) -> dict[str, Any]:
        """The value of a mapping in block style; a ValueError where it may be another text."""
        if "\n---" in text or "\n..." in text or text.count("{") + text.count("[") >= _MOST_BRACKETS:
            raise ValueError("several documents, or deep brackets")
        if text[-1:] != "\n":
            raise ValueError("a last line without an end, which it would get here")
        values: dict[str, Any] = {}
        rest: dict[str, str] = {}
        sections = _SECTION.split(text.removesuffix("\n"))
        for section in sections:
            key, _, content = section.partition(":\n")
            if key in self._shared and content:
                values[key] = self._joined(*_PART.split(f"\n{content}"))
            elif content.startswith("- ") and _is_word(key) and (rows := _rows(content)):
                values[key] = rows
            else:
                key = key.partition(":")[0]
                values[key] = rest[key] = section
        parsed = parse("\n".join([*rest.values(), ""]))
        if len(values) < len(sections) or not isinstance(parsed, dict) or parsed.keys() != rest.keys():
            raise ValueError("a key is not what it seems, or stands twice")
        values.update(parsed)
        return values

    def _joined(self, before: str, *parts: str) -> dict[str, Any]:
        """The mapping that these parts of a section make, with nothing before them."""
        values: dict[str, Any] = {}
        for part in parts:
            if part not in self._parts:
                self._parts[part] = marshal.dumps(parse(f"  {part}\n"))
            value = marshal.loads(self._parts[part])  # noqa: S302 (its own bytes)
            if not isinstance(value, dict) or len(value) != 1:
                raise ValueError("a part is no mapping of one key")
            values.update(value)
        if before or len(values) != len(parts):
            raise ValueError("something stands before the first part, or a part stands twice")
        return values


def _is_word(key: str) -> bool:
    """Whether YAML and JSON read a key alike; YAML has none of more than 1,024 characters."""
    return key.isidentifier() and key not in ("null", "true", "false") and len(key) <= 1024


def _rows(text: str) -> list[dict[str, Any]] | None:
    """The rows of a list of mappings of numbers, ``- epoch: 1``; None if there may be anything else."""
    if _NO_NUMBER.search(text):
        return None
    json = '[{"' + text[2:].replace("\n- ", '},{"').replace("\n  ", ',"').replace(": ", '":') + "}]"
    try:
        rows = from_json(json) if "\n" not in json else []  # no other line than such a pair
    except ValueError:
        return None
    are_words = all(map(_is_word, set().union(*rows)))
    return rows if are_words and sum(map(len, rows)) == json.count('":') else None


def dump(value: Any) -> str:
    """Block-style YAML of plain data, keys in the given order."""
    from pugdft.config import pyyaml

    return pyyaml.dump(value)
