"""Curves over the course of training, and results over a sweep, as figures for a paper. Plain data, no torch.

All curves of a label share colour, marker and dashes. The axes fit the runs that came to their end: one that
diverged is drawn to its last finite value, which has a cross, at the edge of the axes if it lies beyond.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pugdft.figures import paper

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = Sequence[float]

_WIDE_RANGE = 20.0  # highest through lowest value from which an axis is logarithmic
_MARKS = 6  # on a curve
_PANEL_HEIGHT, _PLAIN_HEIGHT = 1.75, 2.2  # inches of a panel among others, and of one alone
_LEGEND_HEIGHT = 0.17  # inches of a row
_CROSS: dict[str, Any] = {"marker": "x", "ms": 5.0, "mew": 1.3, "ls": "", "clip_on": False, "zorder": 5}
_STOPPED = "last finite value"


@dataclass(frozen=True, kw_only=True)
class PaperCurve:
    """A line with an optional band, or a single run that did not come to its end."""

    label: str
    number: int  # of its look
    xs: Numbers
    ys: Numbers
    band: tuple[Numbers, Numbers] | None = None  # its lower and its upper edge
    is_whole: bool = True  # whether it sets the axes
    is_stopped: bool = False  # whether its last value has a cross


@dataclass(frozen=True, kw_only=True)
class PaperPanel:
    heading: str  # of the vertical axis
    remark: str = ""  # above it
    curves: Sequence[PaperCurve]


def histories_figure(
    panels: Sequence[PaperPanel], x_heading: str, width: str | float | None = None, theme: str = "light"
) -> Figure:
    """Draw panels over one horizontal axis, within :func:`pugdft.figures.paper.style`.

    Args:
        width: column, text or inches; None: a column for one panel, else the text's.
    """
    figure, grid = _grid(len(panels), width, theme, _num_labels(panels))
    stopped = False
    for panel, axes in zip(panels, grid, strict=True):
        axes.set(xlabel=x_heading, ylabel=panel.heading)
        axes.set_title(panel.remark, fontsize=paper.SMALL)
        axes.grid(axis="y")
        _set_scale(axes, panel.curves)
        for curve in panel.curves:
            _draw_curve(axes, curve, theme)
        _set_limits(axes, panel.curves)
        for curve in panel.curves:
            if curve.is_stopped:
                stopped = True
                low, high = axes.get_ylim()
                look = _CROSS | {"color": paper.look(curve.number).colour(theme)}
                axes.plot([curve.xs[-1]], [min(max(curve.ys[-1], low), high)], **look)
    _legend(figure, [curve for panel in panels for curve in panel.curves], theme, stopped)
    return figure


def sweep_figure(
    curves: Sequence[PaperCurve],
    names: Sequence[str] | None,
    headings: tuple[str, str],
    width: str | float | None = None,
    theme: str = "light",
) -> Figure:
    """Draw results over the values of one option, a curve for each value of another.

    Args:
        names: what stands at 0, 1, … on the horizontal axis if the option's values are no numbers.
        headings: of the horizontal and of the vertical axis.
    """
    figure, (axes,) = _grid(1, width, theme, len({curve.label for curve in curves}))
    axes.set(xlabel=headings[0], ylabel=headings[1])
    axes.grid(axis="y")
    xs = [x for curve in curves for x in curve.xs]
    if names is not None:
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif min(xs) > 0 and max(xs) > _WIDE_RANGE * min(xs):
        axes.set_xscale("log")
    for curve in curves:
        look = paper.look(curve.number)
        axes.plot(curve.xs, curve.ys, **look.line(theme))
        if curve.band is not None:
            axes.vlines(curve.xs, *curve.band, colors=look.colour(theme), lw=0.9, zorder=1.9)
    _legend(figure, [curve for curve in curves if curve.label], theme, stopped=False)
    return figure


def _num_labels(panels: Sequence[PaperPanel]) -> int:
    return len({curve.label for panel in panels for curve in panel.curves})


def _grid(
    num_panels: int, width: str | float | None, theme: str, num_labels: int
) -> tuple[Figure, list[Axes]]:
    """A figure with its axes: below each other in a column, else side by side."""
    if width is None:
        width = "column" if num_panels == 1 else "text"
    wide = paper.inches(width)
    most = 1 if wide < 5 else 3
    rows = -(-num_panels // most)
    columns = -(-num_panels // rows)
    height = rows * (_PLAIN_HEIGHT if columns == 1 and rows == 1 else _PANEL_HEIGHT)
    figure = paper.figure(width, height + _LEGEND_HEIGHT * -(-num_labels // max(1, int(wide / 1.2))), theme)
    places = [(number // columns, number % columns) for number in range(num_panels)]
    spec = figure.add_gridspec(rows, columns)
    return figure, [figure.add_subplot(spec[row, column]) for row, column in places]


def _draw_curve(axes: Axes, curve: PaperCurve, theme: str) -> None:
    look = paper.look(curve.number)
    every = max(1, math.ceil(len(curve.xs) / _MARKS))
    more: dict[str, Any] = {"markevery": (curve.number % every, every)}
    if not curve.is_whole:
        more |= {"lw": 0.6, "marker": ""}
    if curve.band is not None:
        axes.fill_between(curve.xs, *curve.band, color=look.colour(theme), alpha=0.18, lw=0)
    axes.plot(curve.xs, curve.ys, **look.line(theme, **more))


def _set_scale(axes: Axes, curves: Sequence[PaperCurve]) -> None:
    """A logarithmic axis for positive values of very different sizes."""
    from matplotlib.ticker import LogLocator, NullFormatter

    values = _deciding(curves)
    if not values or min(values) <= 0 or max(values) < _WIDE_RANGE * min(values):
        return
    axes.set_yscale("log")
    few = max(values) < 1e3 * min(values)
    axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 5) if few else (1,), numticks=12))
    axes.yaxis.set_minor_locator(LogLocator(10, range(1, 10), numticks=99))
    if max(values) < 1e5 and min(values) > 1e-4:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _deciding(curves: Sequence[PaperCurve]) -> list[float]:
    whole = [curve for curve in curves if curve.is_whole] or list(curves)
    edges = [edge for curve in whole if curve.band for edge in curve.band]
    return [value for values in (*(curve.ys for curve in whole), *edges) for value in values]


def _set_limits(axes: Axes, curves: Sequence[PaperCurve]) -> None:
    """Fit the vertical axis to the runs that came to their end."""
    values = _deciding(curves)
    low, high, end = min(values), max(values), max(curve.xs[-1] for curve in curves)
    end = end or 1.0  # a run that ended in its first epoch
    axes.set_xlim(-0.03 * end, 1.03 * end)  # from before the first update on
    if axes.get_yscale() == "log":
        axes.set_ylim(low / (high / low) ** 0.05, high * (high / low) ** 0.05)
        return
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - room, high + room)


def _legend(figure: Figure, curves: Sequence[PaperCurve], theme: str, stopped: bool) -> None:
    from matplotlib.lines import Line2D

    numbers = {curve.label: curve.number for curve in reversed(curves) if curve.label}
    labels = sorted(numbers, key=lambda label: numbers[label])
    handles = [Line2D([], [], **paper.look(numbers[label]).line(theme)) for label in labels]
    if stopped:
        handles.append(Line2D([], [], color=paper.THEMES[theme]["text"], **_CROSS | {"clip_on": True}))
        labels.append(_STOPPED)
    if len(labels) > 1:
        paper.legend_below(figure, handles, labels)
