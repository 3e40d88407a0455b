"""Pictures of a terrain: contours with all paths, the surface with lifted paths, and an animation.

All are functions of the stored arrays and facts of `pugdft terrain`; equal data give equal bytes. No torch.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pugdft.errors import UserError
from pugdft.figures import paper
from pugdft.paths import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

SPLITS = ("train", "test")
ANIMATIONS = ("gif", "webp", "apng")
NUM_LEVELS = 14
_PASSES, _X, _Y, _LOSS = 0, 1, 2, 3  # columns of a path; the test loss follows the train loss
_NEAR = 0.03  # of the axis: ends that lie together
_NAMES_A_LINE = 3
_START: dict[str, Any] = {"marker": "*", "ms": 6.5, "mew": 0, "ls": "", "zorder": 5}
_MINIMUM: dict[str, Any] = {"marker": "+", "ms": 5.0, "mew": 0.8, "ls": "", "zorder": 2.5}
_VIEW = (38.0, -128.0)  # elevation and azimuth in degrees
_LIFT = 0.004  # of the height: a path on the surface would be cut by its facets
_MOST_FRAMES = 100
_FRAME_MS, _HOLD_MS = 40, 1_500
_ANIMATION_DPI = 120
_BLENDS = 6  # colours of the palette between a series' colour and the terrain

Paths = Sequence[tuple[str, np.ndarray]]  # an optimizer's text, and its path


def paths_of(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Paths:
    """Every optimizer's text and path, in the order in which they were given."""
    return [(row["name"], arrays[row["array"]]) for row in facts["optimizers"]]


