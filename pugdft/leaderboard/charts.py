"""Turn entries into the plain data of the page's charts; the pixel scale of the intervals in its tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pugdft.errors import printable
from pugdft.figures.charts import (
    NUM_STYLES,
    History,
    Result,
    histories,
    history_limits,
    scatter_cost,
    svg_text,
    value_limits,
)
from pugdft.leaderboard.columns import (
    COUNT,
    PASSES,
    PERCENT,
    SECONDS,
    DisplayUnit,
    fitting_unit,
    number,
    unit_of,
)
from pugdft.leaderboard.entry import CurvePoint, Entry, Group, Summary, finite
from pugdft.predictions import METRICS

MOST_MARKS = 60

Cost = Literal["passes", "seconds", "epochs"]

COST_WORDS: Mapping[Cost, str] = {
    "passes": "gradient passes",
    "seconds": "training time",
    "epochs": "epochs",
}


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, in pixels."""

    at: float
    text: str


@dataclass(frozen=True)
class PixelScale:
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

    def ticks(self, unit: DisplayUnit, most: int) -> tuple[Tick, ...]:
        """Round numbers in ``unit``, at most about ``most`` of them."""
        low, high = self.low / unit.size, self.high / unit.size
        step = _round_step((high - low) / most)
        decimals = next((many for many in range(9) if math.isclose(round(step, many), step)), 9)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        values = [index * step for index in range(first, last + 1)]
        return tuple(Tick(self.at(value * unit.size), number(value, decimals)) for value in values)


