"""Errors that a user can cause: what is wrong, where, what is allowed, what to do.

Everything here ends as one readable message and exit code 2; a bug of ours ends as a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in what the user gave: recipe, option, data, weights, output folder (exit code 2)."""


class RunFailed(RuntimeError):
    """A run that started properly and could not finish (exit code 1)."""


@dataclass(frozen=True)
class Fault:
    """One thing wrong at one place, such as ``optimizer.rho``."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class FaultsError(UserError):
    """Every fault of one file or mapping at once, so that nobody mends them one by one.

    Args:
        source: the file or name that the faults are in, empty where there is none.
        faults: at least one.
    """

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        assert faults
        self.source = source
        self.faults = tuple(faults)
        prefix = f"{source}: " if source else ""
        super().__init__("\n".join(prefix + str(fault) for fault in faults))


def close_match(name: object, known: Iterable[str]) -> str:
    """``' Did you mean "sam"?'`` if something known is spelled nearly like ``name``, else nothing."""
    matches = get_close_matches(str(name).lower(), list(known), n=1, cutoff=0.6)
    return f' Did you mean "{matches[0]}"?' if matches else ""


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The message for a name that is not in a list: the name, the list, the nearest entry."""
    names = sorted(known)
    return f'unknown {kind} "{name}". Known: {", ".join(names)}.{close_match(name, names)}'


def counted(number: int, noun: str) -> str:
    """``1 image``, ``2 images``; ``2 classes`` for a noun that ends in s."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"
