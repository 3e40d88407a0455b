"""A search's dimensions laid over one optimizer: which of its options, around which values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pugdft.errors import Fault, close_match
from pugdft.optim import spec_faults
from pugdft.optim.base import BASES, find_base
from pugdft.optim.groups import GROUP_OPTIONS
from pugdft.optim.normalize import Identity
from pugdft.optim.options import keyword_defaults
from pugdft.optim.registry import ALGORITHM_OPTIONS, METHODS, build_method
from pugdft.tuning.search import Dimension, Range

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