def levels_of(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Levels at equal shares of the points of both surfaces: a plateau and a valley both get their lines."""
    values = np.concatenate([arrays[split].ravel() for split in SPLITS if split in arrays])
    levels = np.unique(np.quantile(values, np.linspace(0, 1, NUM_LEVELS)))
    low, high = float(values.min()), float(values.max())
    return levels if len(levels) > 2 else np.linspace(low, high + 1e-9 * (1 + abs(high)), 3)


def draw_contours(
    arrays: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    width: str | float = "text",
    theme: str = "light",
) -> Figure:
    """Draw both surfaces as contours with the same levels, axes and colours, and all paths on each."""
    paths, ink = paths_of(arrays, facts), paper.THEMES[theme]["text"]
    with paper.style(theme):
        wide = paper.inches(width)
        figure = paper.figure(width, wide * 0.40 + 0.55 + _legend_height(paths, wide), theme)
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, split in zip(panels, SPLITS, strict=True):
            filled = _terrain(axes, arrays, split, theme)
            axes.set(title=split, xlabel="weight 1", aspect="equal")
            for minimum in facts.get("minima", ()):
                axes.plot([minimum["x"]], [minimum["y"]], color=ink, **_MINIMUM)
            _paths(axes, paths, theme)
            _name_gathered(axes, arrays, paths, ink)
        panels[0].set_ylabel("weight 2")
        bar = figure.colorbar(
            filled,
            ax=panels,
            fraction=0.04,
            pad=0.015,
            shrink=0.86,
            aspect=24,
            spacing="uniform",
            label="squared error",
        )
        bar.set_ticks(levels_of(arrays)[:: max(1, len(levels_of(arrays)) // 6)].tolist())
        bar.ax.yaxis.set_major_formatter("{x:.3g}")
        bar.outline.set_linewidth(0.4)
        _legend(figure, paths, theme, has_minima=bool(facts.get("minima")))
    return figure


def _legend_height(paths: Paths, wide: float) -> float:
    """Inches of the legend below a figure of a width, for which ten names have two rows in a text's width."""
    return 0.16 * math.ceil((len(paths) + 2) / max(1, int(wide / 0.95)))


def _legend(figure: Figure, paths: Paths, theme: str, has_minima: bool = False) -> None:
    """One legend of the paths, the start, and the minima of the train surface where they are drawn."""
    from matplotlib.lines import Line2D

    ink = paper.THEMES[theme]["text"]
    handles = [Line2D([], [], **paper.look(number).line(theme)) for number in range(len(paths))]
    names = [name for name, _ in paths]
    for name, look in [("start", _START), *([("minimum of train", _MINIMUM)] if has_minima else [])]:
        handles.append(Line2D([], [], color=ink, **look))
        names.append(name)
    paper.legend_below(figure, handles, names)


def _terrain(axes: Axes, arrays: Mapping[str, np.ndarray], split: str, theme: str) -> Any:
    """Fill the levels of a surface; a flat colour map starts where lines on it can still be seen."""
    levels = levels_of(arrays)
    axis, losses = _finer(arrays["axis"], arrays[split])
    made = axes.contourf(axis, axis, losses, levels, cmap=_map(theme), norm=_norm(levels))
    axes.contour(axis, axis, losses, levels, colors=paper.THEMES[theme]["text"], linewidths=0.3, alpha=0.3)
    made.set_rasterized(True)
    axes.set(xlim=(axis[0], axis[-1]), ylim=(axis[0], axis[-1]))
    axes.spines[:].set_visible(True)
    return made


def _map(theme: str) -> Any:
    """Pale, or dark on a dark page: the paths are what is looked at, and have the theme's colours."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    shades = matplotlib.colormaps[paper.MAP](np.linspace(paper.MAP_START, 1, 256))
    shades[:, :3] = 0.68 * shades[:, :3] + 0.32 if theme == "light" else 0.5 * shades[:, :3]
    return ListedColormap(shades)


def _norm(levels: np.ndarray) -> Any:
    from matplotlib.colors import BoundaryNorm

    return BoundaryNorm(levels, 256)


def _paths(axes: Axes, paths: Paths, theme: str) -> None:
    """Draw each path with a mark at its end: marks along it would turn it into beads."""
    for number, (_, path) in enumerate(paths):
        look = paper.look(number).line(theme, markevery=[len(path) - 1], zorder=3 + 0.01 * number)
        look["ms"] = 4.2
        line, *_ = axes.plot(path[:, _X], path[:, _Y], **look)
        line.set_gid(f"path {number}")
    x, y = paths[0][1][0, _X : _Y + 1]
    axes.plot([x], [y], color=paper.THEMES[theme]["text"], **_START)


def gathered(paths: Paths, reach: float) -> list[tuple[list[str], np.ndarray]]:
    """Groups of optimizers that end within 3 % of the axis from the first of them: texts and ends, (n, 2)."""
    groups: list[tuple[list[str], list[np.ndarray]]] = []
    for name, path in paths:
        end = path[-1, _X : _Y + 1]
        for names, ends in groups:
            if np.abs(end - ends[0]).max() <= 2 * reach * _NEAR:
                names.append(name)
                ends.append(end)
                break
        else:
            groups.append(([name], [end]))
    return [(names, np.array(ends)) for names, ends in groups if len(names) > 1]


def _name_gathered(axes: Axes, arrays: Mapping[str, np.ndarray], paths: Paths, ink: str) -> None:
    """Write beside ends that lie together whose they are: their marks lie on top of each other."""
    start, reach = paths[0][1][0, _X : _Y + 1], float(arrays["axis"][-1])
    for names, ends in gathered(paths, reach):
        moved = float(np.hypot(*(ends - start).T).max())
        apart = float(np.hypot(*(ends[:, None] - ends).T).max())
        stays = moved <= 2 * reach * _NEAR
        lines = [", ".join(names[at : at + _NAMES_A_LINE]) for at in range(0, len(names), _NAMES_A_LINE)]
        lines.append(f"moved at most {moved:.2g}" if stays else f"at most {apart:.2g} apart")
        x, y = start.tolist() if stays else ends.mean(0).tolist()
        is_left = x <= 0
        axes.annotate(
            "\n".join(lines), (x, y), (7 if is_left else -7, 0), textcoords="offset points",
            ha="left" if is_left else "right", va="center", fontsize=paper.SMALL, color=ink, zorder=6,
            bbox={"fc": axes.get_facecolor(), "alpha": 0.4, "lw": 0, "pad": 0.8},
        )  # fmt: skip


# --- the surface in three dimensions -----------------------------------------------------------------------


def draw_surfaces(
    arrays: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    width: str | float = "text",
    theme: str = "light",
) -> Figure:
    """Draw both surfaces from one side; parts of paths that the surface hides are thin and dotted."""
    paths = paths_of(arrays, facts)
    with paper.style(theme):
        wide = paper.inches(width)
        figure = paper.figure(width, wide * 0.37 + 0.1 + _legend_height(paths, wide), theme)
        low = min(arrays[split].min() for split in SPLITS)
        high = max(arrays[split].max() for split in SPLITS)
        for number, split in enumerate(SPLITS):
            axes: Any = figure.add_subplot(1, 2, number + 1, projection="3d", computed_zorder=False)
            _surface(axes, arrays, split, paths, (low, high), theme)
        _legend(figure, paths, theme)
    return figure


def _surface(
    axes: Any,
    arrays: Mapping[str, np.ndarray],
    split: str,
    paths: Paths,
    limits: tuple[float, float],
    theme: str,
) -> None:
    from matplotlib.colors import LightSource
    from matplotlib.ticker import FixedLocator, MaxNLocator

    axis, losses = _finer(arrays["axis"], arrays[split])
    reach, height = float(axis[-1]), limits[1] - limits[0]
    x, y = np.meshgrid(axis, axis)
    levels = levels_of(arrays)
    colours, colours_of = (
        paper.THEMES[theme],
        _map(theme)(np.interp(losses, levels, np.linspace(0, 1, len(levels)))),
    )
    drawn = axes.plot_surface(
        x, y, losses, rcount=len(axis), ccount=len(axis), facecolors=colours_of, shade=True,
        lightsource=LightSource(azdeg=200, altdeg=65),
        linewidth=0, antialiased=False, zorder=1,
    )  # fmt: skip
    drawn.set_rasterized(True)
    column = _LOSS + SPLITS.index(split)
    for number, (_, path) in enumerate(paths):
        inside = np.abs(path[:, _X : _Y + 1]).max(1) <= reach
        part = _dense(path[: len(path) if inside.all() else int(np.argmin(inside))], column)
        if not len(part):
            continue
        hidden = hidden_points(axis, losses, part, limits)
        lifted = part[:, 2] + _LIFT * height
        look = paper.look(number).line(theme, marker="")
        for is_hidden, run in _runs(hidden):
            own = {"ls": (0, (1, 2)), "lw": 0.5} if is_hidden else {}
            axes.plot(part[run, 0], part[run, 1], lifted[run], zorder=3, **(look | own))
        if inside.all():
            last = paper.look(number).line(theme, ls="", zorder=4, alpha=0.35 if hidden[-1] else 1.0)
            axes.plot(part[-1:, 0], part[-1:, 1], lifted[-1:], **last)
    start = paths[0][1][0]
    axes.plot([start[_X]], [start[_Y]], [start[column] + _LIFT * height], color=colours["text"], **_START)
    axes.view_init(*_VIEW)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=limits)
    axes.set_title(split, loc="left", y=0.88, pad=0)
    axes.set_xlabel("weight 1", labelpad=-7)
    axes.set_ylabel("weight 2", labelpad=-7)
    axes.set_zlabel("squared error", labelpad=-6)
    axes.tick_params(pad=-2)
    decade = 10 ** math.floor(math.log10(reach / 2))
    tick = max(each * decade for each in (1, 2, 5) if each * decade <= reach / 2)
    for each in (axes.xaxis, axes.yaxis):
        each.set_major_locator(FixedLocator([-tick, 0, tick]))  # ends of two axes would meet
    axes.zaxis.set_major_locator(MaxNLocator(5))
    axes.set_box_aspect((1, 1, 0.62), zoom=0.92)  # or the label of the height lies outside
    for each in (axes.xaxis, axes.yaxis, axes.zaxis):
        each.set_pane_color((0, 0, 0, 0))
        each.line.set_color(colours["muted"])
        each._axinfo["grid"].update(color=colours["faint"], linewidth=0.4)


def _finer(axis: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Twice as many points by cubic splines: else a steep wall across the grid gets the teeth of a saw."""
    from scipy.interpolate import RectBivariateSpline

    fine = np.linspace(axis[0], axis[-1], 2 * len(axis) - 1)
    spline = RectBivariateSpline(axis, axis, losses)(fine, fine)
    return fine, np.clip(spline, losses.min(), losses.max())


def _dense(path: np.ndarray, column: int) -> np.ndarray:
    """x, y and loss along a path, so close that its hidden parts begin where they do."""
    if len(path) < 2:
        return path[:, [_X, _Y, column]]
    places = np.linspace(0, len(path) - 1, max(len(path), 400))
    return np.column_stack(
        [np.interp(places, np.arange(len(path)), path[:, each]) for each in (_X, _Y, column)]
    )


def hidden_points(
    axis: np.ndarray, losses: np.ndarray, points: np.ndarray, limits: tuple[float, float]
) -> np.ndarray:
    """Say which points, (number, 3) of x, y and loss, the surface hides from the viewer: bool, (number,).

    A ray from each point towards the viewer is hidden if the surface is above it anywhere on its way.
    """
    elevation, azimuth = np.radians(_VIEW)
    extent, height = axis[-1] - axis[0], limits[1] - limits[0]
    # In the box of the picture, which is as wide as deep, and 0.62 as high.
    step = np.array([np.cos(azimuth), np.sin(azimuth)]) * extent
    rise = np.tan(elevation) * height / 0.62
    along = np.linspace(0, 1.5, 160)[2:]
    x = points[:, 0, None] + along * step[0]
    y = points[:, 1, None] + along * step[1]
    z = points[:, 2, None] + along * rise
    inside = (np.abs(x) <= axis[-1]) & (np.abs(y) <= axis[-1])
    above = interpolated(axis, losses, x, y) > z + 2 * _LIFT * height
    return (above & inside).any(1)


def interpolated(axis: np.ndarray, losses: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The loss at points between those of the grid, bilinear; points outside get the edge's."""
    spacing, last = axis[1] - axis[0], len(axis) - 1
    right, up = (np.clip((each - axis[0]) / spacing, 0, last) for each in (x, y))
    column, row = (np.minimum(each.astype(int), last - 1) for each in (right, up))
    right, up = right - column, up - row
    lower = losses[row, column] * (1 - right) + losses[row, column + 1] * right
    upper = losses[row + 1, column] * (1 - right) + losses[row + 1, column + 1] * right
    return np.asarray(lower * (1 - up) + upper * up)


def _runs(flags: np.ndarray) -> list[tuple[bool, slice]]:
    """Runs of equal flags; each reaches to the first point of the next, so that the line has no gaps."""
    edges = [0, *(np.flatnonzero(np.diff(flags)) + 1).tolist(), len(flags)]
    return [(bool(flags[a]), slice(a, min(b + 1, len(flags)))) for a, b in itertools.pairwise(edges)]


# --- the animation -----------------------------------------------------------------------------------------


def write_animation(
    arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], path: Path, theme: str = "light"
) -> Path:
    """Write the paths growing on the train surface, as GIF, WebP or APNG by the path's suffix.

    The terrain is drawn once, and only the lines of each frame. All frames have one palette, in which the
    series' colours have places of their own: a palette by frequency alone makes two of them one. A frame
    shows equal passes of all optimizers; the last one stays for 1.5 s.
    """
    frames = _frames(arrays, facts, theme)
    times = [_FRAME_MS] * (len(frames) - 1) + [_HOLD_MS]
    from PIL import Image

    palette = _palette(frames[-1], len(facts["optimizers"]), theme)
    flat = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    kind, content = path.suffix.lstrip("."), io.BytesIO()
    more: dict[str, Any] = {"save_all": True, "append_images": flat[1:], "duration": times, "loop": 0}
    if kind == "gif":
        flat[0].save(content, "GIF", optimize=False, disposal=1, **more)
    elif kind == "apng":
        flat[0].save(content, "PNG", **more)
    else:
        colours = [each.convert("RGB") for each in flat]
        colours[0].save(content, "WEBP", lossless=True, method=4, **(more | {"append_images": colours[1:]}))
    write_atomically(path, content.getvalue())
    return path


def _frames(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], theme: str) -> list[Image.Image]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    paths, ink = paths_of(arrays, facts), paper.THEMES[theme]["text"]
    most = max(path[-1, _PASSES] for _, path in paths)
    moments = np.linspace(0, most, min(_MOST_FRAMES, max(len(path) for _, path in paths)))
    with paper.style(theme):
        figure = paper.figure(4.4, 3.9, theme)
        figure.set_dpi(_ANIMATION_DPI)
        canvas = FigureCanvasAgg(figure)
        axes = figure.subplots()
        _terrain(axes, arrays, "train", theme)
        axes.set(aspect="equal", xlabel="weight 1", ylabel="weight 2")
        start = paths[0][1][0]
        axes.plot([start[_X]], [start[_Y]], color=ink, **_START)
        lines = []
        for number in range(len(paths)):
            lines += axes.plot([], [], **paper.look(number).line(theme, lw=1.3, ms=5.5, animated=True))
        clock = axes.text(0.02, 0.98, "", transform=axes.transAxes, va="top", color=ink, animated=True)
        _legend(figure, paths, theme)
        canvas.draw()
        terrain = canvas.copy_from_bbox(figure.bbox)
        frames = []
        for moment in moments:
            canvas.restore_region(terrain)
            for line, (_, path) in zip(lines, paths, strict=True):
                until = int(np.searchsorted(path[:, _PASSES], moment, "right"))
                line.set(xdata=path[:until, _X], ydata=path[:until, _Y], markevery=[until - 1])
                axes.draw_artist(line)
            clock.set_text(f"{round(moment):,} passes")
            axes.draw_artist(clock)
            frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    return frames


