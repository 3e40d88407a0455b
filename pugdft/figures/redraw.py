"""Which function draws a stored analysis, by its kind; each is imported when it is used. No torch.

A drawing function takes what :func:`pugdft.analysis.files.read_analysis` returns, and where to draw::

    draw(facts, arrays, stem, formats, *, view, width, theme) -> list[Path]

``stem`` is the pictures' path without a suffix; ``view`` is the command's ``--view`` (``all`` by default),
``width`` is ``column``, ``text``, inches or None for the kind's own, and ``theme`` is ``light`` or ``dark``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from pugdft.errors import UserError, reason, refuse, unknown

DRAWN_BY: dict[str, str] = {
    "landscape": "surfaces:draw_landscape",
    "trajectory": "surfaces:draw_trajectory",
    "terrain": "terrain_pictures:draw_terrain",
    "spectrum": "surfaces:draw_spectrum",
}
"""Kinds of analyses → ``module:function`` in this package, such as ``surfaces:draw_landscape``."""


def drawer_of(kind: str, facts_path: Path) -> Callable[..., list[Path]]:
    """The function that draws analyses of a kind; a UserError if there is none."""
    if kind not in DRAWN_BY:
        raise UserError(f"{facts_path}: no picture is known: {unknown('kind', kind, DRAWN_BY)}")
    module, _, name = DRAWN_BY[kind].partition(":")
    found: Any = getattr(import_module(f"pugdft.figures.{module}"), name)
    return found


def redraw(
    kind: str,
    facts: Mapping[str, Any],
    arrays: Mapping[str, Any],
    path: Path,
    formats: list[str],
    **options: Any,
) -> list[Path]:
    """Draw a stored analysis beside its data file ``path``; return the pictures' paths.

    Raises:
        UserError: nothing draws this kind, the data are damaged, or too few points are computed.
    """
    draw = drawer_of(kind, path)
    with damaged(path):
        return draw(facts, arrays, path.with_suffix(""), formats, **options)


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Turn what an array or a fact of a wrong kind raises into one message; anybody may write a file."""
    kinds = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, SyntaxError)
    with refuse(kinds, lambda error: f"{path}: is damaged: {reason(error)}"):
        yield
