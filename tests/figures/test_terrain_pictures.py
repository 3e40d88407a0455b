"""Pictures of a terrain: equal bytes, hidden parts, one palette, and text that stays on the canvas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from pugdft.figures import paper
from pugdft.figures.terrain_pictures import (
    draw_contours,
    draw_surfaces,
    draw_terrain,
    gathered,
    hidden_points,
    interpolated,
    write_animation,
)

AXIS = np.linspace(-20, 20, 21)


def terrain(num_paths: int = 8) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A wall in the corner, and paths that fan out; the last two stay where they are."""
    x, y = np.meshgrid(AXIS, AXIS)
    wall = 1 / (1 + np.exp(-x)) / (1 + np.exp(-y))
    arrays, rows = {"axis": AXIS, "train": wall + 0.001 * x, "test": 1.2 * wall + 0.1}, []
    for number in range(num_paths):
        way = np.linspace(0, 1, 12) * (0.001 if number >= num_paths - 2 else 15)
        points = [np.linspace(0, 110, 12), way * np.cos(number) - 5, way * np.sin(number) - 5]
        losses = [interpolated(AXIS, arrays[split], points[1], points[2]) for split in ("train", "test")]
        arrays[f"path_{number}"] = np.column_stack([*points, *losses])
        rows.append({"name": f"optimizer {number}", "array": f"path_{number}"})
    return arrays, {"optimizers": rows}


@pytest.mark.parametrize("num_paths", [2, 12])
@pytest.mark.parametrize("draw", [draw_contours, draw_surfaces])
def test_text_lies_on_the_canvas_and_is_large_enough(draw: Any, num_paths: int) -> None:
    with paper.style():
        figure = draw(*terrain(num_paths))
        figure.draw_without_rendering()
        canvas = figure.bbox.padded(1)
        texts = [
            each for each in figure.findobj(lambda each: hasattr(each, "get_fontsize")) if each.get_text()
        ]
        shown = [each for each in texts if each.get_visible() and each.get_window_extent().width > 0]
        legend = figure.legends[0].get_window_extent()
        names = [each.get_text() for each in figure.legends[0].get_texts()]
        assert names[num_paths] == "start"
        for each in shown:
            assert each.get_fontsize() >= 5.5
        assert canvas.contains(legend.x0, legend.y0)
        assert canvas.contains(legend.x1, legend.y1)
        for axes in figure.axes:
            for each in (axes._left_title, axes.xaxis.label, axes.yaxis.label):
                box = each.get_window_extent()
                assert not each.get_text() or (
                    canvas.contains(box.x0, box.y0) and canvas.contains(box.x1, box.y1)
                ), each.get_text()


@pytest.mark.slow
def test_equal_data_give_equal_bytes(tmp_path: Path) -> None:
    arrays, facts = terrain(3)
    for folder in ("a", "b"):
        stem = tmp_path / folder / "terrain-1"
        draw_terrain(facts, arrays, stem, ["svg", "png"], width="column", animate="gif")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [
        "terrain-1-3d.png",
        "terrain-1-3d.svg",
        "terrain-1.gif",
        "terrain-1.png",
        "terrain-1.svg",
    ]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert ">optimizer 1</text>" in (tmp_path / "a" / "terrain-1.svg").read_text()


@pytest.mark.parametrize("kind", ["gif", "webp", "apng"])
def test_the_last_frame_stays(kind: str, tmp_path: Path) -> None:
    path = write_animation(*terrain(3), tmp_path / f"t.{kind}")
    with Image.open(path) as image:
        times = []
        for frame in ImageSequence.Iterator(image):
            frame.load()
            times.append(frame.info["duration"])
    assert sum(times) == pytest.approx(11 * 40 + 1500)
    assert times[-1] >= 1500


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_series_keeps_its_own_colour_in_a_gif(theme: str, tmp_path: Path) -> None:
    path = write_animation(*terrain(8), tmp_path / "t.gif", theme)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    for number in range(8):
        colour = paper.look(number).colour(theme).lstrip("#")
        wanted = [int(colour[at : at + 2], 16) for at in (0, 2, 4)]
        # Pillow may take the text's colour for a series' that is nearly the same.
        assert np.abs(pixels - wanted).max(1).min() <= 4, number


def test_what_lies_behind_a_wall_is_hidden() -> None:
    # The viewer looks from low x and y: behind is at high x and y.
    losses = np.zeros((21, 21))
    losses[9:11, :] = 1.0
    points = np.array([[0.0, -15.0, 0.0], [0.0, 3.0, 0.0], [0.0, 3.0, 1.5]])
    assert hidden_points(AXIS, losses, points, (0.0, 1.0)).tolist() == [False, True, False]


def test_both_panels_have_equal_axes_and_levels() -> None:
    figure = draw_contours(*terrain(2))
    train, test = figure.axes[:2]
    assert train.get_xlim() == test.get_xlim() == (-20, 20)
    assert train.get_ylim() == test.get_ylim()
    levels = [axes.collections[0].levels.tolist() for axes in (train, test)]
    assert levels[0] == levels[1]


def test_ends_that_lie_together_are_named() -> None:
    arrays, facts = terrain(5)
    paths = [(row["name"], arrays[row["array"]]) for row in facts["optimizers"]]
    assert [names for names, _ in gathered(paths, 20.0)] == [["optimizer 3", "optimizer 4"]]
    assert gathered(paths[:4], 20.0) == []
    figure = draw_contours(arrays, facts)
    (note,) = (each.get_text() for each in figure.axes[0].texts)
    assert note == "optimizer 3, optimizer 4\nmoved at most 0.001"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_legend_shows_the_colours_of_the_paths(theme: str) -> None:
    figure = draw_contours(*terrain(8), theme=theme)
    drawn = {line.get_gid(): line.get_color() for line in figure.axes[1].lines if line.get_gid()}
    named = [line.get_color() for line in figure.legends[0].get_lines()]
    assert [drawn[f"path {number}"] for number in range(8)] == named[:8]