def _palette(frame: Image.Image, num_series: int, theme: str) -> Image.Image:
    """256 colours: those of the series, their blends with the terrain, and the most needed of the rest."""
    from matplotlib.colors import to_rgb
    from PIL import Image

    shades = _map(theme)(np.linspace(0, 1, 3))[:, :3]
    reserved = [np.array(to_rgb(paper.THEMES[theme][name])) for name in ("page", "text", "muted")]
    for number in range(min(num_series, paper.NUM_STYLES)):
        own = np.array(to_rgb(paper.look(number).colour(theme)))
        reserved.append(own)
        reserved += [own + (shades[1] - own) * share for share in np.linspace(0, 1, _BLENDS + 2)[1:-1]]
    fixed = (np.array(reserved) * 255).round().astype(np.uint8)
    rest = (
        frame.quantize(256 - len(fixed), Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).getpalette()
        or []
    )
    palette = Image.new("P", (1, 1))
    palette.putpalette([*fixed.ravel().tolist(), *rest[: 3 * (256 - len(fixed))]])
    return palette


def draw_terrain(
    facts: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    stem: Path,
    formats: Sequence[str] = ("svg", "png"),
    *,
    view: str = "all",
    width: str | float | None = None,
    theme: str = "light",
    animate: str | None = None,
) -> list[Path]:
    """Write ``STEM.FORMAT``, ``STEM-3d.FORMAT`` and the animation; return their paths.

    ``view`` contour or surface writes that picture alone.
    """
    size, written = width or "text", list[Path]()
    if view in ("all", "contour"):
        written += paper.save(draw_contours(arrays, facts, size, theme), stem, formats)
    if view in ("all", "surface"):
        deep = draw_surfaces(arrays, facts, size, theme)
        written += paper.save(deep, stem.with_name(f"{stem.name}-3d"), formats)
    if not written:
        raise UserError(f"--view {view}: a terrain has the views contour and surface")
    if animate:
        written.append(write_animation(arrays, facts, stem.with_name(f"{stem.name}.{animate}"), theme))
    return written
