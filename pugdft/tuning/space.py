"""A search's dimensions laid over one optimizer: which of its options, around which values."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pugdft.config import yaml
from pugdft.config.load import recipe_folder
from pugdft.errors import Fault, FaultsError, UserError, close_match
from pugdft.optim import spec_faults
from pugdft.optim.base import BASES, GROUP_OPTIONS, find_base
from pugdft.optim.build import ALGORITHM_OPTIONS, build_method
from pugdft.optim.combine import Identity
from pugdft.optim.methods import METHODS
from pugdft.optim.options import keyword_defaults

SAMPLERS = ("tpe", "random")


@dataclass(frozen=True)
class Range:
    """Between two numbers; ``log``: evenly on a logarithmic scale."""

    low: float
    high: float
    log: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As in a file."""
        return {"low": self.low, "high": self.high, "log": self.log}


@dataclass(frozen=True)
class Dimension:
    """Where one option is looked for.

    Attributes:
        option: ``rho`` of a method, ``base.lr`` of its base.
        where: a list of points, or a range.
        times: the points or bounds multiply what an optimizer would run with untuned.
        alone: in a greedy search: with the base optimizer alone.
    """

    option: str
    where: tuple[Any, ...] | Range
    times: bool = False
    alone: bool = False

    def as_dict(self) -> Any:
        """As in a space."""
        where = self.where.as_dict() if isinstance(self.where, Range) else list(self.where)
        return {"times": where} if self.times else where


@dataclass(frozen=True)
class GreedySearch:
    """One option after another.

    Attributes:
        title: how tables and records call it.
        stages: in this order.
        equalize: shorter searches get finer grids until all optimizers have the same number of trials.
    """

    title: str
    stages: tuple[Dimension, ...]
    equalize: bool = True

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Every option that is searched."""
        return self.stages

    def as_dict(self) -> dict[str, Any]:
        """What was read, with every default."""
        stages = [
            {
                "option": stage.option,
                "times" if stage.times else "values": list(stage.where),  # type: ignore[arg-type]
                "with": "base" if stage.alone else "method",
            }
            for stage in self.stages
        ]
        return {"search": "greedy", "equalize": self.equalize, "stages": stages}


@dataclass(frozen=True)
class GeneralSearch:
    """All options together, by Optuna.

    Attributes:
        title: how tables and records call it.
        space: the options.
        sampler: ``tpe`` or ``random``.
        trials: of each optimizer.
        seed: of the sampler.
    """

    title: str
    space: tuple[Dimension, ...]
    sampler: str = "tpe"
    trials: int = 30
    seed: int = 0

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Every option that is searched."""
        return self.space

    def as_dict(self) -> dict[str, Any]:
        """What was read, with every default."""
        space = {dimension.option: dimension.as_dict() for dimension in self.space}
        return {
            "search": "general",
            "sampler": self.sampler,
            "trials": self.trials,
            "seed": self.seed,
            "space": space,
        }


Search = GreedySearch | GeneralSearch


_BASE = "base."
# A best value so near a bound of a range, as a share of it, may have stopped there for want of room.
_NEAR = 0.05


@dataclass(frozen=True)
class Untuned:
    """An optimizer before the search: as it was written, and what it would run with."""

    label: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """A dimension for one optimizer.

    Attributes:
        start: the untuned value.
        alone: the search runs the base optimizer alone.
    """

    option: str
    where: tuple[Any, ...] | Range
    times: bool
    start: Any
    alone: bool = False

    def value(self, point: Any) -> Any:
        """The option's value at a point of the list or range."""
        if self.times and point == 1:
            return self.start
        value = _scaled(self.start, point) if self.times else point
        # Digits beyond these are noise, and would stand in every table.
        return _rounded(value, 4) if isinstance(self.where, Range) else value

    @property
    def values(self) -> list[Any]:
        """Those of a list; of a range, its bounds."""
        points = (self.where.low, self.where.high) if isinstance(self.where, Range) else self.where
        return [self.value(point) for point in points]

    def edge(self, value: Any) -> str:
        """``lower`` or ``upper`` if ``value`` lies at that end of what was searched, else nothing."""
        points = (self.where.low, self.where.high) if isinstance(self.where, Range) else self.where
        places = {point: self.value(point) for point in points if _is_number(point)}
        if len(places) < len(points) or len(points) < 2:
            return ""
        low, high = places[min(places)], places[max(places)]
        if isinstance(self.where, Range) and _is_number(value) and _is_number(low):
            scale = math.log if self.where.log else float
            share = (scale(value) - scale(low)) / (scale(high) - scale(low))
            return "lower" if share < _NEAR else "upper" if share > 1 - _NEAR else ""
        return "lower" if value == low else "upper" if value == high else ""

    def refined(self, further: int) -> Axis:
        """With so many points more, each in the middle of what is then the widest gap of the list."""
        assert self.can_refine
        points = sorted(self.where)  # type: ignore[arg-type]
        log = self.times or (points[0] > 0 and points[-1] / points[0] >= 10)
        scale, back = (math.log, math.exp) if log else (float, float)
        added: list[float] = []
        for _ in range(further):
            gap = max(range(len(points) - 1), key=lambda left: scale(points[left + 1]) - scale(points[left]))
            middle = _rounded(back((scale(points[gap]) + scale(points[gap + 1])) / 2), 4)
            points.insert(gap + 1, middle)
            added.append(middle)
        return replace(self, where=(*self.where, *added))  # type: ignore[misc]

    @property
    def can_refine(self) -> bool:
        """Whether it is a list of two numbers or more, not of words or whole numbers' counts."""
        if isinstance(self.where, Range) or len(self.where) < 2:
            return False
        counts = isinstance(self.start, int) and not isinstance(self.start, bool)
        return not counts and all(_is_number(point) for point in self.where)


