"""Turn entries into the plain data of the page's charts, and of the intervals in its tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pugdft.errors import shortened
from pugdft.figures import charts
from pugdft.leaderboard import columns, stats
from pugdft.leaderboard.entry import CurvePoint, Entry, Group, Summary, finite
from pugdft.leaderboard.warnings import listed
from pugdft.predictions import METRICS

MOST_MARKS, MOST_ROWS = 60, 40
_EQUAL_COSTS = 1.02  # ratio up to which a chart against cost would show a single column of marks
_STRIP_EDGE = 5.0  # percent of a strip's width, on either side


@dataclass(frozen=True)
class CostAxis:
    """A horizontal axis of the charts: the cost of an entry, or of its history up to a point."""

    words: str
    field: str  # of `Entry` and `CurvePoint`
    units: tuple[columns.DisplayUnit, ...]
    tip: str  # around a number in the text shown over a mark

    def spent(self, what: Entry | CurvePoint) -> float | None:
        """Return what something cost; None if it is unknown."""
        spent = finite(getattr(what, self.field))
        return spent if spent is not None and spent >= 0 else None


COSTS: Mapping[str, CostAxis] = {
    "epochs": CostAxis("epochs", "epoch", (columns.COUNT,), "epoch {}"),
    "passes": CostAxis("gradient passes", "gradient_passes", columns.PASSES, "{} passes"),
    "seconds": CostAxis("training time", "train_seconds", columns.SECONDS, "{}"),
}


def cost_chart(group: Group, styles: Mapping[int, int], cost: str, id: str) -> dict[str, Any] | None:
    """Draw the ranking metric against one of ``COSTS``; None where entries do not differ in it."""
    # ``styles`` maps positions of named entries to their style; the others are small grey marks.
    axis, name, metric_unit = COSTS[cost], METRICS[group.metric].name, columns.unit_of(group.metric)
    found = [
        (index, summary, spent)
        for index, entry in enumerate(group.measured)
        if (summary := entry.summary(group.metric)) and (spent := axis.spent(entry)) is not None
    ]
    costs = [spent for *_, spent in found]
    if len(found) < 2 or max(costs) <= _EQUAL_COSTS * min(costs):
        return None
    drawn = found[:MOST_MARKS]
    unit, size = columns.fitting_unit(axis.units, [spent for *_, spent in drawn]), metric_unit.size
    results = []
    for index, summary, spent in drawn:
        bounds = columns.interval(group.entries[index], group.metric)
        said = f"{name} {metric_unit.phrase(summary.mean)}{bounds and f' (95 % CI {bounds})'}"
        series = _series(group, index, styles, id, f"{said}; {axis.tip.format(unit.phrase(spent))}")
        ends = (summary.ci95[0] / size, summary.ci95[1] / size) if summary.ci95 else None
        mean, at = summary.mean / size, spent / unit.size
        results.append(charts.Result(**series, cost=at, mean=mean, interval=ends))
    limits = _metric_limits([summary for _, summary, _ in drawn], group.metric)
    low, high = (limit / size for limit in limits)
    off = [result.tip.rpartition(";")[0] for result in results if not low <= result.mean <= high]
    is_unnamed = any(each.style is None for each in results)
    is_cut = any(not low <= each.interval[0] <= each.interval[1] <= high for each in results if each.interval)
    notes = {
        f"The first {len(drawn)} of {len(found)} entries are drawn.": len(found) > len(drawn),
        "Small grey marks are the other entries.": is_unnamed,
        "An interval without a bar at its end goes on beyond the axis.": is_cut,
        f"Beyond the axis, drawn at its end: {listed(off)}.": bool(off),
    }
    titles = unit.heading(axis.words), metric_unit.heading(name)
    description = f"{titles[1]} against {titles[0]}; the table has the values"
    svg = charts.svg_text(charts.scatter_cost(results, titles, (low, high)), f"{id}c{cost}", description)
    return {"cost": cost, "words": axis.words, "svg": svg, "notes": [each for each in notes if notes[each]]}


def history_chart(group: Group, styles: Mapping[int, int], cost: str, id: str) -> dict[str, Any] | None:
    """Draw the evaluated epochs of the named entries, or return None where none has two."""
    axis = COSTS[cost]
    points = {
        index: [
            (spent, top1 / columns.PERCENT.size)
            for point in group.entries[index].curve
            if (spent := axis.spent(point)) is not None and (top1 := finite(point.test_top1)) is not None
        ]
        for index in styles
    }
    points = {index: found for index, found in points.items() if len(found) > 1}
    if not points:
        return None
    unit = columns.fitting_unit(axis.units, [spent for found in points.values() for spent, _ in found])
    curves = []
    for index, found in points.items():
        costs, values = zip(*found, strict=True)
        said = f"{values[-1]:.2f} %, {axis.tip.format(unit.phrase(costs[-1]))}"
        series = _series(group, index, styles, id, said)
        curves.append(charts.History(**series, costs=[spent / unit.size for spent in costs], values=values))
    low, high = charts.history_limits([curve.values for curve in curves], (0.0, 100.0))
    is_cut = min(min(curve.values) for curve in curves) < low
    titles = unit.heading(axis.words), columns.PERCENT.heading("top-1")
    description = f"{titles[1]} on the test split against {titles[0]}"
    svg = charts.svg_text(charts.histories(curves, titles, (low, high)), f"{id}h{cost}", description)
    notes = [f"What lies below {low:.2f} % is cut off."] if is_cut else []
    return {"cost": cost, "words": axis.words, "svg": svg, "notes": notes}


SHARPNESS = {"lambda1": "λ1", "adaptive_lambda1": "adaptive λ1", "worst_rise": "worst rise"}


def sharpness_chart(group: Group, styles: Mapping[int, int], measure: str, id: str) -> dict[str, Any] | None:
    """Draw the ranking metric against one of ``SHARPNESS``; None where fewer than two entries have both."""
    words, name, unit = SHARPNESS[measure], METRICS[group.metric].name, columns.unit_of(group.metric)
    found = [
        (index, summary, sharpness.mean)
        for index, entry in enumerate(group.measured)
        if (summary := entry.summary(group.metric))
        and (sharpness := entry.sharpness.get(measure))
        and finite(sharpness.mean) is not None
        and sharpness.mean >= 0
    ]
    if len(found) < 2:
        return None
    rho, bounds = stats.spearman(*zip(*((sharp, each.mean) for _, each, sharp in found), strict=True))
    said = f"Spearman's ρ of {words} and {name} over {len(found)} entries: {columns.number(rho)}"
    if bounds:
        said += f" (95 % CI {columns.number(bounds[0])} to {columns.number(bounds[1])})"
    results = []
    for index, summary, sharp in found[:MOST_MARKS]:
        tip = f"{name} {unit.phrase(summary.mean)}; {words} {sharp:.3g}"
        ends = (summary.ci95[0] / unit.size, summary.ci95[1] / unit.size) if summary.ci95 else None
        series = _series(group, index, styles, id, tip)
        results.append(charts.Result(**series, cost=sharp, mean=summary.mean / unit.size, interval=ends))
    low, high = _metric_limits([summary for _, summary, _ in found[:MOST_MARKS]], group.metric)
    titles = words, unit.heading(name)
    figure = charts.scatter_cost(results, titles, (low / unit.size, high / unit.size))
    svg = charts.svg_text(figure, f"{id}s{measure}", f"{titles[1]} against {words}; the table has the values")
    notes = [f"{said}{'' if bounds else '; too few for an interval'}."]
    return {"cost": measure, "words": words, "svg": svg, "notes": notes}


def _series(group: Group, index: int, styles: Mapping[int, int], id: str, said: str) -> dict[str, Any]:
    """How an entry is drawn, and what is said of it over its mark."""
    entry = group.entries[index]
    return {
        "label": entry.label,
        "style": styles.get(index),
        "filled": entry.rank_low == 1,
        "key": f"{id}e{index}",
        "tip": f"{shortened(entry.label)}: {said}",
    }


def _metric_limits(summaries: Sequence[Summary], metric: str, are_differences: bool = False) -> charts.Span:
    row, values = METRICS[metric], [(summary.mean, summary.ci95) for summary in summaries]
    possible = (-math.inf, math.inf) if are_differences else row.bounds
    return charts.value_limits(values, higher_is_better=row.higher_is_better, possible=possible)


def strip_summary(entry: Entry, metric: str, baseline: str | None = None) -> Summary | None:
    """Return what an entry's strip shows: its mean, or its difference to the baseline, with the interval."""
    found = entry.summary(metric) if entry.status == "measured" else None
    if found is None or baseline is None:
        return found
    versus = entry.versus_baseline  # the baseline itself has none
    return Summary(versus.difference, None, versus.ci95) if versus else Summary(0.0)


