"""Search files, and a search's dimensions applied to one optimizer: which options, around which values."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, PrivateAttr, Tag, model_validator

from pugdft.bench.grid import method_of, read_section
from pugdft.bench.optimizer_spec import method_defaults
from pugdft.config import yaml
from pugdft.config.load import recipe_folder
from pugdft.config.schema import Number, Section
from pugdft.errors import ConfigIssue, FaultsError, UserError, close_match
from pugdft.optim import spec_faults
from pugdft.optim.base import BASES, GROUP_OPTIONS
from pugdft.optim.build import base_defaults
from pugdft.optim.combine import Identity
from pugdft.optim.methods import METHODS

_BASE = "base."
_NEAR = 0.05  # share of a range: beyond a bound this close to the best value, a better one may lie
_LONGEST_SHOWN = 80


def _check_option(option: str) -> str:
    name = option.removeprefix(_BASE)
    if not name or "." in name or name in ("name", "base"):
        raise UserError("must be an option of a method, such as rho, or of a base, such as base.lr")
    return option


def _check_points(points: list[Any]) -> list[Any]:
    faults = []
    for number, point in enumerate(points):
        if isinstance(point, float) and not math.isfinite(point):
            faults.append(f"must be finite, not {json.dumps(point)}")
        elif any(other == point and type(other) is type(point) for other in points[:number]):
            faults.append(f"{json.dumps(point, default=str)[:_LONGEST_SHOWN]} stands twice")
    _refuse([("", fault) for fault in faults])
    return points


def _refuse(faults: Sequence[tuple[str, str]]) -> None:
    """Raise the faults, each a place in the file and a message, if there are any."""
    if faults:
        raise FaultsError("", list(starmap(ConfigIssue, faults)))


Option = Annotated[str, AfterValidator(_check_option)]
Points = Annotated[list[Any], Field(min_length=1), AfterValidator(_check_points)]
Factors = Annotated[list[Annotated[Number, Field(gt=0)]], Field(min_length=1), AfterValidator(_check_points)]


class NumberRange(Section):
    """All numbers between two; ``log``: evenly on a logarithmic scale."""

    low: Number
    high: Number
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> NumberRange:
        if self.low >= self.high:
            raise UserError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise UserError(f"low must be above 0 with log: true, not {self.low:g}")
        return self


def _positive(span: NumberRange) -> NumberRange:
    if span.low <= 0:
        raise UserError(f"low must be above 0 with times, not {span.low:g}")
    return span


def _kind(given: Any) -> str | None:
    """Name the alternative of :data:`Where` that a value of a file, or an object made of it, belongs to."""
    if isinstance(given, Mapping | Section):
        return "<times>" if "times" in dict(given) else "<range>"
    return "<list>" if isinstance(given, list) else None


def _by_kind(expected: str) -> Discriminator:
    return Discriminator(_kind, custom_error_type="kind", custom_error_message=expected)


class Multiples(Section):
    """Points or bounds that multiply what an optimizer would run with untuned."""

    times: Annotated[
        Annotated[Factors, Tag("<list>")] | Annotated[NumberRange, AfterValidator(_positive), Tag("<range>")],
        _by_kind("a list, or {low: …, high: …, log: true}"),
    ]


Where = Annotated[
    Annotated[Points, Tag("<list>")]
    | Annotated[NumberRange, Tag("<range>")]
    | Annotated[Multiples, Tag("<times>")],
    _by_kind("a list, {low: …, high: …, log: true}, or {times: …} with one of them"),
]


class SearchStage(Section):
    """One option of a greedy search: its values, or factors of its untuned value."""

    option: Option
    values: Points | None = None
    times: Factors | None = None
    searched: Literal["base", "method"] = Field("method", alias="with")

    @model_validator(mode="after")
    def _check(self) -> SearchStage:
        faults = []
        if (self.values is None) == (self.times is None):
            faults.append(("", "expected either values or times, with a list"))
        if self.searched == "base" and not self.option.startswith(_BASE):
            faults.append(("with", f"base searches options of the base, such as base.lr, not {self.option}"))
        _refuse(faults)
        return self


class _Search(Section):
    _title: str = PrivateAttr("")

    @property
    def title(self) -> str:
        """The name in tables and records: of a bundled search, or of the file."""
        return self._title

    def as_dict(self) -> dict[str, Any]:
        return self.model_dump(by_alias=True, exclude_none=True)


class GreedySearch(_Search):
    search: Literal["greedy"]
    equalize: bool = True  # shorter searches get finer grids until all optimizers have as many trials
    stages: Annotated[list[SearchStage], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> GreedySearch:
        faults = []
        for number, stage in enumerate(self.stages):
            before = self.stages[:number]
            if stage.option in [other.option for other in before]:
                faults.append((f"stages.{number}.option", f'"{stage.option}" stands twice'))
            # What the base finds would change a method that was scored with another base.
            own = [other.option for other in before if other.searched == "method"]
            if stage.searched == "base" and own:
                message = f"base must come before stages with the method ({own[0]})"
                faults.append((f"stages.{number}.with", message))
        _refuse(faults)
        return self

    @property
    def dimensions(self) -> list[SearchAxis]:
        axes = []
        for stage in self.stages:
            points = tuple(stage.times or stage.values or ())
            is_alone = stage.searched == "base"
            axes.append(SearchAxis(stage.option, points, stage.times is not None, alone=is_alone))
        return axes


class GeneralSearch(_Search):
    """All options together, by Optuna."""

    search: Literal["general"]
    sampler: Literal["tpe", "random"] = "tpe"
    trials: Annotated[int, Field(ge=1, le=100_000)] = 30  # of each optimizer
    seed: Annotated[int, Field(ge=0, le=100_000)] = 0  # of the sampler
    space: Annotated[dict[Option, Where], Field(min_length=1)]

    @property
    def dimensions(self) -> list[SearchAxis]:
        axes = []
        for option, where in self.space.items():
            given = where.times if isinstance(where, Multiples) else where
            points = given if isinstance(given, NumberRange) else tuple(given)
            axes.append(SearchAxis(option, points, times=isinstance(where, Multiples)))
        return axes


Search = GreedySearch | GeneralSearch


def bundled_searches() -> dict[str, Path]:
    """Name to file of the searches that come with pugdft."""
    return {path.stem: path for path in sorted((recipe_folder() / "searches").glob("*.yaml"))}


def read_search(source: str) -> Search:
    """Read a search from a file or a bundled one's name; every fault of the file is reported."""
    bundled = bundled_searches()
    # Unlike pathlib's, os.path's test is false for a name that is too long for any file.
    path = Path(source) if source and os.path.isfile(source) else bundled.get(source)
    if path is None:
        known = f"{', '.join(bundled)}.{close_match(Path(source).stem[:_LONGEST_SHOWN], bundled)}"
        problem = f"no such file or bundled search. Bundled: {known}"
        raise UserError(f'--search "{source[:_LONGEST_SHOWN]}": {problem}')
    data = yaml.parse(yaml.read_text(path), str(path))
    kind = data.get("search") if isinstance(data, Mapping) else None
    if kind not in ("greedy", "general"):
        shown = json.dumps(kind, default=str)[:_LONGEST_SHOWN]
        problem = "is required" if kind is None else f"must be greedy or general, not {shown}"
        raise UserError(f"{path}: search: {problem}: greedy, with stages, or general, with a space")
    schema: type[Search] = GreedySearch if kind == "greedy" else GeneralSearch
    search = read_section(schema, data, str(path))
    search._title = path.stem if path in bundled.values() else path.name
    return search


