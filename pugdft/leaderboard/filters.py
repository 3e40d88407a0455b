"""``--dataset`` and ``--model``: a name, or a part of it that no other name has; case does not matter."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pugdft.errors import UserError, close_match
from pugdft.leaderboard.printable import printable


class NothingMatches(UserError):
    """A filter that no name fits, so that another source of names may be asked."""


def chosen(kind: str, wanted: str, names: Iterable[str], source: str = "record") -> str:
    """The one name that is meant: exactly, then but for case, then as the only one with that part.

    Args:
        kind: such as ``data set``, for the message.
        wanted: what the user gave.
        names: what exists.
        source: what has these names, for the message.

    Raises:
        NothingMatches: none; the message lists what exists.
        UserError: several.
    """
    known = sorted(set(names))
    folded = wanted.casefold()
    tests: list[Callable[[str], bool]] = [
        lambda name: name == wanted,
        lambda name: name.casefold() == folded,
        lambda name: folded in name.casefold(),
    ]
    matches = next((found for test in tests if (found := [name for name in known if test(name)])), [])
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f'{kind} "{printable(wanted)}" is part of several names: {", ".join(matches)}')
    exists = f"Known: {', '.join(known)}" if known else f"There are no {source}s"
    raise NothingMatches(
        f'no {source} of {kind} "{printable(wanted)}". {exists}.{close_match(wanted, known)}'
    )
