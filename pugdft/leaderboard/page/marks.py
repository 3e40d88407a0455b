"""Marks of a chart with their intervals and labels, placed so that none lies on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pugdft.leaderboard.entry import Entry
from pugdft.leaderboard.page.axes import spread_apart
from pugdft.leaderboard.page.frame import BOTTOM, LEFT, TOP, Label, shortened

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
