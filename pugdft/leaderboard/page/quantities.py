"""Numbers as a page shows them: one unit and as many decimals for a whole column, so that they line up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pugdft.leaderboard.columns import METRICS, NOTHING
from pugdft.leaderboard.entry import Entry, Metric, Summary

_MINUS = "\N{MINUS SIGN}"
_LARGE = 1e9  # from here on digits say less than a power of ten


def finite(value: float | None) -> float | None:
    """``value`` unless it is missing, infinite or not a number."""
    return value if value is not None and math.isfinite(value) else None


def number(value: float | None, decimals: int = 2) -> str:
    """``1,234.50``, with a true minus sign; a dash if there is nothing to show."""
    value = finite(value)
    if value is None:
        return NOTHING
    text = f"{value:.2e}" if abs(value) >= _LARGE else f"{value:,.{decimals}f}"
    # −0.00 is a rounding, not a sign.
    negative = text.startswith("-") and any(digit in text for digit in "123456789")
    return _MINUS * negative + text.removeprefix("-")


@dataclass(frozen=True)
class Unit:
    """What a stored number is divided by, what to call the result, and its decimals."""

    name: str
    size: float = 1.0
    decimals: int = 0

    def __call__(self, value: float | None) -> str:
        value = finite(value)
        return number(None if value is None else value / self.size, self.decimals)

    def heading(self, what: str) -> str:
        return f"{what}, {self.name}" if self.name else what

    def phrase(self, value: float | None) -> str:
        return f"{self(value)} {self.name}".rstrip()


PERCENT = Unit("%", 0.01, 2)
COUNT = Unit("")
MEMORY = Unit("GiB", 2.0**30, 1)

_PASSES = (Unit("M", 1e6, 2), Unit("k", 1e3, 1), COUNT)
_SECONDS = (Unit("h", 3600, 2), Unit("min", 60, 1), Unit("s", 1, 1))


def passes_unit(values: Iterable[float | None]) -> Unit:
    """For gradient passes: the unit in which the largest has at most four digits before the point."""
    return _fitting(_PASSES, values, 10)


def seconds_unit(values: Iterable[float | None]) -> Unit:
    """For times: hours, minutes or seconds."""
    return _fitting(_SECONDS, values, 2)


def _fitting(units: tuple[Unit, ...], values: Iterable[float | None], least: float) -> Unit:
    largest = max((abs(known) for value in values if (known := finite(value)) is not None), default=0.0)
    return next((unit for unit in units if largest >= least * unit.size), units[-1])


@dataclass(frozen=True)
class Measure:
    """A metric's name, and how it is written."""

    name: str
    unit: Unit

    @property
    def heading(self) -> str:
        return self.unit.heading(self.name)


MEASURES: Mapping[Metric, Measure] = {
    metric: Measure(name, Unit(unit, 1 / factor, digits))
    for metric, (name, unit, factor, digits) in METRICS.items()
}


def summary_of(entry: Entry, metric: Metric) -> Summary | None:
    """The metric's summary, without what is not finite."""
    found: Summary | None = getattr(entry, metric)
    if found is None or finite(found.mean) is None:
        return None
    bounds = found.ci95 if found.ci95 and all(finite(bound) is not None for bound in found.ci95) else None
    return Summary(found.mean, finite(found.std), bounds)
