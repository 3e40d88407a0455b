"""Top-1 on the test split in the course of training: one line for each named entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pugdft.leaderboard.entry import Entry, Group
from pugdft.leaderboard.page.axes import Axis, comparable, padded, spread_apart
from pugdft.leaderboard.page.frame import (
    BOTTOM,
    TOP,
    Cost,
    Frame,
    Label,
    cost_frame,
    shortened,
    spent_by,
    written,
)
from pugdft.leaderboard.page.quantities import PERCENT, finite

MOST_POINTS = 300
RIGHT = 486.0
_LINE = 14.0
_LONGEST = 16  # letters of a label
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
    frame, unit = cost_frame(cost, spent, axis, "top-1, %", PERCENT, right=RIGHT, room=1.0)
    ends = spread_apart([axis.at(points[-1][1]) for points in curves.values()], _LINE, TOP, BOTTOM)
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
                label=Label(shortened(entry.label, _LONGEST), RIGHT + 24, end + 4, "start"),
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
