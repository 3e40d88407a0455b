"""The ranking metric against what it cost: a mark with its interval for each entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pugdft.leaderboard.entry import HIGHER_IS_BETTER, Entry, Group, Metric, Summary
from pugdft.leaderboard.page.axes import Axis, value_axis
from pugdft.leaderboard.page.frame import (
    BOTTOM,
    TOP,
    Cost,
    Frame,
    cost_frame,
    listed,
    shortened,
    spent_by,
    written,
)
from pugdft.leaderboard.page.marks import RIGHT, Mark, labelled, side_by_side
from pugdft.leaderboard.page.quantities import MEASURES, summary_of

MOST_MARKS = 60


@dataclass(frozen=True)
class CostChart:
    """Marks of the measured entries that have both values."""

    cost: Cost
    frame: Frame
    marks: tuple[Mark, ...]
    notes: tuple[str, ...]


def metric_axis(summaries: Sequence[Summary], metric: Metric, start: float, end: float) -> Axis:
    """The axis of a ranking metric."""
    return value_axis(
        [(summary.mean, summary.ci95) for summary in summaries],
        start,
        end,
        higher_is_better=HIGHER_IS_BETTER[metric],
        limits=(0.0, 1.0) if MEASURES[metric].unit.name == "%" else (0.0, float("inf")),
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
    measure = MEASURES[group.metric]
    found = [
        (index, entry, summary, spent)
        for index, entry in enumerate(group.entries)
        if entry.status == "measured"
        and (summary := summary_of(entry, group.metric)) is not None
        and (spent := spent_by(entry, cost)) is not None
    ]
    if len(found) < 2:
        return None
    drawn = found[:MOST_MARKS]
    y = metric_axis([summary for _, _, summary, _ in drawn], group.metric, BOTTOM, TOP)
    frame, unit = cost_frame(
        cost, [spent for *_, spent in drawn], y, measure.heading, measure.unit, right=RIGHT, room=1.12
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


def _mark(entry: Entry, summary: Summary, metric: Metric, frame: Frame, spent: str, /, **place: Any) -> Mark:
    measure, axis = MEASURES[metric], frame.y
    tip = f"{shortened(entry.label, 80)}: {measure.name} {measure.unit.phrase(summary.mean)}"
    if summary.ci95:
        tip += f" (95 % CI {measure.unit(summary.ci95[0])} to {measure.unit(summary.ci95[1])})"
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
