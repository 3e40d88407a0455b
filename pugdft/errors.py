"""Errors that a user can cause: what is wrong, where, what is allowed, what to do.

Everything here ends as one readable message and exit code 2; a bug of ours ends as a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

_LONGEST_NAME = 200


class UserError(ValueError):
    """A mistake in what the user gave: recipe, option, data, weights, output folder (exit code 2)."""


class RunFailed(RuntimeError):
    """A run that started properly and could not finish (exit code 1)."""


@dataclass(frozen=True)
class ConfigIssue:
    """One thing wrong at one place, such as ``optimizer.rho``.

    Attributes:
        source: what the place is in, if not what the others of a :class:`FaultsError` are in.
    """

    where: str
    message: str
    source: str | None = None

    def __str__(self) -> str:
        # A key may hold a line break, and would begin a message of its own.
        return f"{' '.join(self.where.split())}: {self.message}" if self.where else self.message


class FaultsError(UserError):
    """All faults of one file or mapping, so that a user can mend them together.

    Args:
        source: the file or name that the faults are in, empty where there is none.
        faults: at least one.
    """

    def __init__(self, source: str, faults: Sequence[ConfigIssue]) -> None:
        assert faults
        self.source = source
        self.faults = tuple(faults)
        sources = [source if fault.source is None else fault.source for fault in faults]
        lines = [
            f"{each}: {fault}" if each else str(fault) for each, fault in zip(sources, faults, strict=True)
        ]
        super().__init__("\n".join(lines))


def undriven(text: str) -> str:
    """``text`` with a mark in the place of what could drive a terminal; lines stay lines.

    A name in a message may come from a file that somebody else made.
    """
    return "".join(each if each.isprintable() or each == "\n" else "�" for each in text)


def close_match(name: object, known: Iterable[str]) -> str:
    """``' Did you mean "sam"?'`` if something known is spelled nearly like ``name``, else nothing."""
    matches = get_close_matches(str(name).lower(), list(known), n=1, cutoff=0.6)
    return f' Did you mean "{matches[0]}"?' if matches else ""


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The message for a name that is not in a list: the name, the list, the nearest entry."""
    names = sorted(known)
    shown = " ".join(str(name).split())
    shown = shown if len(shown) <= _LONGEST_NAME else f"{shown[:_LONGEST_NAME]}…"
    return f'unknown {kind} "{shown}". Known: {", ".join(names)}.{close_match(name, names)}'


def counted(number: int, noun: str) -> str:
    """``1 image``, ``2 images``; ``2 classes`` for a noun that ends in s."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def printable(text: object) -> str:
    """``text`` on one line, without control characters, escape codes or invisible marks.

    ``str.isprintable`` refuses the terminal's control codes, bidirectional overrides and lone surrogates
    alike; a line break or a tab becomes a space, so that words stay apart.
    """
    spaced = " ".join(str(text).split())
    return "".join(character for character in spaced if character.isprintable())
