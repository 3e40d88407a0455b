"""Text from a record, made safe to show: a record may come from anyone."""

from __future__ import annotations


def printable(text: object) -> str:
    """``text`` on one line, without control characters, escape codes or invisible marks.

    ``str.isprintable`` refuses the terminal's control codes, bidirectional overrides and lone surrogates
    alike; a line break or a tab becomes a space, so that words stay apart.
    """
    spaced = " ".join(str(text).split())
    return "".join(character for character in spaced if character.isprintable())
