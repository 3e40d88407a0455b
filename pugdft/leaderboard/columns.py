"""The columns of a ranking, once for the terminal, Markdown and LaTeX: words, text of a cell, importance.

Cells are plain text with the field's signs (``95.03 ± 0.15``, ``–`` for nothing); a renderer escapes them.
Fractions become percent here; JSON and CSV keep them, see ``fields``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pugdft.errors import printable
from pugdft.leaderboard.entry import HIGHER_IS_BETTER, Entry, Group, Metric, Summary

NOTHING = "–"

# How a metric is called and shown: name, unit, factor, digits.
METRICS: dict[Metric, tuple[str, str, float, int]] = {
    "top1": ("top-1", "%", 100, 2),
    "top5": ("top-5", "%", 100, 2),
    "loss": ("loss", "", 1, 4),
    "ece": ("ECE", "%", 100, 2),
}

_SHORTEST_LABEL = 16


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: in words.
        heading: the same in two short lines.
        cell: an entry's text.
        importance: on a narrow page the highest numbers go first; 0 always stays.
        is_ranked: whether the ranks are by it.
        is_text: to the left, and may be broken into lines; else to the right.
    """

    name: str
    heading: str
    cell: Callable[[Entry], str]
    importance: int
    is_ranked: bool = False
    is_text: bool = False

    def width(self, entries: Iterable[Entry]) -> int:
        """Characters that the column needs."""
        texts = [*self.heading.split("\n"), *(self.cell(entry) for entry in entries)]
        return max(map(len, texts))


def measured(group: Group) -> tuple[Entry, ...]:
    """The entries that ran here."""
    return tuple(entry for entry in group.entries if entry.status == "measured")


def reported(group: Group) -> tuple[Entry, ...]:
    """The entries that others printed."""
    return tuple(entry for entry in group.entries if entry.status == "reported")


def columns(group: Group) -> list[Column]:
    """The columns of a group's measured entries in which at least one has something."""
    entries = measured(group)
    passes, seconds = count(group.equal_passes), duration(group.equal_seconds)
    others = [metric for metric in METRICS if metric != group.metric]
    candidates = [
        Column("rank", "rank", rank, 0),
        Column("optimizer", "optimizer", lambda entry: printable(entry.label), 0, is_text=True),
        Column("seeds", "seeds", lambda entry: str(entry.num_seeds), 1),
        _ranked_column(group.metric),
        Column("95 % CI", "95 %\nCI", lambda entry: interval(summary(entry, group.metric), group.metric), 2),
        *(_mean_column(metric) for metric in others),
        Column("gradient passes", "grad.\npasses", lambda entry: count(entry.gradient_passes), 3),
        Column("training time", "train\ntime", lambda entry: duration(entry.train_seconds), 4),
        Column("images/s", "img\n/s", lambda entry: scaled(entry.images_per_second, 1, ",.0f"), 13),
        Column("peak GiB", "peak\nGiB", lambda entry: scaled(entry.peak_memory_bytes, 2**-30, ".1f"), 9),
        Column(
            f"top-1 % at {passes} passes",
            f"top-1 %\nat {passes}",
            lambda entry: scaled(entry.top1_at_equal_passes, 100, ".2f"),
            6,
        ),
        Column(
            f"top-1 % at {seconds}",
            f"top-1 %\nat {seconds}",
            lambda entry: scaled(entry.top1_at_equal_seconds, 100, ".2f"),
            7,
        ),
        Column(
            "tuning trials",
            "tuning\ntrials",
            lambda entry: NOTHING if entry.tuning is None else f"{entry.tuning.trials:,}",
            11,
        ),
        Column("‖e‖", "‖e‖", lambda entry: scaled(entry.mean_perturbation_norm, 1, ".3g"), 14),
        Column("cos", "cos", lambda entry: scaled(entry.mean_gradient_cosine, 1, ".2f"), 15),
    ]
    return [
        column
        for column in candidates
        if column.is_text or any(column.cell(entry) != NOTHING for entry in entries)
    ]