def _round_step(step: float) -> float:
    """The next larger of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))


@dataclass(frozen=True)
class PageChart:
    """A drawn chart and what a reader must know of it."""

    cost: Cost
    svg: str
    notes: tuple[str, ...]


def metric_limits(summaries: Sequence[Summary], metric: str) -> tuple[float, float]:
    """The values that an axis of a ranking metric shows."""
    return value_limits(
        [(summary.mean, summary.ci95) for summary in summaries],
        higher_is_better=METRICS[metric].higher_is_better,
        possible=METRICS[metric].bounds,
    )


def metric_axis(summaries: Sequence[Summary], metric: str, start: float, end: float) -> PixelScale:
    """The axis of a ranking metric, from ``start`` to ``end``."""
    return PixelScale(*metric_limits(summaries, metric), start, end)


def cost_chart(group: Group, styles: Mapping[int, int], cost: Cost, id: str) -> PageChart | None:
    """Draw the measured entries against cost, or return None where fewer than two can be drawn.

    Args:
        group: whose entries are drawn.
        styles: position of an entry to its style, for those that are named.
        cost: what lies on the horizontal axis.
        id: of the group, unique on the page.
    """
    found = [
        (index, entry, summary, spent)
        for index, entry in enumerate(group.entries)
        if entry.status == "measured"
        and (summary := entry.summary(group.metric)) is not None
        and (spent := spent_by(entry, cost)) is not None
    ]
    if len(found) < 2:
        return None
    drawn, name, metric_unit = found[:MOST_MARKS], METRICS[group.metric].name, unit_of(group.metric)
    low, high = metric_limits([summary for _, _, summary, _ in drawn], group.metric)
    unit, size = cost_unit(cost, [spent for *_, spent in drawn]), metric_unit.size
    results, off, cut = [], [], False
    for index, entry, summary, spent in drawn:
        said = f"{shortened(entry.label, 80)}: {name} {metric_unit.phrase(summary.mean)}"
        if summary.ci95:
            said += f" (95 % CI {metric_unit(summary.ci95[0])} to {metric_unit(summary.ci95[1])})"
            cut |= summary.ci95[0] < low or summary.ci95[1] > high
        if not low <= summary.mean <= high:
            off.append(said)
        results.append(
            Result(
                label=entry.label,
                cost=spent / unit.size,
                mean=summary.mean / size,
                interval=(summary.ci95[0] / size, summary.ci95[1] / size) if summary.ci95 else None,
                style=styles.get(index),
                filled=entry.rank_low == 1,
                key=f"{id}e{index}",
                tip=f"{said}; {written(cost, unit, spent)}",
            )
        )
    notes = []
    if len(found) > len(drawn):
        notes.append(f"The first {len(drawn)} of {len(found)} entries are drawn.")
    if any(result.style is None for result in results):
        notes.append("Small grey marks are entries without a name in the legend.")
    if cut:
        notes.append("An interval without a bar at its end goes on beyond the axis.")
    if off:
        notes.append(f"Beyond the axis, drawn at its end: {listed(off)}.")
    titles = unit.heading(COST_WORDS[cost]), metric_unit.heading(name)
    figure = scatter_cost(results, titles, (low / size, high / size))
    description = f"{titles[1]} against {titles[0]}; the table has the values"
    return PageChart(cost, svg_text(figure, f"{id}c{cost}", description), tuple(notes))


def history_chart(group: Group, styles: Mapping[int, int], cost: Cost, id: str) -> PageChart | None:
    """Draw the histories of the named entries, or return None where none has two points.

    The arguments are those of ``cost_chart``. Epochs without an evaluation are passed over.
    """
    points = {
        index: [
            (spent, top1)
            for point in group.entries[index].curve
            if (spent := spent_by(point, cost)) is not None and (top1 := finite(point.test_top1)) is not None
        ]
        for index in styles
    }
    points = {index: found for index, found in points.items() if len(found) > 1}
    if not points:
        return None
    unit = cost_unit(cost, [spent for found in points.values() for spent, _ in found])
    low, high = history_limits([[top1 for _, top1 in found] for found in points.values()], (0.0, 1.0))
    curves = [
        History(
            label=group.entries[index].label,
            costs=[spent / unit.size for spent, _ in found],
            values=[top1 / PERCENT.size for _, top1 in found],
            style=styles[index],
            filled=group.entries[index].rank_low == 1,
            key=f"{id}e{index}",
            tip=f"{shortened(group.entries[index].label, 80)}: {PERCENT.phrase(found[-1][1])}, "
            f"{written(cost, unit, found[-1][0])}",
        )
        for index, found in points.items()
    ]
    below = min(top1 for found in points.values() for _, top1 in found) < low
    notes = (f"What lies below {PERCENT.phrase(low)} is cut off.",) if below else ()
    titles = unit.heading(COST_WORDS[cost]), PERCENT.heading("top-1")
    figure = histories(curves, titles, (low / PERCENT.size, high / PERCENT.size))
    description = f"{titles[1]} on the test split against {titles[0]}"
    return PageChart(cost, svg_text(figure, f"{id}h{cost}", description), notes)


def cost_unit(cost: Cost, spent: Iterable[float | None]) -> DisplayUnit:
    return fitting_unit({"passes": PASSES, "seconds": SECONDS, "epochs": (COUNT,)}[cost], spent)


def spent_by(what: Entry | CurvePoint, cost: Cost) -> float | None:
    """What an entry, or its history up to a point, cost."""
    field = {"passes": "gradient_passes", "seconds": "train_seconds", "epochs": "epoch"}[cost]
    spent = finite(getattr(what, field))
    return spent if spent is not None and spent >= 0 else None


def written(cost: Cost, unit: DisplayUnit, spent: float) -> str:
    """``78.2 k gradient passes``, ``12.5 min``, ``epoch 3``: the text shown over a mark."""
    if cost == "epochs":
        return f"epoch {unit(spent)}"
    return f"{unit.phrase(spent)} passes" if cost == "passes" else unit.phrase(spent)


def shortened(text: object, most: int) -> str:
    """``text`` on one line with at most so many characters, cut at its end."""
    shown = printable(text)
    return shown if len(shown) <= most else shown[: most - 1].rstrip() + "…"


def listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " and " * (len(words) > 1) + words[-1]


def assign_styles(groups: Sequence[Group]) -> list[dict[int, int]]:
    """For each group, position of an entry to its style: the first ones have one, and none stands twice.

    An optimizer keeps its style from group to group as far as that goes.
    """
    preferred: dict[str, int] = {}
    assigned = []
    for group in groups:
        named = [
            (index, entry.label)
            for index, entry in enumerate(group.entries)
            if entry.status == "measured" and (entry.num_seeds or entry.curve)
        ][:NUM_STYLES]
        styles: dict[int, int] = {}
        for index, label in named:
            if label in preferred and preferred[label] not in styles.values():
                styles[index] = preferred[label]
        for index, label in named:
            if index not in styles:
                free = [style for style in range(NUM_STYLES) if style not in styles.values()]
                styles[index] = min(free, key=lambda style: (style in preferred.values(), style))
                preferred.setdefault(label, styles[index])
        assigned.append(dict(sorted(styles.items())))
    return assigned
