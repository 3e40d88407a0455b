"""Results over several tasks as figures for a paper. Plain data in the units to show, no torch.

Draw within :func:`pugdft.figures.paper.style`. All figures show an entry in the same colour and shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pugdft.figures import paper

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Estimated = tuple[float, float, float]  # a value and the ends of its interval

_ROW, _MARGIN = 0.21, 0.55  # inches of an entry, and of what stands above and below all of them
_MOST_BANDS = 4  # of profiles; more would cover each other
_BESIDE = 0.025  # of the range of costs: between marks of equal cost
_BAR: dict[str, Any] = {"lw": 1.0, "zorder": 2}


@dataclass(frozen=True, kw_only=True)
class AcrossSeries:
    """One entry over all tasks; ``number`` is that of its look."""

    label: str
    number: int
    is_best: bool  # not ruled out as the best: its mark is filled
    difference: Estimated | None  # to the best entry, which has none
    task_differences: Sequence[float] = ()
    rank: Estimated | None = None
    profile: Sequence[float] = ()
    profile_band: tuple[Sequence[float], Sequence[float]] | None = None
    cost: Estimated | None = None
    front: str | None = None
    front_share: float | None = None


def forest_figure(
    series: Sequence[AcrossSeries], heading: str, width: str | float | None = None, theme: str = "light"
) -> Figure:
    """Draw each entry's mean difference to the best with its interval, and small marks for the tasks."""
    figure, axes = _rows([each.label for each in series], width, theme)
    axes.set_xlabel(heading)
    axes.axvline(0.0, color=paper.THEMES[theme]["muted"], lw=0.6, zorder=1)
    for row, each in enumerate(series):
        colour = paper.look(each.number).colour(theme)
        axes.plot(
            each.task_differences, [row + 0.28] * len(each.task_differences), "|", ms=3, mew=0.6, color=colour
        )
        if each.difference is not None:
            _mark(axes, each, each.difference, row, theme)
        else:
            _mark(axes, each, (0.0, 0.0, 0.0), row, theme)
    return figure


def ranks_figure(
    series: Sequence[AcrossSeries],
    critical_difference: float,
    width: str | float | None = None,
    theme: str = "light",
) -> Figure:
    """Draw mean ranks with intervals, and the critical difference as a bar from the best one."""
    figure, axes = _rows([each.label for each in series], width, theme)
    colours, size = paper.THEMES[theme], len(series)
    ranks = [each.rank for each in series if each.rank]
    best = min(rank for rank, *_ in ranks)
    axes.axvspan(best, best + critical_difference, color=colours["faint"], lw=0, zorder=0)
    axes.set(xlabel=f"mean rank; grey: within {critical_difference:.2f} (Nemenyi)")
    axes.set_xlim(1 - 0.03 * size, size + 0.03 * size)
    axes.locator_params(axis="x", integer=True)
    for row, each in enumerate(series):
        if each.rank:
            _mark(axes, each, each.rank, row, theme)
    return figure


def profiles_figure(
    series: Sequence[AcrossSeries],
    distances: Sequence[float],
    heading: str,
    width: str | float | None = None,
    theme: str = "light",
) -> Figure:
    """Draw the share of tasks in which each entry is at most so far behind the best of the task."""
    figure = paper.figure(width or "column", None, theme)
    axes = figure.add_subplot()
    axes.set(xlabel=heading, ylabel="share of tasks", ylim=(-0.02, 1.04))
    axes.set_xlim(0, max(distances[-1], 1e-9) * 1.02)
    axes.grid(axis="y")
    for each in series:
        look = paper.look(each.number)
        if each.profile_band and len(series) <= _MOST_BANDS:
            axes.fill_between(
                distances, *each.profile_band, step="post", color=look.colour(theme), alpha=0.12, lw=0
            )
        line = look.line(theme, drawstyle="steps-post", markevery=(7 * each.number % 20, 20))
        axes.plot(distances, each.profile, label=each.label, **line)
    paper.legend_below(figure, *axes.get_legend_handles_labels())
    return figure


