"""The HTML page's charts: which entries they show and what they say of the others."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from page_groups import entry, group

from pugdft.figures.charts import NUM_STYLES
from pugdft.leaderboard.charts import (
    MOST_MARKS,
    MOST_ROWS,
    assign_styles,
    cost_chart,
    history_chart,
    interval_strips,
    round_ticks,
)
from pugdft.leaderboard.columns import PASSES, PERCENT, SECONDS, fitting_unit, number
from pugdft.leaderboard.formats.html import as_html


def series(svg: str, kind: str) -> list[str]:
    """Keys of the marks or lines of a chart, in the order of their entries."""
    return sorted(re.findall(rf'class="{kind}" data-series="(\w+)"', svg))


def test_a_column_has_one_unit() -> None:
    assert [fitting_unit(PASSES, [950, 31_280])(value) for value in (950, 31_280)] == ["0.9", "31.3"]
    assert fitting_unit(PASSES, [9_000]).phrase(9_000) == "9,000"
    assert [fitting_unit(SECONDS, values).name for values in ([50], [1271], [7200], [None, math.nan])] == [
        "s",
        "min",
        "h",
        "s",
    ]
    assert [number(value) for value in (-0.001, -1.5, None, math.inf)] == ["0.00", "−1.50", "–", "–"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.843, 0.851), (10, 10.00001), (0, 3e7), (-5e-7, 0)])
def test_ticks_are_round_distinct_and_in_place(low: float, high: float) -> None:
    ticks = round_ticks(low, high, 6)
    assert 2 <= len(ticks) <= 8
    assert len({text for _, text in ticks}) == len(ticks)
    for place, text in ticks:
        assert low - 1e-9 <= place <= high + 1e-9
        assert float(text.replace(",", "").replace("−", "-")) == pytest.approx(place)


def test_marks_beyond_the_axis_are_said_to_be() -> None:
    entries = [entry(f"e{i}", 0.94 - 0.002 * i) for i in range(4)]
    entries.append(entry("collapsed", 0.1, gradient_passes=9_000.0))
    groups = group(*entries)
    chart = cost_chart(groups, assign_styles([groups])[0], "passes", "g0")
    assert chart is not None
    assert series(chart["svg"], "mark") == [f"g0e{i}" for i in range(5)]
    [note] = [note for note in chart["notes"] if note.startswith("Beyond the axis")]
    assert note.count("top-1") == 1
    assert "collapsed: top-1 10.00 %" in note


def test_a_chart_of_many_entries_is_capped_and_says_so() -> None:
    groups = group(
        *(
            entry(f"e{i}", 0.95 - 0.001 * i, rank_low=i + 1, rank_high=200, train_seconds=600.0 + i)
            for i in range(200)
        )
    )
    styles = assign_styles([groups])[0]
    cost, history = cost_chart(groups, styles, "seconds", "g0"), history_chart(groups, styles, "epochs", "g0")
    assert cost is not None
    assert history is not None
    assert len(series(cost["svg"], "mark") + series(cost["svg"], "rest")) == MOST_MARKS
    assert "The first 60 of 200 entries are drawn." in cost["notes"]
    assert series(history["svg"], "line") == [f"g0e{i}" for i in range(NUM_STYLES)]
    assert f"The table has {200 - MOST_ROWS} more." in as_html([groups])


def test_entries_of_equal_cost_need_no_chart_of_it() -> None:
    first, second = entry("a"), entry("b", gradient_passes=2 * 78_200.0)
    groups = group(first, second)
    assert cost_chart(groups, {0: 0, 1: 1}, "passes", "g0") is not None
    assert cost_chart(groups, {0: 0, 1: 1}, "seconds", "g0") is None


def test_most_intervals_are_seen_whole_where_means_are_equal() -> None:
    strips, _ = interval_strips([entry("a", 0.9), entry("b", 0.9001)], "top1")
    assert [strip and (strip["cut_low"], strip["cut_high"]) for strip in strips] == [(False, False)] * 2


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
    chart = history_chart(groups, {0: 0, 1: 1, 2: 2}, "passes", "g0")
    assert chart is not None
    assert series(chart["svg"], "line") == ["g0e0", "g0e1"]
    [note] = chart["notes"]
    assert re.fullmatch(r"What lies below \d\d\.\d\d % is cut off\.", note)
    assert f"sparse: {PERCENT.phrase(curve[-1].test_top1)}, 15.6 k passes" in chart["svg"]
