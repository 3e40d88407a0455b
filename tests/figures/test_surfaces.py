"""Pictures of landscapes and trajectories from plain data: one scale for all runs, equal bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from drawn_analyses import landscape, spectrum, trajectory

from pugdft.errors import UserError
from pugdft.figures import paper
from pugdft.figures.surfaces import (
    draw_landscape,
    draw_trajectory,
    landscape_figure,
    spectrum_figure,
    trajectory_figure,
)


def test_two_runs_on_a_plane_have_the_same_axes_levels_and_colours() -> None:
    with paper.style():
        figure = landscape_figure(*landscape(), "contour")
    panels = [each for each in figure.axes if each.get_title(loc="left")]
    assert [each.get_title(loc="left") for each in panels] == ["sgd", "sam"]
    first, second = ([each for each in panel.collections if hasattr(each, "levels")] for panel in panels)
    assert (first[0].levels == second[0].levels).all()
    assert (first[0].norm.vmin, first[0].norm.vmax) == (second[0].norm.vmin, second[0].norm.vmax)
    assert panels[0].get_xlim() == panels[1].get_xlim()
    assert panels[0].get_ylim() == panels[1].get_ylim()
    assert first[0].norm.vmin <= 0.01 < 15 <= first[0].norm.vmax  # the lowest and highest loss of both


def test_two_surfaces_have_the_same_height() -> None:
    with paper.style():
        figure = landscape_figure(*landscape(), "surface")
    first, second = figure.axes
    assert first.get_zlim() == second.get_zlim()
    assert first.get_zlim()[0] <= np.log10(0.01)


def test_a_line_shows_the_mean_and_the_range_of_its_directions() -> None:
    facts, arrays = landscape("line", 1)
    with paper.style():
        axes = landscape_figure(facts, arrays, "line").axes[0]
    assert axes.lines[0].get_ydata() == pytest.approx(arrays["loss"][0].mean(0))
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (arrays["loss"].min(), arrays["loss"].max())


def test_the_marks_of_a_way_say_how_much_lies_outside_the_plane() -> None:
    facts, arrays = trajectory(1)
    with paper.style():
        figure = trajectory_figure(facts, arrays)
    marks = next(each for each in figure.axes[0].collections if len(each.get_offsets()) == 6)
    assert np.asarray(marks.get_offsets()) == pytest.approx(arrays["xy"][0])
    sizes = marks.get_sizes()
    assert sizes[-1] == max(sizes)  # the end lies in the plane
    assert sizes[0] > sizes[4]  # 0.3 outside is more of a short distance
    caption = figure.get_suptitle()
    assert "explains 97% (random walk 90%)" in caption
    assert "of the distance outside" in caption


def test_the_density_has_the_share_of_eigenvalues_of_each_range() -> None:
    with paper.style():
        axes = spectrum_figure(*spectrum()).axes[0]
    where, density = (np.asarray(each, np.float64) for each in axes.lines[0].get_data())
    density = np.nan_to_num(density)

    def share(low: float, high: float) -> float:
        inside = (where > low) & (where < high)
        return float(density[inside].sum() * (where[1] - where[0]))

    assert share(-1, 10) == pytest.approx(1, abs=0.01)
    assert share(4, 6) == pytest.approx(0.001, rel=0.05)
    assert axes.get_yscale() == "log"


@pytest.mark.parametrize(
    ("theme", "runs", "more"),
    [("light", 1, ""), ("dark", 3, ""), ("light", 3, "[rho=0.05,adaptive=true]+adamw of a recipe, seed 12")],
)
def test_text_is_readable_and_inside_and_captions_do_not_overlap(theme: str, runs: int, more: str) -> None:
    with paper.style(theme):
        figures = [
            landscape_figure(*landscape("plane", runs, more), view, None, theme)
            for view in ("contour", "surface")
        ]
        figures.append(landscape_figure(*landscape("line", runs, more), "line", None, theme))
        facts, arrays = landscape("between", runs, more)
        if runs > 1:
            arrays["loss"] = arrays["loss"][1:, 4]
            figures.append(landscape_figure(facts, arrays, "line", None, theme))
        figures.append(trajectory_figure(*trajectory(runs, more), None, theme))
        figures.append(spectrum_figure(*spectrum(), None, theme))
        for figure in figures:
            figure.draw_without_rendering()
            canvas, boxes = figure.bbox, []
            texts = [
                each for each in figure.findobj(lambda one: hasattr(one, "get_fontsize")) if each.get_text()
            ]
            for each in texts:
                assert each.get_fontsize() >= 5.5
            outside = [figure._suptitle, *figure.legends, *(one.title for one in figure.axes)]
            outside += [one.xaxis.label for one in figure.axes if not hasattr(one, "zaxis")]
            for each in outside:
                if each is not None and getattr(each, "get_text", lambda: "legend")():
                    box = each.get_window_extent()
                    assert canvas.x0 <= box.x0 < box.x1 <= canvas.x1, each
                    assert canvas.y0 <= box.y0 < box.y1 <= canvas.y1, each
                    assert not box.count_overlaps(boxes), each
                    boxes.append(box)


def test_only_whole_lattices_are_drawn(tmp_path: Path) -> None:
    facts, arrays = landscape()
    arrays["loss"][:, 1::2] = np.nan
    arrays["loss"][:, :, 1::2] = np.nan
    with paper.style():
        figure = landscape_figure(facts, arrays, "contour")
    assert figure.axes[0].get_xlim() == (-1, 1)
    arrays["loss"][0, 4, 4] = np.nan
    with pytest.raises(UserError, match="points are computed: too few to draw"):
        draw_landscape(facts, arrays, tmp_path / "a", ["png"])


def test_losses_that_are_not_finite_leave_a_gap() -> None:
    facts, arrays = landscape()
    arrays["loss"][0, 0, :] = np.inf
    with paper.style():
        figure = landscape_figure(facts, arrays, "contour")
    assert figure.axes[0].patch.get_hatch()
    assert not figure.axes[1].patch.get_hatch()


@pytest.mark.slow
def test_pictures_are_the_same_bytes_in_each_process_and_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path; import drawn_analyses as t\n"
        "import pugdft.figures.surfaces as s\n"
        "out, all = Path(sys.argv[1]), ['svg', 'pdf', 'png']\n"
        "s.draw_landscape(*t.landscape(), out / 'plane', all)\n"
        "s.draw_landscape(*t.landscape('line'), out / 'line', all)\n"
        "s.draw_trajectory(*t.trajectory(), out / 'way', all)\n"
        "s.draw_spectrum(*t.spectrum(), out / 'spectrum', all)\n"
        "sys.exit('torch' in sys.modules)"
    )
    for name in ("first", "second"):
        helpers = Path(__file__).parents[1] / "helpers"
        made = subprocess.run([sys.executable, "-c", code, str(tmp_path / name), str(helpers)])
        assert made.returncode == 0
    files = sorted((tmp_path / "first").iterdir())
    assert len(files) == 15
    for file in files:
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes(), file.name
    assert "train loss" in (tmp_path / "first" / "line.svg").read_text()  # text stays text


def test_a_view_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--view line.*Known: contour, surface, all"):
        draw_landscape(*landscape(), tmp_path / "a", ["png"], view="line")
    with pytest.raises(UserError, match="a trajectory has no such view"):
        draw_trajectory(*trajectory(), tmp_path / "a", ["png"], view="line")
