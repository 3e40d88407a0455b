"""Scales of charts: which values an axis spans, its ticks, and marks moved apart where they would overlap."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

from pugdft.errors import printable
from pugdft.leaderboard.columns import (
    COUNT,
    PERCENT,
    UNITS,
    DisplayUnit,
    number,
    passes_unit,
    seconds_unit,
)
from pugdft.leaderboard.entry import CurvePoint, Entry, Group, Summary, finite
from pugdft.predictions import METRICS

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

    def ticks(self, unit: DisplayUnit, most: int) -> tuple[Tick, ...]:
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


NUM_STYLES = 8  # different colours, dashes and markers: no chart names more entries

LEFT, TOP, BOTTOM = 46.0, 12.0, 262.0

NUM_TICKS = 6

Cost = Literal["passes", "seconds", "epochs"]

COST_WORDS: Mapping[Cost, str] = {
    "passes": "gradient passes",
    "seconds": "training time",
    "epochs": "epochs",
}


@dataclass(frozen=True)
class Label:
    """A direct label: its anchor point and ``text-anchor``."""

    text: str
    x: float
    y: float
    anchor: Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Frame:
    """Both axes of a chart; ``horizontal`` and ``vertical`` are headings."""

    x: Axis
    y: Axis
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    horizontal: str
    vertical: str


def cost_frame(
    cost: Cost,
    spent: Sequence[float],
    y: Axis,
    vertical: str,
    unit: DisplayUnit,
    *,
    right: float,
    room: float,
) -> tuple[Frame, DisplayUnit]:
    """A chart over a cost, and the cost's unit.

    Its horizontal axis goes from nothing spent to ``room`` times the most, so that a double cost looks it.
    """
    cost_unit = unit_of(cost, spent)
    x = padded(0.0, max(spent) * room, LEFT, right, (0.0, max(spent) * room))
    horizontal = cost_unit.heading(COST_WORDS[cost])
    ticks = x.ticks(cost_unit, NUM_TICKS), y.ticks(unit, NUM_TICKS)
    return Frame(x, y, *ticks, horizontal, vertical), cost_unit


def unit_of(cost: Cost, spent: Iterable[float | None]) -> DisplayUnit:
    return {"passes": passes_unit, "seconds": seconds_unit, "epochs": lambda _: COUNT}[cost](spent)


def spent_by(what: Entry | CurvePoint, cost: Cost) -> float | None:
    """What an entry, or its history up to a point, cost."""
    field = {"passes": "gradient_passes", "seconds": "train_seconds", "epochs": "epoch"}[cost]
    spent = finite(getattr(what, field))
    return spent if spent is not None and spent >= 0 else None


def written(cost: Cost, unit: DisplayUnit, spent: float) -> str:
    """``78.2 k gradient passes``, ``12.5 min``, ``epoch 3``: for whoever points at a mark."""
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
            (index, entry)
            for index, entry in enumerate(group.entries)
            if entry.status == "measured" and (entry.num_seeds or entry.curve)
        ][:NUM_STYLES]
        styles: dict[int, int] = {}
        taken: set[int] = set()
        for index, entry in named:
            style = preferred.get(entry.label)
            if style is not None and style not in taken:
                styles[index] = style
                taken.add(style)
        for index, entry in named:
            if index not in styles:
                fresh = [style for style in range(NUM_STYLES) if style not in taken]
                unclaimed = [style for style in fresh if style not in preferred.values()]
                styles[index] = (unclaimed or fresh)[0]
                taken.add(styles[index])
                preferred.setdefault(entry.label, styles[index])
        assigned.append(dict(sorted(styles.items())))
    return assigned


RIGHT = 506.0

_GAP = 10.0  # between marks of equal cost

_NEAR = 28.0  # between marks that share a column of labels

_LETTER, _LINE = 6.7, 14.0  # of a label, on average

_LONGEST = 24  # letters of a label

_TO_LABEL = 10.0

Box = tuple[float, float, float, float]

"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Mark:
    """An entry's point with its interval.

    Attributes:
        entry: position in the group.
        style: None for an entry that the legend does not name.
        top: upper end of the interval, None without one; ``cut_top`` if it goes on beyond the chart.
        off: the mean lies beyond the axis, and the mark at its end.
    """

    entry: int
    style: int | None
    x: float
    y: float
    top: float | None
    bottom: float | None
    cut_top: bool
    cut_bottom: bool
    off: bool
    best: bool
    tip: str
    label: Label | None = None


def side_by_side(marks: Sequence[Mark]) -> list[Mark]:
    """Named marks of about equal cost moved apart, as far as their intervals would cover each other."""
    moved = list(marks)
    for cluster in _clusters(marks, _GAP):
        columns: list[float] = []  # how far down each is in use
        column_of = {}
        for index in sorted(cluster, key=lambda i: body(marks[i])[1]):
            _, top, _, bottom = body(marks[index])
            free = next((column for column, used in enumerate(columns) if used < top), len(columns))
            columns[free : free + 1] = [bottom]
            column_of[index] = free
        for index, column in column_of.items():
            x = marks[index].x + (column - (len(columns) - 1) / 2) * _GAP
            moved[index] = replace(marks[index], x=round(min(max(x, LEFT + 6), RIGHT - 6), 2))
    return moved


def labelled(marks: Sequence[Mark], entries: Sequence[Entry]) -> list[Mark]:
    """Named marks with their labels in a column to the right, or where no room is, to the left.

    A label that would lie on something all the same is left out: the legend has it.
    """
    found = list(marks)
    taken = [body(mark) for mark in marks]
    for cluster in _clusters(marks, _NEAR):
        columns = [_column(marks, entries, cluster, side) for side in ("start", "end")]
        free = [[_fits(label, taken) for label in column] for column in columns]
        better = max((0, 1), key=lambda side: (sum(free[side]), -side))
        for index, label, fits in zip(cluster, columns[better], free[better], strict=True):
            if fits:
                found[index] = replace(found[index], label=label)
                taken.append(label_box(label))
    return found


def _clusters(marks: Sequence[Mark], gap: float) -> list[list[int]]:
    """Positions of named marks in groups with wider gaps between them, each from the top."""
    order = sorted((i for i, mark in enumerate(marks) if mark.style is not None), key=lambda i: marks[i].x)
    clusters: list[list[int]] = []
    for index in order:
        if clusters and marks[index].x - marks[clusters[-1][-1]].x <= gap:
            clusters[-1].append(index)
        else:
            clusters.append([index])
    return [sorted(cluster, key=lambda i: marks[i].y) for cluster in clusters]


def _column(
    marks: Sequence[Mark], entries: Sequence[Entry], cluster: Sequence[int], side: Literal["start", "end"]
) -> list[Label]:
    """Labels beside a cluster, one below the other, each as near to its mark as that goes."""
    edges = [marks[index].x for index in cluster]
    x = max(edges) + _TO_LABEL if side == "start" else min(edges) - _TO_LABEL
    heights = spread_apart([marks[index].y for index in cluster], _LINE, TOP, BOTTOM - 6)
    return [
        Label(shortened(entries[index].label, _LONGEST), x, round(height + 4, 2), side)
        for index, height in zip(cluster, heights, strict=True)
    ]


def body(mark: Mark) -> Box:
    """The space that a mark and its interval take."""
    ends = [mark.y - 6, mark.y + 6, *(end for end in (mark.top, mark.bottom) if end is not None)]
    return mark.x - 6, min(ends), mark.x + 6, max(ends)


def label_box(label: Label) -> Box:
    """The space that a label takes."""
    width = _LETTER * len(label.text)
    left = label.x if label.anchor == "start" else label.x - width
    return left, label.y - _LINE + 3, left + width, label.y + 2.9


def overlap(box: Box, others: Sequence[Box]) -> bool:
    """Whether a box lies on one of the others."""
    return any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
        for other in others
    )


def _fits(label: Label, taken: Sequence[Box]) -> bool:
    left, top, right, bottom = box = label_box(label)
    inside = left > LEFT + 2 and top > TOP - 12 and right < RIGHT + 13 and bottom < BOTTOM
    return inside and not overlap(box, taken)


MOST_POINTS = 300

HISTORY_RIGHT = 486.0

_LINE_HISTORY_CHART = 14.0

_LONGEST_HISTORY_CHART = 16  # letters of a label

_NUM_MARKERS = 5

_START = 0.3  # of the training: values from then on are on the axis, earlier ones if they lie near

_Points = Sequence[tuple[float, float]]  # cost, top-1


@dataclass(frozen=True)
class Line:
    """An entry's history in pixels; ``xs`` and ``ys`` are its values in words, for whoever points at it."""

    entry: int
    style: int
    points: tuple[tuple[float, float], ...]
    markers: tuple[tuple[float, float], ...]
    xs: tuple[str, ...]
    ys: tuple[str, ...]
    best: bool
    label: Label


