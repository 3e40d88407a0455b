"""Charts as functions of plain data: honest axes, readable labels, equal files, harmless text."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.transforms import Bbox

from pugdft.errors import printable
from pugdft.figures.charts import (
    DARK,
    LIGHT,
    NUM_STYLES,
    History,
    Result,
    comparable,
    histories,
    history_limits,
    save,
    scatter_cost,
    spread_apart,
    svg_text,
    swatch,
    value_limits,
)

TITLES = "gradient passes, k", "top-1, %"


def results(*costs: float) -> list[Result]:
    return [
        Result(
            label=f"sam[rho={number}.0,lr=0.01]",
            style=number,
            key=f"g0e{number}",
            tip=f"tip {number}",
            cost=cost,
            mean=94 - 0.02 * number,
            interval=(93.7 - 0.02 * number, 94.3 - 0.02 * number),
        )
        for number, cost in enumerate(costs)
    ]


def curves(label: str = "sgd") -> list[History]:
    return [
        History(
            label=label,
            style=style,
            key=f"g0e{style}",
            costs=range(1, 21),
            values=[90 - 9 / i + style for i in range(1, 21)],
        )
        for style in range(3)
    ]


def test_a_collapsed_result_and_a_wide_interval_do_not_set_the_scale() -> None:
    values = [(0.94, (0.92, 0.96)), (0.938, (0.1, 1.0)), (0.935, None), (0.1, (0.1, 0.1))]
    low, high = value_limits(values, higher_is_better=True, possible=(0, 1))
    assert 0.9 < low < 0.92 < 0.96 < high < 0.98  # most intervals are seen whole
    assert comparable([mean for mean, _ in values], higher_is_better=True) == [True, True, True, False]
    assert comparable([0.2, 0.21, 5.0], higher_is_better=False) == [True, True, False]
    assert comparable([0.9, 0.1], higher_is_better=True) == [True, True], "two alone are both worth seeing"


def test_steep_first_epochs_and_a_collapsed_run_may_lie_below_the_axis() -> None:
    good = [0.1, *(0.8 + 0.01 * epoch for epoch in range(10))]
    low, high = history_limits([good, good, [0.1] * 11], (0, 1))
    assert 0.8 < low < 0.83
    assert 0.89 < high < 0.91


def test_places_are_spread_in_their_order() -> None:
    places = [10, 10, 10, 50, 51, 300, 299]
    moved = spread_apart(places, 14, 0, 300)
    ordered = [moved[index] for index in sorted(range(7), key=lambda index: places[index])]
    assert all(after - before >= 14 - 1e-6 for before, after in pairwise(ordered))
    assert min(moved) >= 0
    assert max(moved) <= 300
    assert spread_apart([5, 100], 14, 0, 300) == [5, 100]
    assert spread_apart([], 14, 0, 300) == []


@pytest.mark.parametrize(("least_cost", "num_labels"), [(78.2, range(7, 9)), (45, range(1, 9))])
def test_no_label_lies_on_another_or_on_a_mark(least_cost: float, num_labels: range) -> None:
    costs = [least_cost + (78.2 - least_cost) * number / 6 for number in range(7)]
    sgd = Result(label="sgd", style=7, cost=39.1, mean=93)
    axes = scatter_cost([*results(*costs), sgd], TITLES, (92.9, 94.4)).axes[0]
    texts = [text for text in axes.texts if (text.get_gid() or "").startswith("label")]
    boxes = [text.get_window_extent().padded(-1.5) for text in texts]
    marks = [
        Bbox.from_extents(x - 4, y - 4, x + 4, y + 4)
        for line in axes.lines
        if line.get_gid().startswith("mark")
        for x, y in [(line.get_xdata()[0], line.get_ydata()[0])]
    ]
    assert len(boxes) in num_labels
    assert len(marks) == NUM_STYLES
    for index, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:index] + marks)
    if least_cost == 78.2:
        columns = sorted(mark.x0 for mark in marks)
        assert min(after - before for before, after in pairwise(columns)) >= 7.9, "side by side"


def test_an_interval_beyond_the_axis_has_no_end_bar() -> None:
    whiskers = [
        line.get_markevery()
        for line in scatter_cost(results(1, 2), TITLES, (93.69, 94.29)).axes[0].lines
        if line.get_gid().startswith("whisker")
    ]
    assert whiskers == [[0], [1]]


@pytest.mark.parametrize(
    "draw",
    [lambda: scatter_cost(results(1, 2, 2), TITLES, (93, 95)), lambda: histories(curves(), TITLES, (80, 95))],
)
def test_equal_data_give_equal_text_without_styles_links_or_shared_ids(draw: Any) -> None:
    text, other = svg_text(draw(), "g0", "a chart"), svg_text(draw(), "g1", "a chart")
    assert text == svg_text(draw(), "g0", "a chart")
    root, second = ElementTree.fromstring(text), ElementTree.fromstring(other)
    ids = [{element.get("id") for element in svg.iter() if element.get("id")} for svg in (root, second)]
    assert not ids[0] & ids[1]
    assert not [tag for tag in ("style", "metadata", "use", "image") if root.find(f".//{tag}") is not None]
    assert not [
        name for element in root.iter() for name in element.attrib if name == "style" or "href" in name
    ]
    assert {element.get("data-series") for element in root.iter()} == {None, "g0e0", "g0e1", "g0e2"}
    assert set(re.findall(r"url\(#(\w+)\)", text)) <= ids[0]
    assert root.get("aria-label") == "a chart"


@pytest.mark.parametrize(
    "label", ["$x^2$ & <b>", "\\frac{1}{2}$$", "a\n\x00\x1b[31m\u202e\ud800", "日本語", "_x", "x" * 9999]
)
def test_labels_are_text_whatever_they_say(label: str) -> None:
    two = [replace(result, label=label, style=0) for result in results(1, 9)]
    for figure in (scatter_cost(two, TITLES, (93, 95)), histories(curves(label), TITLES, (80, 95))):
        shown = [text.text or "" for text in ElementTree.fromstring(svg_text(figure, "g0")).iter("text")]
        assert len([text for text in shown if text.startswith(printable(label)[:5])]) >= 1, shown


def test_colours_are_the_page_s_in_both_themes() -> None:
    css = (
        resources.files("pugdft.leaderboard.formats.templates")
        .joinpath("page.css")
        .read_text(encoding="utf-8")
    )
    for name in LIGHT:
        assert f"--{name}: light-dark({LIGHT[name]}, {DARK[name]});" in css
    text = svg_text(swatch(3, True), "legend")
    assert "var(--s3)" in text
    assert not set(re.findall(r"#[0-9a-f]{6}\b", text)) - set(LIGHT.values())


def test_figures_are_saved_by_suffix_in_either_theme(tmp_path: Path) -> None:
    starts = {"pdf": b"%PDF", "png": b"\x89PNG", "svg": b"<?xml"}
    for suffix, start in starts.items():
        files = [tmp_path / f"{number}.{suffix}" for number in range(2)]
        for file in files:
            save(scatter_cost(results(1, 2), TITLES, (93, 95), DARK), file)
        assert files[0].read_bytes().startswith(start)
        assert files[0].read_bytes() == files[1].read_bytes()


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sys, pugdft.leaderboard.formats.html; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