def fit(
    chosen: Sequence[Column], entries: Sequence[Entry], width: int, gap: int
) -> tuple[list[Column], list[Column]]:
    """The columns that ``width`` characters hold with ``gap`` between them, and those left out for it.

    The least important go first. Labels may be broken, so they ask for a quarter of the width at most.
    """
    widths = {
        column.name: min(column.width(entries), max(_SHORTEST_LABEL, width // 4))
        if column.is_text
        else column.width(entries)
        for column in chosen
    }
    kept = list(chosen)
    for column in sorted(chosen, key=lambda column: -column.importance):
        if sum(widths[each.name] for each in kept) + gap * (len(kept) - 1) <= width or not column.importance:
            break
        kept.remove(column)
    return kept, [column for column in chosen if column not in kept]


def rank(entry: Entry) -> str:
    """``1``, or ``1–3`` where the data leave it open."""
    if entry.rank_low is None:
        return NOTHING
    return str(entry.rank_low) if entry.rank_low == entry.rank_high else f"{entry.rank_low}–{entry.rank_high}"


def summary(entry: Entry, metric: Metric) -> Summary | None:
    """The entry's figures for a metric."""
    figures: Summary | None = getattr(entry, metric)
    return figures


def mean_and_spread(figures: Summary | None, metric: Metric) -> str:
    """``95.03 ± 0.15``: mean and standard deviation over seeds."""
    if figures is None:
        return NOTHING
    _, _, factor, digits = METRICS[metric]
    spread = "" if figures.std is None else f" ± {factor * figures.std:.{digits}f}"
    return f"{factor * figures.mean:.{digits}f}{spread}"


def interval(figures: Summary | None, metric: Metric) -> str:
    """``94.65–95.41``."""
    if figures is None or figures.ci95 is None:
        return NOTHING
    _, _, factor, digits = METRICS[metric]
    return "–".join(f"{factor * bound:.{digits}f}" for bound in figures.ci95)


def scaled(value: float | None, factor: float, form: str) -> str:
    """A number in another unit."""
    return NOTHING if value is None else format(value * factor, form)


def count(number: float | None) -> str:
    """``950``, ``12.0k``, ``1.2M``."""
    if number is None:
        return NOTHING
    if number < 1e4:
        return f"{number:,.0f}"
    return f"{number / 1e3:.1f}k" if number < 1e6 else f"{number / 1e6:.1f}M"


def duration(seconds: float | None) -> str:
    """``50s``, ``62m``, ``12h30``."""
    if seconds is None:
        return NOTHING
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f}s"
    return f"{minutes}m" if minutes < 100 else f"{minutes // 60}h{minutes % 60:02d}"


def _ranked_column(metric: Metric) -> Column:
    name, unit, _, _ = METRICS[metric]
    arrow = "↑" if HIGHER_IS_BETTER[metric] else "↓"
    heading = f"{arrow} {name}\n{unit}".rstrip()
    return Column(
        " ".join([arrow, name, unit]).rstrip(),
        heading,
        lambda entry: mean_and_spread(summary(entry, metric), metric),
        0,
        is_ranked=True,
    )


def _mean_column(metric: Metric) -> Column:
    name, unit, factor, digits = METRICS[metric]
    importance = {"top1": 5, "loss": 8, "ece": 10, "top5": 12}[metric]

    def cell(entry: Entry) -> str:
        figures = summary(entry, metric)
        return scaled(figures.mean if figures else None, factor, f".{digits}f")

    return Column(f"{name} {unit}".rstrip(), f"{name}\n{unit}".rstrip(), cell, importance)


_MINUS = "\N{MINUS SIGN}"

_LARGE = 1e9  # from here on digits say less than a power of ten


def finite(value: float | None) -> float | None:
    """``value`` unless it is missing, infinite or not a number."""
    return value if value is not None and math.isfinite(value) else None


def number(value: float | None, decimals: int = 2) -> str:
    """``1,234.50``, with a true minus sign; a dash if there is nothing to show."""
    value = finite(value)
    if value is None:
        return NOTHING
    text = f"{value:.2e}" if abs(value) >= _LARGE else f"{value:,.{decimals}f}"
    # −0.00 is a rounding, not a sign.
    negative = text.startswith("-") and any(digit in text for digit in "123456789")
    return _MINUS * negative + text.removeprefix("-")


@dataclass(frozen=True)
class Unit:
    """What a stored number is divided by, what to call the result, and its decimals."""

    name: str
    size: float = 1.0
    decimals: int = 0

    def __call__(self, value: float | None) -> str:
        value = finite(value)
        return number(None if value is None else value / self.size, self.decimals)

    def heading(self, what: str) -> str:
        return f"{what}, {self.name}" if self.name else what

    def phrase(self, value: float | None) -> str:
        return f"{self(value)} {self.name}".rstrip()


PERCENT = Unit("%", 0.01, 2)

COUNT = Unit("")

MEMORY = Unit("GiB", 2.0**30, 1)

_PASSES = (Unit("M", 1e6, 2), Unit("k", 1e3, 1), COUNT)

_SECONDS = (Unit("h", 3600, 2), Unit("min", 60, 1), Unit("s", 1, 1))


def passes_unit(values: Iterable[float | None]) -> Unit:
    """For gradient passes: the unit in which the largest has at most four digits before the point."""
    return _fitting(_PASSES, values, 10)


def seconds_unit(values: Iterable[float | None]) -> Unit:
    """For times: hours, minutes or seconds."""
    return _fitting(_SECONDS, values, 2)


def _fitting(units: tuple[Unit, ...], values: Iterable[float | None], least: float) -> Unit:
    largest = max((abs(known) for value in values if (known := finite(value)) is not None), default=0.0)
    return next((unit for unit in units if largest >= least * unit.size), units[-1])


@dataclass(frozen=True)
class Measure:
    """A metric's name, and how it is written."""

    name: str
    unit: Unit

    @property
    def heading(self) -> str:
        return self.unit.heading(self.name)


MEASURES: Mapping[Metric, Measure] = {
    metric: Measure(name, Unit(unit, 1 / factor, digits))
    for metric, (name, unit, factor, digits) in METRICS.items()
}


def summary_of(entry: Entry, metric: Metric) -> Summary | None:
    """The metric's summary, without what is not finite."""
    found: Summary | None = getattr(entry, metric)
    if found is None or finite(found.mean) is None:
        return None
    bounds = found.ci95 if found.ci95 and all(finite(bound) is not None for bound in found.ci95) else None
    return Summary(found.mean, finite(found.std), bounds)