def interval_strips(
    entries: Sequence[Entry], metric: str, num_ticks: int = 3, baseline: str | None = None
) -> tuple[list[dict[str, Any] | None], list[tuple[float, str]]]:
    """Place what was measured in strips, in percent of their width; also ticks, as place and text.

    With ``baseline``, an entry's label, the strips show differences to it, and where there is none.
    """
    summaries = [strip_summary(entry, metric, baseline) for entry in entries]
    if not any(summaries):
        return [None] * len(entries), []
    low, high = _metric_limits([summary for summary in summaries if summary], metric, baseline is not None)

    def place(value: float) -> float:
        return strip_place((min(max(value, low), high) - low) / (high - low))

    def strip(summary: Summary, entry: Entry) -> dict[str, Any]:
        bounds = summary.ci95 or (math.nan, math.nan)
        scores = entry.scores.values() if baseline is None else ()
        return {
            "mean": place(summary.mean),
            "bar": tuple(map(place, bounds)) if summary.ci95 else None,
            "cut_low": bounds[0] < low,
            "cut_high": bounds[1] > high,
            "seeds": [place(score) for score in scores if low <= score <= high],
            "off": not low <= summary.mean <= high,
            "zero": None if baseline is None else place(0.0),
        }

    size = columns.unit_of(metric).size
    ticks = [(place(value * size), text) for value, text in round_ticks(low / size, high / size, num_ticks)]
    pairs = zip(summaries, entries, strict=True)
    return [strip(summary, entry) if summary else None for summary, entry in pairs], ticks