@dataclass(frozen=True)
class Untuned:
    """An optimizer before the search: as it was written, and what it would run with."""

    label: str
    spec: Mapping[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """Every option of the optimizer and, as ``base.lr``, of its base, with its value."""
        is_method = self.spec["name"] in METHODS
        base = self.spec["base"] if is_method else self.spec
        values = {**base_defaults(base["name"]), **GROUP_OPTIONS, **base}
        options = {f"{_BASE}{key}": value for key, value in values.items() if key != "name"}
        own = {**method_defaults(self.spec["name"]), **self.spec} if is_method else {}
        return options | {key: value for key, value in own.items() if key not in ("name", "base")}


@dataclass(frozen=True)
class SearchAxis:
    """One searched option: as the search gives it, then for one optimizer."""

    option: str  # ``rho`` of a method, ``base.lr`` of its base
    where: tuple[Any, ...] | NumberRange  # a list of points, or a range
    times: bool  # the points or bounds multiply the untuned value
    start: Any = None  # the optimizer's untuned value
    alone: bool = False  # the search runs the base optimizer alone

    def value(self, point: Any) -> Any:
        """The option's value at a point of the list or range."""
        if self.times and point == 1:
            return self.start
        value = _scaled(self.start, point) if self.times else point
        # Digits beyond these are noise, and would stand in every table.
        return _rounded(value, 4) if isinstance(self.where, NumberRange) else value

    @property
    def points(self) -> tuple[Any, ...]:
        """Those of a list; of a range, its bounds."""
        return (self.where.low, self.where.high) if isinstance(self.where, NumberRange) else self.where

    @property
    def values(self) -> list[Any]:
        return [self.value(point) for point in self.points]

    def edge(self, value: Any) -> str:
        """``lower`` or ``upper`` if ``value`` lies at that end of what was searched, else nothing."""
        if len(self.points) < 2 or not all(map(_is_number, self.points)):
            return ""
        low, high = self.value(min(self.points)), self.value(max(self.points))
        if isinstance(self.where, NumberRange) and _is_number(value) and _is_number(low):
            scale = math.log if self.where.log else float
            share = (scale(value) - scale(low)) / (scale(high) - scale(low))
            return "lower" if share < _NEAR else "upper" if share > 1 - _NEAR else ""
        return "lower" if value == low else "upper" if value == high else ""

    @property
    def can_refine(self) -> bool:
        """Whether it is a list of two numbers or more, for an option that is no count."""
        is_count = type(self.start) is int
        is_list = isinstance(self.where, tuple) and len(self.where) > 1
        return is_list and not is_count and all(map(_is_number, self.points))

    def refined(self) -> SearchAxis:
        """With one point more, in the middle of the widest gap of the list."""
        assert isinstance(self.where, tuple)
        points = sorted(self.where)
        log = self.times or (points[0] > 0 and points[-1] / points[0] >= 10)
        scale, back = (math.log, math.exp) if log else (float, float)
        gap = max(range(len(points) - 1), key=lambda left: scale(points[left + 1]) - scale(points[left]))
        middle = _rounded(back((scale(points[gap]) + scale(points[gap + 1])) / 2), 4)
        return replace(self, where=(*self.where, middle))


def axes_of(dimensions: Sequence[SearchAxis], optimizer: Untuned) -> list[SearchAxis]:
    """The dimensions that an optimizer has, around its own values."""
    spec, options = optimizer.spec, optimizer.options
    # Unit gradients leave the gradient's length out of the step, so the base's lr says nothing of theirs.
    may_be_alone = spec["name"] in METHODS and isinstance(method_of(spec).normalize, Identity)
    own = [each for each in dimensions if each.option in options]
    return [replace(each, start=options[each.option], alone=each.alone and may_be_alone) for each in own]


def edges_of(axes: Iterable[SearchAxis], options: Mapping[str, Any]) -> dict[str, str]:
    """Option to the end, lower or upper, of what was searched, where its value lies there."""
    edges = {axis.option: axis.edge(options[axis.option]) for axis in axes if axis.option in options}
    return {option: edge for option, edge in edges.items() if edge}


def with_option(spec: Mapping[str, Any], option: str, value: Any) -> dict[str, Any]:
    key = option.removeprefix(_BASE)
    if option.startswith(_BASE) and spec["name"] in METHODS:
        return {**spec, "base": {**spec["base"], key: value}}
    return {**spec, key: value}


def space_faults(dimensions: Sequence[SearchAxis], optimizers: Sequence[Untuned]) -> list[ConfigIssue]:
    """Check a search against its optimizers: options that none has, values that are refused."""
    known = {f"{_BASE}{key}" for base in BASES for key in base_defaults(base)}
    known |= {option for name in METHODS for option in method_defaults(name)}
    known |= {option for each in optimizers for option in each.options}
    missing = [each.option for each in dimensions if each.option not in known]
    faults = [
        ConfigIssue(each, f"no optimizer has this option.{close_match(each, known)}") for each in missing
    ]
    if faults:
        return faults
    for optimizer in optimizers:
        axes = axes_of(dimensions, optimizer)
        if not axes:
            faults.append(ConfigIssue("", f'"{optimizer.label}" has none of the options that are searched'))
        for axis in axes:
            where = f'{axis.option} of "{optimizer.label}"'
            start = axis.start
            can_scale = (
                "schedule" in start if isinstance(start, Mapping) else _is_number(start) and start != 0
            )
            if axis.times and not can_scale:
                problem = f"is {start!r} untuned, which has no multiples: leave out times"
                faults.append(ConfigIssue(where, problem))
                continue
            refused = [spec_faults(with_option(optimizer.spec, axis.option, value)) for value in axis.values]
            faults += [ConfigIssue(where, str(fault)) for each in refused for fault in each]
    return list(dict.fromkeys(faults))


def _scaled(value: Any, factor: float) -> Any:
    """A number, or a schedule of numbers, so many times as large."""
    if not isinstance(value, Mapping):
        return _rounded(value * factor, 6)
    # isin and icos are the reciprocals of what lies between their bounds.
    factor = 1 / factor if value["schedule"] in ("isin", "icos") else factor
    numbers = {key: number for key, number in value.items() if key != "schedule"}
    return {**value, **{key: _rounded(number * factor, 6) for key, number in numbers.items()}}


def _rounded(value: Any, digits: int) -> Any:
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
