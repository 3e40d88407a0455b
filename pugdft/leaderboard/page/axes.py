"""Scales of charts: which values an axis spans, its ticks, and marks moved apart where they would overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pugdft.leaderboard.page.quantities import Unit, number

_ROOM = 0.06  # of an axis left free at each end
_FAR = 6.0  # so many typical distances from the best, and a value lies off the axis
_LEAST = 0.002  # of a value: a smaller spread is none to look at
_REACH = 1.0  # spreads of the means by which intervals may stretch an axis at each end


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, in pixels."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high`` on the pixels from ``start`` to ``end``; ``end`` may lie before."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value; one outside lands on the nearest end."""
        return self.beyond(min(max(value, self.low), self.high))

    def beyond(self, value: float) -> float:
        """The pixel of a value, wherever that is: for what a clip path cuts."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def ticks(self, unit: Unit, most: int) -> tuple[Tick, ...]:
        """Round numbers in ``unit``, at most about ``most`` of them."""
        low, high = self.low / unit.size, self.high / unit.size
        step = _round_step((high - low) / most)
        decimals = next((many for many in range(9) if math.isclose(round(step, many), step)), 9)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        values = [index * step for index in range(first, last + 1)]
        return tuple(Tick(self.at(value * unit.size), number(value, decimals)) for value in values)


def value_axis(
    values: Sequence[tuple[float, tuple[float, float] | None]],
    start: float,
    end: float,
    *,
    higher_is_better: bool,
    limits: tuple[float, float],
) -> Axis:
    """An axis for means with their intervals, on which the good ones can be told apart.

    One run that collapsed, or an interval over two seeds, would else press everything that matters into a
    line: a mean far worse than the others lies off the axis, and long intervals stretch it only so far.
    """
    means = [mean for mean, _ in values]
    kept = comparable(means, higher_is_better=higher_is_better)
    near = [(mean, bounds or (mean, mean)) for (mean, bounds), keep in zip(values, kept, strict=True) if keep]
    low, high = min(mean for mean, _ in near), max(mean for mean, _ in near)
    reach = _REACH * max(high - low, _LEAST * max(map(abs, means)))
    lowest, highest = min(bounds[0] for _, bounds in near), max(bounds[1] for _, bounds in near)
    return padded(max(lowest, low - reach), min(highest, high + reach), start, end, limits)


def comparable(means: Sequence[float], *, higher_is_better: bool) -> list[bool]:
    """Which means are not so much worse than the best that they would set the scale alone."""
    best = max(means) if higher_is_better else min(means)
    distances = [abs(mean - best) for mean in means]
    typical = max(median(distances), _LEAST * max(map(abs, means)))
    return [distance <= _FAR * typical for distance in distances]


def padded(low: float, high: float, start: float, end: float, limits: tuple[float, float]) -> Axis:
    """An axis over some values with room at its ends, but never beyond what is possible."""
    room = _ROOM * (high - low) or 0.02 * abs(high) or 1.0
    padded_low, padded_high = max(low - room, limits[0]), min(high + room, limits[1])
    return Axis(padded_low, padded_high if padded_high > padded_low else padded_low + room, start, end)


def spread_apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Each place moved as little as needed for ``gap`` between neighbours, within ``low`` to ``high``.

    Neighbours that are too close become one block around their mean; blocks that meet become one again.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    blocks: list[list[int]] = []
    for index in order:
        blocks.append([index])
        while len(blocks) > 1 and _end(blocks[-2], places, gap) + gap > _begin(blocks[-1], places, gap):
            last = blocks.pop()
            blocks[-1] += last
    moved = list(places)
    for block in blocks:
        begin = _begin(block, places, gap)
        for position, index in enumerate(block):
            moved[index] = begin + position * gap
    for position, index in enumerate(order):
        moved[index] = max(moved[index], low + position * gap)
    for position, index in enumerate(reversed(order)):
        moved[index] = min(moved[index], high - position * gap)
    return [round(place, 2) for place in moved]


def _begin(block: Sequence[int], places: Sequence[float], gap: float) -> float:
    return sum(places[index] for index in block) / len(block) - gap * (len(block) - 1) / 2


def _end(block: Sequence[int], places: Sequence[float], gap: float) -> float:
    return _begin(block, places, gap) + gap * (len(block) - 1)


def _round_step(step: float) -> float:
    """The next larger of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))