def axes_of(dimensions: Sequence[Dimension], spec: Mapping[str, Any]) -> list[Axis]:
    """The dimensions that an optimizer has, around its own values."""
    own_lr = spec["name"] in METHODS and has_own_lr(spec)
    return [
        Axis(
            dimension.option,
            dimension.where,
            dimension.times,
            start_value(spec, dimension.option),
            dimension.alone and spec["name"] in METHODS and not own_lr,
        )
        for dimension in dimensions
        if has_option(spec, dimension.option)
    ]


def has_option(spec: Mapping[str, Any], option: str) -> bool:
    """Whether an optimizer has an option: ``rho`` of its method, ``base.lr`` of its base."""
    if option.startswith(_BASE):
        return option.removeprefix(_BASE) in _base_options(spec)
    return spec["name"] in METHODS and option in _method_options(spec["name"])


def start_value(spec: Mapping[str, Any], option: str) -> Any:
    """What an optimizer would run with untuned."""
    if option.startswith(_BASE):
        return _base_options(spec)[option.removeprefix(_BASE)]
    return spec.get(option, _method_options(spec["name"]).get(option))


def with_option(spec: Mapping[str, Any], option: str, value: Any) -> dict[str, Any]:
    """The optimizer with another value of an option."""
    if not option.startswith(_BASE):
        return {**spec, option: value}
    key = option.removeprefix(_BASE)
    if spec["name"] in METHODS:
        return {**spec, "base": {**spec["base"], key: value}}
    return {**spec, key: value}


def has_own_lr(spec: Mapping[str, Any]) -> bool:
    """Whether the gradient's length is not in a method's step, so that the base's lr says nothing of it."""
    options = {key: value for key, value in spec.items() if key not in ("name", "base")}
    return not isinstance(build_method(spec["name"], options).normalize, Identity)


def space_faults(dimensions: Sequence[Dimension], optimizers: Sequence[Untuned]) -> list[Fault]:
    """What is wrong with a search for these optimizers: options that nobody has, values that are refused."""
    known = {f"{_BASE}{key}" for base in BASES.values() for key in keyword_defaults(base)}
    known |= {f"{_BASE}{key}" for each in optimizers for key in _base_options(each.spec)}
    known |= {option for name in METHODS for option in _method_options(name)}
    faults = [
        Fault(option, f"no optimizer has this option.{close_match(option, known)}")
        for option in (dimension.option for dimension in dimensions)
        if option not in known
    ]
    if faults:
        return faults
    for optimizer in optimizers:
        axes = axes_of(dimensions, optimizer.spec)
        if not axes:
            faults.append(Fault("", f'"{optimizer.label}" has none of the options that are searched'))
        for axis in axes:
            faults += _axis_faults(axis, optimizer)
    return list(dict.fromkeys(faults))


def _axis_faults(axis: Axis, optimizer: Untuned) -> list[Fault]:
    where = f'{axis.option} of "{optimizer.label}"'
    if axis.times and not _can_scale(axis.start):
        return [Fault(where, f"is {axis.start!r} untuned, of which there are no multiples: leave out times")]
    found = (spec_faults(with_option(optimizer.spec, axis.option, value)) for value in axis.values)
    return [Fault(where, str(fault)) for faults in found for fault in faults]


def _method_options(name: str) -> dict[str, Any]:
    return {**ALGORITHM_OPTIONS, **keyword_defaults(METHODS[name])}


def _base_options(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of the base with its untuned value."""
    base = spec["base"] if spec["name"] in METHODS else spec
    constructor = find_base(base["name"])
    assert constructor is not None
    given = {key: value for key, value in base.items() if key != "name"}
    return {**keyword_defaults(constructor), **GROUP_OPTIONS, **given}


def _can_scale(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "schedule" in value
    return _is_number(value) and value != 0


def _scaled(value: Any, factor: float) -> Any:
    """A number, or a schedule of numbers, so many times as large."""
    if not isinstance(value, Mapping):
        return _rounded(value * factor, 6)
    # isin and icos are the reciprocals of what lies between their bounds.
    factor = 1 / factor if value["schedule"] in ("isin", "icos") else factor
    return {
        key: number if key == "schedule" else _rounded(number * factor, 6) for key, number in value.items()
    }


def _rounded(value: Any, digits: int) -> Any:
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
    data = yaml.parse(yaml.read_text(path), str(path))
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
            if _search_file_is_number(given.get(key)):
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
            if times and not (_search_file_is_number(point) and point > 0):
                self._fault(where, f"must be finite numbers above 0, not {_shown(point)}")
            elif isinstance(point, float) and not math.isfinite(point):
                self._fault(where, f"must be finite, not {_shown(point)}")
            elif [other == point and type(other) is type(point) for other in given].count(True) > 1:
                self._fault(where, f"{_shown(point)} stands twice")
        return tuple(float(point) if times and _search_file_is_number(point) else point for point in given)

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


def _search_file_is_number(value: Any) -> bool:
    # A whole number may be longer than any float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:_LONGEST_SHOWN]
