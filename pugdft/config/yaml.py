"""Read and write YAML 1.2, strictly: no repeated key, no alias, ``1e-3`` is a number, ``no`` a word.

``ryaml`` (Rust) reads a record of 100 epochs in 1.3 ms, PyYAML with its C parser in 28 ms. A text that
``ryaml`` refuses or might read otherwise goes to PyYAML, whose messages name line and column.
"""

from __future__ import annotations

import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import ryaml

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
        status = path.stat()
        # A pipe would be waited for, and a device has no end.
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_BYTES:
            raise UserError(f"{path}: is not a file of at most {LARGEST_BYTES >> 20} MiB")
        with open(path, encoding="utf-8") as file:
            return file.read()


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


def dump(value: Any) -> str:
    """Block-style YAML of plain data, keys in the given order."""
    from pugdft.config import pyyaml

    return pyyaml.dump(value)
