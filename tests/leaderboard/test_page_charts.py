"""The HTML page's charts: honest axes, marks and labels."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from page_groups import entry, group

from pugdft.leaderboard.charts import (
    MOST_MARKS,
    NUM_STYLES,
    Axis,
    assign_styles,
    comparable,
    cost_chart,
    history_chart,
    label_box,
    overlap,
    spread_apart,
    value_axis,
)
from pugdft.leaderboard.columns import PERCENT, number, passes_unit, seconds_unit
from pugdft.leaderboard.formats.html import as_html


def test_a_column_has_one_unit() -> None:
    assert [passes_unit([950, 31_280])(value) for value in (950, 31_280)] == ["0.9", "31.3"]
    assert passes_unit([9_000]).phrase(9_000) == "9,000"
    assert [seconds_unit(values).name for values in ([50], [1271], [7200], [None, math.nan])] == [
        "s",
        "min",
        "h",
        "s",
    ]
    assert [number(value) for value in (-0.001, -1.5, None, math.inf)] == ["0.00", "−1.50", "–", "–"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.843, 0.851), (0.1, 0.1000001), (0, 3e7), (-5e-9, 0)])
def test_ticks_are_round_distinct_and_in_place(low: float, high: float) -> None:
    axis = Axis(low, high, 400, 0)
    ticks = axis.ticks(PERCENT, 6)
    assert 2 <= len(ticks) <= 8
    assert len({tick.text for tick in ticks}) == len(ticks)
    for tick in ticks:
        value = float(tick.text.replace(",", "").replace("−", "-")) / 100
        assert axis.at(value) == pytest.approx(tick.at, abs=0.02)


def test_a_collapsed_entry_and_a_wide_interval_do_not_set_the_scale() -> None:
    values = [(0.94, (0.92, 0.96)), (0.938, (0.1, 1.0)), (0.935, None), (0.1, (0.1, 0.1))]
    axis = value_axis(values, 0, 100, higher_is_better=True, limits=(0, 1))
    assert 0.92 < axis.low < 0.935 < 0.94 < axis.high < 0.96
    assert comparable([mean for mean, _ in values], higher_is_better=True) == [True, True, True, False]
    assert comparable([0.2, 0.21, 5.0], higher_is_better=False) == [True, True, False]
    assert comparable([0.9, 0.1], higher_is_better=True) == [True, True], "two alone are both worth seeing"


def test_marks_beyond_the_axis_are_said_to_be() -> None:
    entries = [entry(f"e{i}", 0.94 - 0.002 * i) for i in range(4)] + [entry("collapsed", 0.1)]
    groups = group(*entries)
    chart = cost_chart(groups, assign_styles([groups])[0], "passes")
    assert chart is not None
    assert [mark.off for mark in chart.marks] == [False] * 4 + [True]
    assert any("collapsed: top-1 10.00 %" in note for note in chart.notes)


def test_places_are_spread_in_their_order() -> None:
    places = [10, 10, 10, 50, 51, 300, 299]
    moved = spread_apart(places, 14, 0, 300)
    ordered = [moved[index] for index in sorted(range(7), key=lambda index: places[index])]
    assert all(after - before >= 14 - 1e-6 for before, after in pairwise(ordered))
    assert min(moved) >= 0
    assert max(moved) <= 300
    assert spread_apart([5, 100], 14, 0, 300) == [5, 100]


@pytest.mark.parametrize(("least_cost", "num_labels"), [(78_200.0, range(8, 9)), (45_000.0, range(1, 8))])
def test_no_label_lies_on_another_or_on_a_mark(least_cost: float, num_labels: range) -> None:
    costs = [least_cost + (78_200 - least_cost) * i / 6 for i in range(7)]
    entries = [
        entry(f"sam[rho={i}.0,lr=0.01]", 0.94 - 0.0002 * i, gradient_passes=cost)
        for i, cost in enumerate(costs)
    ]
    groups = group(*entries, entry("sgd", 0.93, gradient_passes=39_100.0))
    chart = cost_chart(groups, assign_styles([groups])[0], "passes")
    assert chart is not None
    boxes = [label_box(mark.label) for mark in chart.marks if mark.label]
    marks = [(mark.x - 4, mark.y - 4, mark.x + 4, mark.y + 4) for mark in chart.marks]
    assert len(boxes) in num_labels
    for index, box in enumerate(boxes):
        assert not overlap(box, boxes[:index] + marks)
    bodies = [(mark.x - 4, mark.top, mark.x + 4, mark.bottom) for mark in chart.marks]
    for index, body in enumerate(bodies[:7] if least_cost == 78_200 else []):
        assert not overlap(body, bodies[:index]), "intervals of equal cost stand side by side"


def test_a_chart_of_many_entries_is_capped_and_says_so() -> None:
    groups = group(*(entry(f"e{i}", 0.95 - 0.001 * i, rank_low=i + 1, rank_high=200) for i in range(200)))
    styles = assign_styles([groups])[0]
    cost, history = cost_chart(groups, styles, "seconds"), history_chart(groups, styles, "epochs")
    assert cost is not None
    assert history is not None
    assert len(cost.marks) == MOST_MARKS
    assert "The first 60 of 200 entries are drawn." in cost.notes
    assert [line.entry for line in history.lines] == list(range(NUM_STYLES))
    assert "Named: 8 of 200 entries" in as_html([groups])


def test_every_series_of_a_chart_has_its_own_style_and_keeps_it() -> None:
    first, second = assign_styles(
        [group(*(entry(n) for n in "abcd")), group(*(entry(n) for n in "xdcyzuvwa"))]
    )
    assert first == {0: 0, 1: 1, 2: 2, 3: 3}
    assert (second[1], second[2]) == (3, 2)
    assert len(set(second.values())) == len(second) == NUM_STYLES


def test_history_leaves_out_what_was_not_evaluated_and_says_what_it_cuts() -> None:
    sparse = entry("sparse", 0.9)
    curve = tuple(replace(point, test_top1=None) if point.epoch % 5 else point for point in sparse.curve)
    groups = group(
        entry("steep", 0.9), replace(sparse, curve=curve), replace(sparse, label="none", curve=curve[:3])
    )
    chart = history_chart(groups, {0: 0, 1: 1, 2: 2}, "passes")
    assert chart is not None
    assert [(line.entry, len(line.points)) for line in chart.lines] == [(0, 20), (1, 4)]
    assert chart.notes == (f"What lies below {PERCENT.phrase(chart.frame.y.low)} is cut off.",)
    assert chart.lines[1].ys[-1] == PERCENT.phrase(curve[-1].test_top1)
