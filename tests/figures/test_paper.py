"""Figures for a paper: the same bytes each time, text that can be read, nothing that covers another."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pugdft.errors import UserError
from pugdft.figures import paper

_DRAW = """
import sys
from pathlib import Path
from pugdft.figures import paper
with paper.style(sys.argv[2]):
    figure = paper.figure("column", theme=sys.argv[2])
    axes = figure.add_subplot(xlabel="epoch", ylabel="loss")
    lines = axes.plot(range(9), range(9), **paper.look(9).line(sys.argv[2]))
    paper.legend_below(figure, lines, ["sam+$sgd$"])
    paper.save(figure, Path(sys.argv[1]), paper.FORMATS)
assert "torch" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.parametrize("theme", paper.THEMES)
def test_two_processes_write_the_same_bytes(tmp_path: Path, theme: str) -> None:
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-c", _DRAW, str(tmp_path / name), theme], check=True)
    for suffix in paper.FORMATS:
        one, two = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
        assert one == two, suffix
    svg = (tmp_path / "a.svg").read_text()
    assert ">sam+$sgd$</text>" in svg  # text stays text, and dollar signs are no formula
    assert not re.search(r"20\d\d-\d\d-\d\d", svg)


@pytest.mark.parametrize(
    ("num_series", "name"),
    [
        *((count, "optimizer") for count in (2, 8, 12, 30)),
        (2, "sam[rho=0.05,adaptive=true]+adamw (batch_size 128, epochs 200, image_size 224), seed"),
        (2, "a" * 90),
    ],
)
def test_the_legend_is_inside_the_canvas_and_below_the_axes(num_series: int, name: str) -> None:
    with paper.style():
        figure = paper.figure()
        axes = figure.add_subplot(xlabel="epoch")
        lines = [axes.plot([0, 1], [0, n], **paper.look(n).line())[0] for n in range(num_series)]
        paper.legend_below(figure, lines, [f"{name} {n}" for n in range(num_series)])
        figure.draw_without_rendering()
    box, canvas = figure.legends[0].get_window_extent(), figure.bbox
    assert canvas.x0 <= box.x0 <= box.x1 <= canvas.x1
    assert canvas.y0 <= box.y0
    assert box.y1 <= axes.get_tightbbox().y0 + 1


@pytest.mark.parametrize("num_points", [2, 8, 12])
def test_labels_cover_neither_each_other_nor_marks_and_stay_inside(num_points: int) -> None:
    with paper.style():
        figure = paper.figure()
        axes = figure.add_subplot(xlim=(0, 10), ylim=(0, 10))
        points = [(1 + 8 * n / num_points, 5 + 0.1 * (n % 3)) for n in range(num_points)]
        left_out = paper.place_labels(axes, points, [f"optimizer {n}" for n in range(num_points)])
        figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) + len(left_out) == num_points
    assert len(boxes) >= min(num_points, 6)
    for one, two in itertools.combinations(boxes, 2):
        assert not one.overlaps(two)
    for x, y in map(axes.transData.transform, points):
        assert not any(box.contains(x, y) for box in boxes)
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


def test_all_text_has_at_least_six_points() -> None:
    with paper.style():
        figure = paper.figure()
        axes = figure.add_subplot(xlabel="epoch", ylabel="loss", title="train")
        paper.legend_below(figure, axes.plot([0, 1], [0, 1]), ["sgd"])
        sizes = {text.get_fontsize() for text in figure.findobj(lambda each: hasattr(each, "get_fontsize"))}
    assert min(sizes) >= 6


def test_series_beyond_eight_differ_in_shape_and_dashes_from_those_of_their_colour() -> None:
    shapes = [(each.style, each.marker, each.dashes) for each in map(paper.look, range(32))]
    assert len(set(shapes)) == 32
    assert len({each.colour(theme) for each in paper.SERIES for theme in paper.THEMES}) == 16


def test_the_users_matplotlibrc_is_neither_used_nor_changed() -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 31.0}):
        with paper.style():
            assert matplotlib.rcParams["font.size"] == 7
        assert matplotlib.rcParams["font.size"] == 31


@pytest.mark.parametrize("width", ["colunm", "0.5", "nan", "1000", ""])
def test_a_width_that_is_none_is_refused_with_what_is_allowed(width: str) -> None:
    with pytest.raises(UserError, match=r"--width: .* is none of column, text, nor inches from 1 to 40"):
        paper.inches(width)


def test_a_format_that_is_not_known_is_refused_with_a_close_match(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'unknown format "pgn".*Did you mean "png"'):
        paper.check_formats(["svg", "pgn"])
    assert paper.check_formats(["png", "svg", "png"]) == ["png", "svg"]


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with paper.style(), pytest.raises(UserError, match="cannot be written"):
        paper.save(paper.figure(), tmp_path / "file" / "picture", ["svg"])