@dataclass(frozen=True)
class HistoryChart:
    """Lines of the named entries that have a history."""

    cost: Cost
    frame: Frame
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def history_chart(group: Group, styles: Mapping[int, int], cost: Cost) -> HistoryChart | None:
    """The chart, or None where no named entry has two points.

    Args:
        group: what is drawn.
        styles: position of an entry to its style, for those that are named.
        cost: what lies on the horizontal axis.
    """
    curves = {index: points for index in styles if len(points := _points(group.entries[index], cost)) > 1}
    if not curves:
        return None
    axis = _axis(list(curves.values()))
    spent = [x for points in curves.values() for x, _ in points]
    frame, unit = cost_frame(cost, spent, axis, "top-1, %", PERCENT, right=HISTORY_RIGHT, room=1.0)
    ends = spread_apart(
        [axis.at(points[-1][1]) for points in curves.values()], _LINE_HISTORY_CHART, TOP, BOTTOM
    )
    lines = []
    for (index, points), end in zip(curves.items(), ends, strict=True):
        entry, style = group.entries[index], styles[index]
        kept = _thinned(points)
        places = tuple((frame.x.at(x), axis.beyond(y)) for x, y in kept)
        stride = -(-len(places) // _NUM_MARKERS)
        lines.append(
            Line(
                entry=index,
                style=style,
                points=places,
                markers=tuple(place for place in places[style % stride :: stride] if place[1] <= BOTTOM),
                xs=tuple(written(cost, unit, x) for x, _ in kept),
                ys=tuple(PERCENT.phrase(y) for _, y in kept),
                best=entry.rank_low == 1,
                label=Label(
                    shortened(entry.label, _LONGEST_HISTORY_CHART), HISTORY_RIGHT + 24, end + 4, "start"
                ),
            )
        )
    lowest = min(y for points in curves.values() for _, y in points)
    notes = () if axis.holds(lowest) else (f"What lies below {PERCENT.phrase(axis.low)} is cut off.",)
    return HistoryChart(cost, frame, tuple(lines), notes)


def _points(entry: Entry, cost: Cost) -> list[tuple[float, float]]:
    """What can be drawn of an entry's curve; epochs without an evaluation are passed over."""
    points = []
    for point in entry.curve:
        x, y = spent_by(point, cost), finite(point.test_top1)
        if x is not None and y is not None:
            points.append((x, y))
    return points


def _thinned(points: _Points) -> list[tuple[float, float]]:
    """Every n-th point and the last one."""
    kept = list(points[:: -(-len(points) // MOST_POINTS)])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _axis(curves: Sequence[_Points]) -> Axis:
    """From the lowest value after the start; the steep first epochs may leave the chart below.

    So does a run that collapsed: the others could else not be told apart.
    """
    kept = comparable([points[-1][1] for points in curves], higher_is_better=True)
    near = [points for points, keep in zip(curves, kept, strict=True) if keep]
    low = min(y for points in near for _, y in points[int(_START * len(points)) :])
    lowest, high = min(y for points in near for _, y in points), max(y for points in near for _, y in points)
    if high - lowest <= 1.5 * (high - low):
        low = lowest
    return padded(low, high, BOTTOM, TOP, (0.0, 1.0))


MOST_MARKS = 60


@dataclass(frozen=True)
class CostChart:
    """Marks of the measured entries that have both values."""

    cost: Cost
    frame: Frame
    marks: tuple[Mark, ...]
    notes: tuple[str, ...]


def metric_axis(summaries: Sequence[Summary], metric: str, start: float, end: float) -> Axis:
    """The axis of a ranking metric."""
    return value_axis(
        [(summary.mean, summary.ci95) for summary in summaries],
        start,
        end,
        higher_is_better=METRICS[metric].higher_is_better,
        limits=METRICS[metric].bounds,
    )


def cost_chart(
    group: Group, styles: Mapping[int, int], cost: Literal["passes", "seconds"]
) -> CostChart | None:
    """The chart, or None where fewer than two entries can be drawn.

    Args:
        group: its measured entries are drawn.
        styles: position of an entry to its style, for those that are named.
        cost: what lies on the horizontal axis.
    """
    metric, metric_unit = METRICS[group.metric], UNITS[group.metric]
    found = [
        (index, entry, summary, spent)
        for index, entry in enumerate(group.entries)
        if entry.status == "measured"
        and (summary := entry.summary(group.metric)) is not None
        and (spent := spent_by(entry, cost)) is not None
    ]
    if len(found) < 2:
        return None
    drawn = found[:MOST_MARKS]
    y = metric_axis([summary for _, _, summary, _ in drawn], group.metric, BOTTOM, TOP)
    frame, unit = cost_frame(
        cost,
        [spent for *_, spent in drawn],
        y,
        metric_unit.heading(metric.name),
        metric_unit,
        right=RIGHT,
        room=1.12,
    )
    marks = [
        _mark(
            entry,
            summary,
            group.metric,
            frame,
            written(cost, unit, spent),
            entry=index,
            style=styles.get(index),
            x=frame.x.at(spent),
        )
        for index, entry, summary, spent in drawn
    ]
    marks = labelled(side_by_side(marks), group.entries)
    notes = []
    if len(found) > len(drawn):
        notes.append(f"The first {len(drawn)} of {len(found)} entries are drawn.")
    if any(mark.style is None for mark in marks):
        notes.append("Small grey marks are entries without a name in the legend.")
    off = [mark.tip.rpartition(";")[0] for mark in marks if mark.off]
    if off:
        notes.append(f"Beyond the axis, drawn at its end: {listed(off)}.")
    return CostChart(cost, frame, tuple(marks), tuple(notes))


def _mark(entry: Entry, summary: Summary, metric: str, frame: Frame, spent: str, /, **place: Any) -> Mark:
    metric_unit, axis = UNITS[metric], frame.y
    tip = f"{shortened(entry.label, 80)}: {METRICS[metric].name} {metric_unit.phrase(summary.mean)}"
    if summary.ci95:
        tip += f" (95 % CI {metric_unit(summary.ci95[0])} to {metric_unit(summary.ci95[1])})"
    low, high = summary.ci95 or (summary.mean, summary.mean)
    return Mark(
        **place,
        y=axis.at(summary.mean),
        top=axis.at(high) if summary.ci95 else None,
        bottom=axis.at(low) if summary.ci95 else None,
        cut_top=high > axis.high,
        cut_bottom=low < axis.low,
        off=not axis.holds(summary.mean),
        best=entry.rank_low == 1,
        tip=f"{tip}; {spent}",
    )
