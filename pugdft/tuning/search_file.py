"""A search file, read strictly: every fault at once, each with its place. No torch."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pugdft import yaml_text
from pugdft.errors import Fault, FaultsError, UserError, close_match
from pugdft.recipe import recipe_folder
from pugdft.tuning.search import SAMPLERS, Dimension, GeneralSearch, GreedySearch, Range, Search

_MOST = 100_000
_LONGEST_SHOWN = 80


def bundled_searches() -> dict[str, Path]:
    """Name to file of the searches that come with pugdft."""
    return {path.stem: path for path in sorted((recipe_folder() / "searches").glob("*.yaml"))}


def read_search(source: str) -> Search:
    """A search from a file or a bundled one's name.

    Raises:
        UserError: there is no such file, or it is no mapping.
        FaultsError: with every fault of the file.
    """
    path = _find(source)
    data = yaml_text.parse(yaml_text.read_text(path), str(path))
    title = path.stem if path in bundled_searches().values() else path.name
    reader = _Reader()
    search = reader.search(data, title)
    if reader.faults:
        raise FaultsError(str(path), list(dict.fromkeys(reader.faults)))
    assert search is not None
    return search


def _find(source: str) -> Path:
    bundled = bundled_searches()
    path = Path(source)
    if source and os.path.isfile(path):  # pathlib's raises where a name is too long
        return path
    if source in bundled:
        return bundled[source]
    hint = close_match(path.stem[:_LONGEST_SHOWN], bundled)
    raise UserError(
        f'--search "{source[:_LONGEST_SHOWN]}": no such file or bundled search. '
        f"Bundled: {', '.join(bundled)}.{hint}"
    )


class _Reader:
    """Turns a file's data into a search; what is wrong is collected, and said of its place."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def search(self, data: Any, title: str) -> Search | None:
        kind = data.get("search") if isinstance(data, Mapping) else None
        if kind == "greedy":
            return self._greedy(data, title)
        if kind == "general":
            return self._general(data, title)
        problem = "is required" if kind is None else f"must be greedy or general, not {_shown(kind)}"
        self._fault("search", f"{problem}: greedy, with stages, or general, with a space")
        return None

    def _greedy(self, data: Mapping[str, Any], title: str) -> GreedySearch:
        self._keys("", data, ("search", "equalize", "stages"))
        given = data.get("stages")
        stages: list[Dimension] = []
        if not isinstance(given, list) or not given:
            self._fault("stages", "is required: a list such as [{option: base.lr, times: [0.1, 1, 10]}]")
            given = []
        for number, stage in enumerate(given):
            where = f"stages.{number}"
            if not isinstance(stage, Mapping):
                self._fault(where, "must be a mapping, such as {option: rho, values: [0.05, 0.1]}")
            elif read := self._stage(where, stage):
                if read.option in [other.option for other in stages]:
                    self._fault(f"{where}.option", f'"{read.option}" stands twice')
                # What the base finds would change a method that was scored with another base.
                if read.alone and (own := [other.option for other in stages if not other.alone]):
                    self._fault(f"{where}.with", f"base must come before stages with the method ({own[0]})")
                stages.append(read)
        return GreedySearch(title, tuple(stages), self._flag(data, "equalize", True))

    def _stage(self, where: str, stage: Mapping[str, Any]) -> Dimension | None:
        self._keys(where, stage, ("option", "values", "times", "with"))
        option = stage.get("option")
        self._option(f"{where}.option", option)
        searched = stage.get("with", "method")
        if searched not in ("base", "method"):
            self._fault(f"{where}.with", f"must be base or method, not {_shown(searched)}")
        elif searched == "base" and isinstance(option, str) and not option.startswith("base."):
            self._fault(f"{where}.with", f"base searches options of the base, such as base.lr, not {option}")
        given = [key for key in ("values", "times") if key in stage]
        if len(given) != 1:
            self._fault(where, "expected either values or times, with a list")
            return None
        points = self._points(f"{where}.{given[0]}", stage[given[0]], given[0] == "times")
        return Dimension(str(option), points, given[0] == "times", searched == "base") if points else None

    def _general(self, data: Mapping[str, Any], title: str) -> GeneralSearch:
        self._keys("", data, ("search", "sampler", "trials", "seed", "space"))
        sampler = data.get("sampler", "tpe")
        if sampler not in SAMPLERS:
            hint = close_match(sampler, SAMPLERS)
            self._fault("sampler", f"must be {' or '.join(SAMPLERS)}, not {_shown(sampler)}.{hint}")
        given = data.get("space")
        space: list[Dimension] = []
        if not isinstance(given, Mapping) or not given:
            self._fault("space", "is required: a mapping such as {base.lr: {low: 1e-4, high: 0.1}}")
            given = {}
        for option, where in given.items():
            self._option(f"space.{option}", option)
            if read := self._dimension(str(option), where):
                space.append(read)
        trials = self._whole(data, "trials", 30, 1)
        return GeneralSearch(title, tuple(space), str(sampler), trials, self._whole(data, "seed", 0, 0))

    def _dimension(self, option: str, given: Any) -> Dimension | None:
        where = f"space.{option}"
        times = isinstance(given, Mapping) and "times" in given
        if times:
            self._keys(where, given, ("times",))
            given, where = given["times"], f"{where}.times"
        if isinstance(given, Mapping):
            span = self._range(where, given, times)
            return Dimension(option, span, times) if span else None
        if isinstance(given, list):
            points = self._points(where, given, times)
            return Dimension(option, points, times) if points else None
        self._fault(where, "must be a list, {low: …, high: …, log: true}, or {times: …} with one of them")
        return None

    def _range(self, where: str, given: Mapping[str, Any], times: bool) -> Range | None:
        self._keys(where, given, ("low", "high", "log"))
        bounds = []
        for key in ("low", "high"):
            if _is_number(given.get(key)):
                bounds.append(float(given[key]))
            else:
                problem = (
                    f"must be a finite number, not {_shown(given[key])}" if key in given else "is required"
                )
                self._fault(f"{where}.{key}", problem)
        log = self._flag(given, "log", False, f"{where}.log")
        if len(bounds) < 2:
            return None
        low, high = bounds
        if low >= high:
            self._fault(where, f"low ({low:g}) must be below high ({high:g})")
        elif low <= 0 and (log or times):
            reason = "log: true" if log else "times"
            self._fault(f"{where}.low", f"must be above 0 with {reason}, not {low:g}")
        else:
            return Range(low, high, log)
        return None

    def _points(self, where: str, given: Any, times: bool) -> tuple[Any, ...]:
        if not isinstance(given, list) or not given:
            self._fault(where, f"must be a list, such as [0.5, 1, 2], not {_shown(given)}")
            return ()
        for point in given:
            if times and not (_is_number(point) and point > 0):
                self._fault(where, f"must be finite numbers above 0, not {_shown(point)}")
            elif isinstance(point, float) and not math.isfinite(point):
                self._fault(where, f"must be finite, not {_shown(point)}")
            elif [other == point and type(other) is type(point) for other in given].count(True) > 1:
                self._fault(where, f"{_shown(point)} stands twice")
        return tuple(float(point) if times and _is_number(point) else point for point in given)

    def _option(self, where: str, option: Any) -> None:
        parts = option.split(".") if isinstance(option, str) else []
        named = parts[-1] if parts and (len(parts) == 1 or (len(parts) == 2 and parts[0] == "base")) else ""
        if not named or named in ("name", "base"):
            self._fault(where, "must be an option of a method, such as rho, or of a base, such as base.lr")

    def _keys(self, where: str, given: Mapping[Any, Any], known: Collection[str]) -> None:
        for key in given:
            if key not in known:
                place = f"{where}.{key}" if where else str(key)
                self._fault(place, f"unknown key. Known: {', '.join(known)}.{close_match(key, known)}")

    def _flag(self, given: Mapping[str, Any], key: str, default: bool, where: str = "") -> bool:
        value = given.get(key, default)
        if not isinstance(value, bool):
            self._fault(where or key, f"must be true or false, not {_shown(value)}")
        return bool(value)

    def _whole(self, given: Mapping[str, Any], key: str, default: int, least: int) -> int:
        value = given.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= _MOST:
            return value
        self._fault(key, f"must be a whole number from {least} to {_MOST:,}, not {_shown(value)}")
        return default

    def _fault(self, where: str, message: str) -> None:
        self.faults.append(Fault(where, message))


def _is_number(value: Any) -> bool:
    # A whole number may be longer than any float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:_LONGEST_SHOWN]
