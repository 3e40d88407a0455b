"""Errors that a user can cause: what is wrong, where, what is allowed, what to do.

Everything here ends as one readable message and exit code 2; a bug of ours ends as a traceback.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any


class UserError(ValueError):
    """A mistake in what the user gave: recipe, option, data, weights, output folder (exit code 2)."""

    exit_code = 2


class FolderBusy(UserError):
    """Another process is running in the output folder (exit code 5)."""

    exit_code = 5


class RunFailed(RuntimeError):
    """A run that started properly and could not finish (exit code 1)."""


@dataclass(frozen=True)
class ConfigIssue:
    """One thing wrong at one place, such as ``optimizer.rho``, of a ``source`` other than the error's."""

    where: str
    message: str
    source: str | None = None

    def __str__(self) -> str:
        # A key with a line break would begin a message of its own.
        return f"{' '.join(self.where.split())}: {self.message}" if self.where else self.message


# A list of names as `known_names` and the options of optimizers write it.
_KNOWN = re.compile(r" Known(?: here)?: .*?\.(?=\s|$)")


class FaultsError(UserError):
    """All faults of one file or mapping, ``source``; the same list of known names is said once."""

    def __init__(self, source: str, faults: Sequence[ConfigIssue]) -> None:
        assert faults
        self.source = source
        self.faults = tuple(faults)
        lines, said = [], set[str]()
        for fault in faults:
            line = f"{source if fault.source is None else fault.source}: {fault}"
            for names in _KNOWN.findall(line):
                line = line.replace(names, "") if names in said else line
                said.add(names)
            lines.append(line.removeprefix(": "))
        super().__init__("\n".join(lines))


@contextmanager
def refuse(kinds: type[Exception] | tuple[type[Exception], ...], say: Callable[[Any], str]) -> Iterator[None]:
    """Turn ``kinds`` into a UserError with the message ``say(error)``; a UserError among others passes."""
    try:
        yield
    except kinds as error:
        if isinstance(error, UserError) and kinds is not UserError:
            raise
        raise UserError(say(error)) from None


@contextmanager
def collect(faults: list[ConfigIssue], where: str = "") -> Iterator[None]:
    """Append what the block refuses to ``faults``, so that all are named together."""
    try:
        yield
    except FaultsError as error:
        faults += [ConfigIssue(where, str(fault)) if where else fault for fault in error.faults]
    except UserError as error:
        faults.append(ConfigIssue(where, str(error)))


def reason(error: BaseException) -> str:
    """The cause that an exception gives, on one line of at most 300 characters."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())[:300]


def shortened(text: object, limit: int = 80) -> str:
    """``text`` on one line of at most ``limit`` characters, with a mark at the end of what is cut."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def close_match(name: object, known: Iterable[str]) -> str:
    """``' Did you mean "sam"?'`` if a known name is nearly ``name``, else the empty string."""
    matches = get_close_matches(str(name).lower(), list(known), n=1, cutoff=0.6)
    return f' Did you mean "{matches[0]}"?' if matches else ""


def known_names(names: Iterable[str]) -> str:
    """A list of names as the end of a message."""
    return f" Known: {', '.join(names)}."


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The message for a name that is not in a list: the name, the list, the nearest entry."""
    names, shown = sorted(known), shortened(name, 200)
    return f'unknown {kind} "{shown}".{known_names(names)}{close_match(name, names)}'


def counted(number: int, noun: str) -> str:
    """``1 image``, ``2 images``; ``2 classes`` for a noun that ends in s."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def human_bytes(num_bytes: float) -> str:
    """A number of bytes with a unit: ``1.2 GiB``."""
    power = min(max(int(num_bytes).bit_length() - 1, 0) // 10, 5)
    unit, name = 1024**power, ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")[power]
    return f"{num_bytes / unit:.{int(num_bytes < 10 * unit and unit > 1)}f} {name}"


def undriven(text: str) -> str:
    """``text`` with a mark for each character that could control a terminal; line breaks stay."""
    return "".join(each if each.isprintable() or each == "\n" else "�" for each in text)


def printable(text: object) -> str:
    """``text`` on one line, without control codes, bidirectional overrides and lone surrogates."""
    return "".join(filter(str.isprintable, " ".join(str(text).split())))
