"""Pictures of a landscape or a trajectory from its stored form: curves, contours, 3-D surfaces. No torch.

Runs that are shown together have the same axes, levels and colours, taken from all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pugdft.errors import UserError, known_names, printable, shortened
from pugdft.figures import paper

if TYPE_CHECKING:
    from matplotlib.colors import Colormap, LogNorm
    from matplotlib.figure import Figure

Facts = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]

VIEWS = {"line": ("line",), "plane": ("contour", "surface"), "between": ("line",)}
"""The views of each kind of landscape."""

_STRIDES = (1, 2, 4)
_NUM_LEVELS = 18
_WIDE_RANGE = 20.0  # highest through lowest loss from which an axis is logarithmic
_MOST_COLUMNS = 4
_LONGEST_LABEL = 60
_SPREAD = 0.01  # of a spectrum's nodes, as a share of their range
_LEAST_DENSITY = 1e-6  # of the highest one
_HANDLING = {
    "reestimate": "BatchNorm re-estimated",
    "fixed": "BatchNorm fixed",
    "batch": "BatchNorm of each batch",
    "none": "no BatchNorm",
}


@dataclass(frozen=True)
class Levels:
    """Colours of losses, the same for all panels."""

    values: np.ndarray
    norm: LogNorm
    map: Colormap


def draw_landscape(
    facts: Facts,
    arrays: Arrays,
    stem: Path,
    formats: Sequence[str] = ("svg", "png"),
    *,
    view: str = "all",
    width: str | float | None = None,
    theme: str = "light",
) -> list[Path]:
    """Draw a stored landscape; return the pictures' paths.

    Args:
        stem: of the pictures; a plane's are ``STEM-contour`` and ``STEM-surface``.
        view: line, contour, surface or all that the landscape has.
        width: column, text or inches; None: what the number of panels needs.

    Raises:
        UserError: the landscape has no such view, or no lattice of it is complete.
    """
    views = VIEWS[facts["options"]["kind"]]
    if view not in ("all", *views):
        raise UserError(f"--view {view}: this landscape has no such view.{known_names([*views, 'all'])}")
    written = []
    for each in views if view == "all" else (view,):
        place = stem if len(views) == 1 else stem.with_name(f"{stem.name}-{each}")
        with paper.style(theme):
            written += paper.save(landscape_figure(facts, arrays, each, width, theme), place, formats)
    return written


def landscape_figure(
    facts: Facts, arrays: Arrays, view: str, width: str | float | None = None, theme: str = "light"
) -> Figure:
    """One view of a stored landscape, within :func:`pugdft.figures.paper.style`."""
    draw = {"line": _curves, "contour": _contours, "surface": _surfaces}[view]
    return draw(facts, arrays, width, theme)


def lattice_done(values: np.ndarray, axes: Sequence[int], centre: int) -> np.ndarray:
    """Indices of the finest lattice about ``centre`` of which every point is computed.

    Raises:
        UserError: not even the coarsest one is complete.
    """
    indices = np.arange(values.shape[axes[0]])
    for stride in _STRIDES:
        chosen = indices[(indices - centre) % stride == 0]
        part = values
        for axis in axes:
            part = part.take(chosen, axis)
        if len(chosen) > 2 and not np.isnan(part).any():
            return chosen
    done = int(np.count_nonzero(~np.isnan(values)))
    raise UserError(
        f"only {done} of {values.size} points are computed: too few to draw; the same command goes on"
    )


def labels_of(facts: Facts) -> list[str]:
    """The runs' names, which anybody may have written, as short text of one line."""
    return [shortened(printable(record["label"]), _LONGEST_LABEL) for record in facts["records"]]


def _caption(facts: Facts, width: str | float, *first: str) -> str:
    """What was evaluated and how, in as many lines as the figure's width needs."""
    sample, options = facts["sample"], facts["options"]
    words = [*first, f"{sample['images']} {sample['split']} images", _HANDLING[facts["batch_norm"]]]
    if "normalize" in options and options["kind"] != "between":
        scaled = options["normalize"]
        how = "not normalized" if scaled == "none" else f"{scaled}-normalized"
        words.append("sharpest directions" if options["along"] == "hessian" else how)
    room = paper.inches(width) * 72 / (0.56 * paper.TEXT)  # characters of a line
    lines = [""]
    for word in words:
        joined = f"{lines[-1]} · {word}".removeprefix(" · ")
        if len(joined) <= room:
            lines[-1] = joined
        else:
            lines.append(word)
    return "\n".join(filter(None, lines))