def strip_place(share: float) -> float:
    """Return the place in a strip of a value at this share of its axis, in percent."""
    return round(_STRIP_EDGE + share * (100 - 2 * _STRIP_EDGE), 2)


def round_ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Choose round numbers from ``low`` to ``high``, at most about ``most``; each with its text."""
    from matplotlib.ticker import MaxNLocator

    values = list(map(float, MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)))
    step = values[1] - values[0]
    decimals = next((many for many in range(9) if math.isclose(round(step, many), step, rel_tol=1e-6)), 9)
    slack = 1e-9 * (high - low)
    inside = [value for value in values if low - slack <= value <= high + slack]
    return [(value, columns.number(value, decimals)) for value in inside]


def assign_styles(groups: Sequence[Group]) -> list[dict[int, int]]:
    """Give the first entries of each group, by position, styles of their own, kept from group to group."""
    preferred: dict[str, int] = {}
    assigned = []
    for group in groups:
        named = [index for index, entry in enumerate(group.measured) if entry.num_seeds or entry.curve]
        styles: dict[int, int] = {}
        for index in named[: charts.NUM_STYLES]:
            own = preferred.get(group.measured[index].label)
            free = [each for each in range(charts.NUM_STYLES) if each not in styles.values()]
            styles[index] = min(free, key=lambda each: (each != own, each in preferred.values(), each))
            preferred.setdefault(group.measured[index].label, styles[index])
        assigned.append(styles)
    return assigned