def front_figure(
    series: Sequence[AcrossSeries],
    headings: tuple[str, str],
    width: str | float | None = None,
    theme: str = "light",
) -> Figure:
    """Draw differences to the best against cost, with both intervals.

    Filled: on the front, so nothing that costs no more is better. A cross: behind it. Else the data leave it
    open; labels give the share of resampled tasks that have an entry on the front. Marks of equal cost stand
    side by side.
    """
    figure = paper.figure(width or "column", None, theme)
    axes = figure.add_subplot()
    axes.set(xlabel=headings[0], ylabel=headings[1])
    axes.grid(axis="y")
    points, labels = list[tuple[float, float]](), []
    reach = max((each.cost[0] for each in series if each.cost), default=1.0) - 1.0
    for each in series:
        if each.cost is None:
            continue
        look = paper.look(each.number)
        colour, (cost, *cost_ends) = look.colour(theme), each.cost
        cost += _BESIDE * reach * sum(abs(x - cost) < _BESIDE * reach * len(points) for x, _ in points)
        value, *ends = each.difference or (0.0, 0.0, 0.0)
        axes.plot(cost_ends, [value, value], color=colour, **_BAR)
        axes.plot([cost, cost], ends, color=colour, **_BAR)
        fill = colour if each.front == "on" else paper.THEMES[theme]["page"]
        mark = {"marker": "x", "mew": 1.2} if each.front == "behind" else {"mfc": fill}
        axes.plot([cost], [value], **look.line(theme, ls="", zorder=3, **mark))
        points.append((cost, value))
        labels.append(each.label if each.front_share is None else f"{each.label} ({each.front_share:.2f})")
    axes.margins(0.12)
    left_out = paper.place_labels(axes, points, labels, fontsize=paper.SMALL)
    if left_out:
        axes.set_title(f"without room: {', '.join(left_out)}", fontsize=paper.SMALL)
    return figure


def wins_figure(
    labels: Sequence[str],
    chances: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    width: str | float | None = None,
    theme: str = "light",
) -> Figure:
    """Draw the tasks that each row's entry won, tied and lost against each column's one.

    Args:
        chances: from 0 to 1; None on the diagonal.
        texts: what stands in the cells.
    """
    from matplotlib.colors import LinearSegmentedColormap

    wide = paper.inches(width or "column")
    figure = paper.figure(width or "column", min(wide, 0.35 * len(labels) + 1.3), theme)
    axes, colours = figure.add_subplot(), paper.THEMES[theme]
    shades = LinearSegmentedColormap.from_list("chances", [colours["s1"], colours["page"], colours["s0"]])
    axes.imshow([[0.5 if each is None else 0.5 + 0.6 * (each - 0.5) for each in row] for row in chances],
                vmin=0, vmax=1, cmap=shades, aspect="auto")  # fmt: skip
    for row, cells in enumerate(texts):
        for column, text in enumerate(cells):
            axes.text(column, row, text, ha="center", va="center", fontsize=paper.SMALL)
    places = range(len(labels))
    axes.set_xticks(places, labels, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("tasks won/tied/lost of the row; colour: chance of improvement", fontsize=paper.SMALL)
    return figure


def _rows(labels: Sequence[str], width: str | float | None, theme: str) -> tuple[Figure, Axes]:
    """A figure with one row for each entry, the first one above."""
    figure = paper.figure(width or "column", _ROW * len(labels) + _MARGIN, theme)
    axes = figure.add_subplot()
    axes.set_yticks(range(len(labels)), [paper.wrapped(label, 1.2, paper.SMALL) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    return figure, axes


def _mark(axes: Axes, each: AcrossSeries, estimated: Estimated, row: int, theme: str) -> None:
    look = paper.look(each.number)
    value, low, high = estimated
    axes.plot([low, high], [row, row], color=look.colour(theme), **_BAR)
    fill = look.colour(theme) if each.is_best else paper.THEMES[theme]["page"]
    axes.plot([value], [row], **look.line(theme, ls="", mfc=fill, zorder=3))