def _log_axis(axis: Any, losses: np.ndarray) -> None:
    """Make an axis of losses logarithmic if they span more than a factor, with plain numbers at its ticks."""
    from matplotlib.ticker import NullLocator

    finite = losses[np.isfinite(losses) & (losses > 0)]
    if not len(finite) or not is_wide(finite.min(), finite.max()):
        return
    axis._set_axes_scale("log")
    ticks = _loss_ticks(float(finite.min()) / 1.3, float(finite.max()) * 1.3)
    axis.set_minor_locator(NullLocator())
    axis.set_ticks(ticks, labels=[f"{each:g}" for each in ticks])


def _curves(facts: Facts, arrays: Arrays, width: str | float | None, theme: str) -> Figure:
    """Loss along a line: the mean of all directions, and a band from the lowest to the highest."""
    options, loss, alpha = facts["options"], arrays["loss"], arrays["alpha"]
    is_between = options["kind"] == "between"
    chosen = lattice_done(loss, [loss.ndim - 1], 0 if is_between else len(alpha) // 2)
    steps, curves = alpha[chosen], np.where(np.isinf(loss), np.nan, loss)[..., chosen]
    labels = labels_of(facts)
    wide = width or "column"
    figure = paper.figure(wide, theme=theme)
    axes = figure.add_subplot()
    for number, values in enumerate(curves):
        look = paper.look(number).line(theme, markevery=max(1, len(steps) // 10))
        label = f"{labels[0]} to {labels[number + 1]}" if is_between else labels[number]
        rows = np.atleast_2d(values)
        if len(rows) > 1:
            colour = paper.look(number).colour(theme)
            axes.fill_between(steps, rows.min(0), rows.max(0), color=colour, alpha=0.18, lw=0)
        axes.plot(steps, rows.mean(0), label=label, **look)
    _log_axis(axes.yaxis, curves)
    way = paper.wrapped(f"share of the way from {labels[0]}", 0.75 * paper.inches(wide))
    axes.set_xlabel(way if is_between else "step α")
    count = loss.shape[1] if options["kind"] == "line" else 0
    band = [f"mean and range of {count} directions"] if count > 1 else []
    figure.suptitle(_caption(facts, wide, *band), fontsize=paper.SMALL, color=paper.THEMES[theme]["muted"])
    axes.set_ylabel(f"{facts['sample']['split']} loss")
    axes.set_xlim(steps[0], steps[-1])
    axes.grid(visible=True, axis="y")
    if len(curves) > 1 or is_between:
        paper.legend_below(figure, *axes.get_legend_handles_labels())
    return figure


def loss_limits(losses: np.ndarray) -> tuple[float, float]:
    """The lowest and the highest finite loss, above zero, with some room."""
    finite = losses[np.isfinite(losses)]
    low, high = max(float(finite.min()), 1e-12), max(float(finite.max()), 2e-12)
    return low / 1.02, max(high * 1.02, low * 1.1)


def is_wide(low: float, high: float) -> bool:
    """Whether losses need a logarithmic axis."""
    return high > _WIDE_RANGE * low


def levels_of(losses: np.ndarray) -> Levels:
    """Levels in equal ratios over all finite losses, with colours from the readable part of the map.

    The lowest one lies below the lowest loss: a level on the floor itself draws rounding.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm

    low, high = loss_limits(losses)
    values = np.geomspace(low, high, _NUM_LEVELS)
    part = ListedColormap(colormaps[paper.MAP](np.linspace(paper.MAP_START, 1, 256)), "loss")
    return Levels(values, LogNorm(low, high), part)


def _panels(count: int, width: str | float | None) -> tuple[int, int, str | float]:
    """Rows and columns of panels, and the width of the figure."""
    columns = min(count, _MOST_COLUMNS if count != _MOST_COLUMNS + 1 else 3)
    return -(-count // columns), columns, width or ("column" if count == 1 else "text")


def _loss_ticks(low: float, high: float) -> list[float]:
    """Round losses between two bounds: of every decade 1, or 1, 2 and 5 where there are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for marks in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10)), tuple(np.arange(1, 10, 0.5))):
        ticks = [float(m * 10.0**d) for d in decades for m in marks if low <= m * 10.0**d <= high]
        if len(ticks) >= 3:
            return ticks[:: -(-len(ticks) // 7)]
    return [low, high]


def _contours(facts: Facts, arrays: Arrays, width: str | float | None, theme: str) -> Figure:
    """The loss on the plane of each run: filled contours, the run's weights in the middle."""
    loss, labels = arrays["loss"], labels_of(facts)
    chosen = lattice_done(loss, [1, 2], len(arrays["alpha"]) // 2)
    axis, values = arrays["alpha"][chosen], loss[:, chosen][:, :, chosen]
    levels = levels_of(values)
    rows, columns, wide = _panels(len(values), width)
    side = (paper.inches(wide) - 0.9) / columns - 0.22  # between two panels stand the ticks of one
    figure = paper.figure(wide, rows * (side + 0.22) + 0.5, theme)
    grid: Any = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number >= len(values):
            axes.set_axis_off()
            continue
        _fill(axes, axis, axis, values[number].T, levels, theme)
        axes.plot(0, 0, "+", color="white", ms=5, mew=0.9)
        axes.set_aspect("equal")
        axes.locator_params(nbins=5)
        if len(values) > 1:
            axes.set_title(paper.wrapped(labels[number], side))
        if number // columns == rows - 1 or number + columns >= len(values):
            axes.set_xlabel("step α")
            axes.tick_params(labelbottom=True)
        if number % columns == 0:
            axes.set_ylabel("step β")
    _colour_bar(figure, grid, levels, f"{facts['sample']['split']} loss")
    figure.suptitle(_caption(facts, wide), fontsize=paper.SMALL, color=paper.THEMES[theme]["muted"])
    return figure


def _fill(axes: Any, x: np.ndarray, y: np.ndarray, loss: np.ndarray, levels: Levels, theme: str) -> None:
    """Filled contours with thin lines; where the loss is not finite there is hatching, no colour."""
    shown = np.where(np.isfinite(loss), np.maximum(loss, levels.values[0]), np.nan)
    filled = axes.contourf(x, y, shown, levels.values, norm=levels.norm, cmap=levels.map)
    filled.set_edgecolor("face")  # else a viewer shows the page between two colours
    filled.set_linewidth(0.2)
    axes.contour(x, y, shown, levels.values[1:-1], colors="black", linewidths=0.25, alpha=0.55)
    if np.isnan(shown).any():
        muted = paper.THEMES[theme]["muted"]
        axes.patch.set(hatch="////", edgecolor=muted, facecolor=paper.THEMES[theme]["page"])


def _colour_bar(figure: Figure, grid: Any, levels: Levels, label: str, **more: Any) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import NullLocator

    bar = figure.colorbar(
        ScalarMappable(levels.norm, levels.map), ax=grid, aspect=24, shrink=0.9, pad=0.02, **more
    )
    ticks = _loss_ticks(levels.values[0], levels.values[-1])
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_ticks(ticks, labels=[f"{each:g}" for each in ticks])
    bar.set_label(label)
    bar.outline.set_linewidth(0.4)


def _surfaces(facts: Facts, arrays: Arrays, width: str | float | None, theme: str) -> Figure:
    """The loss over the plane of each run as a surface, on a logarithmic height where it spans decades."""
    from matplotlib.ticker import FixedFormatter, FixedLocator

    loss, labels = arrays["loss"], labels_of(facts)
    chosen = lattice_done(loss, [1, 2], len(arrays["alpha"]) // 2)
    axis, values = arrays["alpha"][chosen], loss[:, chosen][:, :, chosen]
    levels = levels_of(values)
    low, high = levels.values[0], levels.values[-1]
    is_log = is_wide(low, high)
    rows, columns, wide = _panels(len(values), width)
    side = paper.inches(wide) / columns
    figure = paper.figure(wide, rows * side * 0.86 + 0.2, theme)
    colours = paper.THEMES[theme]
    across, along = np.meshgrid(axis, axis, indexing="ij")
    for number, values_here in enumerate(values):
        axes: Any = figure.add_subplot(rows, columns, number + 1, projection="3d", computed_zorder=False)
        shown = np.where(np.isfinite(values_here), np.maximum(values_here, low), np.nan)
        height = np.log10(shown) if is_log else shown
        axes.plot_surface(
            across, along, height, facecolors=levels.map(levels.norm(shown)), rcount=81, ccount=81,
            shade=False, linewidth=0.15, edgecolor=(0, 0, 0, 0.35), antialiased=True, rasterized=True,
        )  # fmt: skip
        limits = (math.log10(low), math.log10(high)) if is_log else (low, high)
        axes.set_zlim(*limits)
        if is_log:
            ticks = _loss_ticks(low, high)
            axes.zaxis.set_major_locator(FixedLocator([math.log10(each) for each in ticks]))
            axes.zaxis.set_major_formatter(FixedFormatter([f"{each:g}" for each in ticks]))
        axes.view_init(28, -58)
        axes.set_box_aspect((1, 1, 0.72), zoom=0.95)
        axes.set_xlabel("α", labelpad=-7)
        axes.set_ylabel("β", labelpad=-7)
        # Written flat: turned along the axis it would leave the canvas.
        axes.text2D(
            0.02, 0.86, f"{facts['sample']['split']} loss", transform=axes.transAxes, fontsize=paper.TEXT
        )
        if len(values) > 1:
            axes.set_title(paper.wrapped(labels[number], side), pad=-4, loc="center")
        for each in (axes.xaxis, axes.yaxis, axes.zaxis):
            each.set_pane_color((0, 0, 0, 0))
            each.line.set_color(colours["muted"])
            each._axinfo["grid"].update(color=colours["faint"], linewidth=0.4)
        axes.tick_params(pad=-4, labelsize=paper.SMALL, width=0.4)
        axes.tick_params(axis="z", pad=1)
        # At the ends, the labels of two axes would meet; between, they would touch in a narrow panel.
        ticks = [axis[0] / 2, 0, axis[-1] / 2]
        names = [f"{each:g}".replace("-", "−") for each in ticks]
        axes.set_xticks(ticks, labels=names)
        axes.set_yticks(ticks, labels=names)
    figure.suptitle(_caption(facts, wide), fontsize=paper.SMALL, color=paper.THEMES[theme]["muted"])
    return figure


def draw_trajectory(
    facts: Facts,
    arrays: Arrays,
    stem: Path,
    formats: Sequence[str] = ("svg", "png"),
    *,
    view: str = "all",
    width: str | float | None = None,
    theme: str = "light",
) -> list[Path]:
    """Draw a stored trajectory; return the pictures' paths.

    Raises:
        UserError: no lattice of the plane is complete, or the view is not ``contour`` or ``all``.
    """
    if view not in ("all", "contour"):
        raise UserError(f"--view {view}: a trajectory has no such view.{known_names(['contour', 'all'])}")
    with paper.style(theme):
        return paper.save(trajectory_figure(facts, arrays, width, theme), stem, formats)


def trajectory_figure(
    facts: Facts, arrays: Arrays, width: str | float | None = None, theme: str = "light"
) -> Figure:
    """Runs' ways over the loss on their plane, and below it the loss there and at the snapshots themselves.

    The area of a mark is the share of the snapshot's distance from the origin that lies in the plane.
    """
    from matplotlib.lines import Line2D

    wide = width or "column"
    labels, colours = labels_of(facts), paper.THEMES[theme]
    across, along = (lattice_done(arrays["plane_loss"], [0, 1], len(arrays["alpha"]) // 2),) * 2
    plane = arrays["plane_loss"][np.ix_(across, along)]
    figure = paper.figure(wide, min(1.18 * paper.inches(wide), 5.2), theme)
    grid: Any = figure.subplots(2, 1, height_ratios=(3.1, 1))
    top, strip = grid
    levels = levels_of(plane)
    _fill(top, arrays["alpha"][across], arrays["beta"][along], plane.T, levels, theme)
    for number, (xy, distance) in enumerate(zip(arrays["xy"], arrays["distance"], strict=True)):
        look, there = paper.look(number), np.isfinite(xy[:, 0])
        _draw_way(top, xy[there], distance[there], look.colour(theme), look.marker, colours["page"])
        steps = arrays["steps"][number]
        for name, dashes in (("true_loss", "-"), ("projected_loss", (0, (2.2, 1.6)))):
            loss = arrays[name][number]
            shown = np.where(np.isfinite(loss), loss, np.nan)
            mark = look.marker if name == "true_loss" else ""
            more = {"ls": dashes, "marker": mark, "ms": 2.4, "markevery": max(1, int(there.sum()) // 12)}
            strip.plot(steps, shown, **look.line(theme) | more)
    names = ("distance along the first axis", "along the second")
    if facts["options"]["plane"] == "axes":
        names = ("distance from the end, towards the start", "largest detour")
    top.set_xlabel(names[0])
    top.set_ylabel(names[1])
    _colour_bar(figure, top, levels, f"{facts['sample']['split']} loss")
    _log_axis(strip.yaxis, np.stack([arrays["true_loss"], arrays["projected_loss"]]))
    strip.set_xlabel("updates")
    strip.set_ylabel("loss")
    strip.grid(visible=True, axis="y")
    strip.set_xlim(left=0)
    kinds = (("at the snapshot", "-"), ("at its projection", (0, (2.2, 1.6))))
    # Solid here too: dashes mean a projection in this picture.
    handles: list[Any] = [Line2D([], [], **paper.look(n).line(theme, ls="-")) for n in range(len(labels))]
    handles += [Line2D([], [], color=colours["muted"], lw=1, ls=each) for _, each in kinds]
    paper.legend_below(figure, handles, [*labels, *(name for name, _ in kinds)])
    figure.suptitle(
        _caption(facts, wide, *_plane_words(facts, arrays)), fontsize=paper.SMALL, color=colours["muted"]
    )
    return figure


def _draw_way(axes: Any, xy: np.ndarray, distance: np.ndarray, colour: str, marker: str, page: str) -> None:
    """A line with an edge of the page's colour; the first snapshot's mark is open, the last one's a star."""
    from matplotlib.patheffects import Normal, Stroke

    edge = [Stroke(linewidth=2.2, foreground=page), Normal()]
    axes.plot(*xy.T, color=colour, lw=1.0, path_effects=edge, zorder=3)
    inside = np.divide(
        np.linalg.norm(xy, axis=1), distance, out=np.ones(len(xy)), where=distance > 1e-12 * distance.max()
    )
    sizes = 2.0 + 16.0 * np.minimum(inside, 1) ** 2
    axes.scatter(*xy.T, s=sizes, marker=marker, color=colour, linewidths=0, zorder=4)
    axes.scatter(*xy[0], s=22, marker=marker, facecolor=page, edgecolor=colour, linewidths=0.9, zorder=5)
    axes.scatter(*xy[-1], s=60, marker="*", facecolor=colour, edgecolor=page, linewidths=0.5, zorder=5)


def _plane_words(facts: Facts, arrays: Arrays) -> list[str]:
    """What the plane explains, and what it hides."""
    share = facts["explained"]
    explained = f"plane explains {share:{'.0%' if share < 0.995 else '.2%'}}"
    if facts["options"]["plane"] == "pca":
        explained += f" (random walk {facts['random_walk']:.0%})"
    distance, residual = arrays["distance"], arrays["residual"]
    away = residual[distance > 0] / distance[distance > 0]
    return [explained, f"up to {away.max():.0%} of the distance outside", "start open, end ★"]


def draw_spectrum(
    facts: Facts,
    arrays: Arrays,
    stem: Path,
    formats: Sequence[str] = ("svg", "png"),
    *,
    view: str = "all",
    width: str | float | None = None,
    theme: str = "light",
) -> list[Path]:
    """Draw the density of a Hessian's eigenvalues; return the pictures' paths.

    Raises:
        UserError: the view is not ``line`` or ``all``.
    """
    if view not in ("all", "line"):
        raise UserError(f"--view {view}: a spectrum has no such view.{known_names(['line', 'all'])}")
    with paper.style(theme):
        return paper.save(spectrum_figure(facts, arrays, width, theme), stem, formats)


def spectrum_figure(
    facts: Facts, arrays: Arrays, width: str | float | None = None, theme: str = "light"
) -> Figure:
    """The density of eigenvalues on a logarithmic axis, and the nodes that it is made of.

    Each node is a Gaussian of 1 % of the nodes' range (Ghorbani et al., arXiv 1901.10159): the width shows
    where single eigenvalues lie, and is no property of the Hessian.
    """
    nodes, weights = (np.asarray(arrays[name], np.float64).ravel() for name in ("nodes", "weights"))
    wide, colours = width or "column", paper.THEMES[theme]
    low, high = float(nodes.min()), float(nodes.max())
    spread = _SPREAD * max(high - low, 1e-12)
    where = np.linspace(low - 4 * spread, high + 4 * spread, 801)
    shapes = np.exp(-0.5 * ((where[:, None] - nodes) / spread) ** 2) / (spread * math.sqrt(2 * math.pi))
    density = shapes @ (weights / weights.sum())
    figure = paper.figure(wide, theme=theme)
    axes = figure.add_subplot()
    floor = _LEAST_DENSITY * float(density.max())
    shown = np.where(density > floor, density, np.nan)
    colour = paper.look(0).colour(theme)
    axes.fill_between(where, floor, shown, color=colour, alpha=0.18, lw=0)
    axes.plot(where, shown, color=colour)
    axes.plot(nodes, np.full(len(nodes), 0.02), "|", color=colours["muted"], ms=3, mew=0.4,
              transform=axes.get_xaxis_transform())  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("eigenvalue λ of the Hessian")
    axes.set_ylabel("density")
    axes.grid(visible=True, axis="y")
    sample = facts["sample"]
    said = f"{sample['images']} {sample['split']} images · smoothed by {_SPREAD:.0%} of the range"
    figure.suptitle(said, fontsize=paper.SMALL, color=colours["muted"])
    return figure
