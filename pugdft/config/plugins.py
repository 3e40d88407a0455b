"""Find what other installed packages add: optimizers, data sets, trackers.

A package adds an object under a name of its own, by an entry point of a group in :data:`GROUPS`, or a recipe
names it itself, ``package.module:function``. Either way the object is code that somebody installed here:

* ``package.module:function`` is taken only from the place where an installed distribution has its files,
  never from a path or the current folder, and no part of it may begin with an underscore;
* what is found must be of the kind that is asked for; nothing else is ever called;
* an import happens where a name is used to build something. Reading a record or a recipe's text imports
  nothing, whatever it names.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import unquote, urlparse

from pugdft.errors import UserError, reason, refuse, shortened

OPTIMIZERS, DATASETS, TRACKERS = GROUPS = ("pugdft.optimizers", "pugdft.datasets", "pugdft.trackers")

_PLACE = re.compile(r"[A-Za-z]\w*(?:\.[A-Za-z]\w*)*:[A-Za-z]\w*", re.ASCII)
_FORM = "a name with a colon is package.module:function of a package that is installed here"

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Origin:
    """Where an object comes from, as the record keeps it."""

    module: str  # package.module:function
    distribution: str
    version: str


_origins: dict[str, Origin] = {}  # of every name that was found so far


@cache
def provided(group: str) -> Mapping[str, EntryPoint]:
    """Return the entry points of a group by name, of two of one name the first; nothing is imported."""
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        points.setdefault(point.name, point)
    return points


@cache
def find(group: str, name: str) -> Any | None:
    """Import what a name of a group stands for: an entry point's, or ``package.module:function``.

    Returns:
        The object, or None if the name is neither.

    Raises:
        UserError: it is not of an installed package, or cannot be imported.
    """
    point = provided(group).get(name)
    if point is None and not _PLACE.fullmatch(name):
        return None
    place, shown = name if point is None else point.value, shortened(name)
    module, _, attribute = place.partition(":")
    top = module.partition(".")[0]
    owner = point.dist if point is not None else _owner(top)
    if owner is None:
        raise UserError(f'"{shown}": no installed package has the module {top}; {_FORM}')
    # Foreign code may raise anything.
    with refuse(Exception, lambda error: f'"{shown}": cannot be imported: {reason(error)}'):
        found = EntryPoint(name, place, group).load()
    _origins[name] = Origin(f"{module}:{attribute}", owner.name, owner.version)
    return found


def origins(*names: object) -> dict[str, dict[str, str]]:
    """Tell of each name that another package provides its module, distribution and version."""
    return {name: asdict(_origins[name]) for name in names if isinstance(name, str) and name in _origins}


def _owner(top: str) -> Distribution | None:
    """Return the distribution whose own files hold a top-level module; the module is not imported."""
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.origin:
        return None
    origin = Path(spec.origin).resolve()
    # Most distributions have their module's name: the others' lists of files need not be read.
    for each in sorted(
        distributions(), key=lambda one: (one.name or "").replace("-", "_").lower() != top.lower()
    ):
        folder = Path(str(each.locate_file(""))).resolve()
        if origin.is_relative_to(folder):
            relative = origin.relative_to(folder).as_posix()
            if any(file.as_posix() == relative for file in each.files or ()):
                return each
        about = json.loads(each.read_text("direct_url.json") or "{}")
        if about.get("dir_info", {}).get("editable"):
            checkout = Path(unquote(urlparse(about.get("url", "")).path)).resolve()
            if origin.is_relative_to(checkout):
                return each
    return None


class OpenRegistry(UserDict[str, Entry], Generic[Entry]):
    """A table of our own names that also knows those of other packages; ours come first.

    ``accepts`` turns what another package provides into an entry, or into None if it is of another table. It
    raises a UserError for what is of no use at all. Iteration leaves out what cannot be imported.
    """

    def __init__(
        self, own: Mapping[str, Entry], group: str, accepts: Callable[[str, Any], Entry | None]
    ) -> None:
        super().__init__(own)
        self._group, self._accepts = group, accepts

    def __contains__(self, name: object) -> bool:
        return name in self.data or self._outside(name) is not None

    def __missing__(self, name: str) -> Entry:
        if (found := self._outside(name)) is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        yield from self.data
        for name in provided(self._group):
            with suppress(UserError):
                if name not in self.data and name in self:
                    yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _outside(self, name: object) -> Entry | None:
        found = find(self._group, name) if isinstance(name, str) else None
        return None if found is None else self._accepts(str(name), found)
