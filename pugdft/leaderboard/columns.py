"""The columns of a leaderboard, one row for each, and how their numbers are written.

The terminal's table, Markdown, LaTeX, CSV, JSON and the HTML page all read :func:`columns`. People read
fractions as percent; JSON and CSV keep them in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from pugdft.errors import printable
from pugdft.leaderboard.entry import (
    Entry,
    Group,
    PublishedSource,
    Summary,
    TuningBudget,
    Versus,
    finite,
)
from pugdft.predictions import METRICS, Metric

NOTHING = "–"

_MINUS = "\N{MINUS SIGN}"

_LARGE = 1e9  # from here on digits say less than a power of ten

_SHORTEST_LABEL = 16


def number(value: float | None, decimals: int = 2) -> str:
    """Write ``1,234.50``, with a true minus sign; a dash if there is nothing to show."""
    value = finite(value)
    if value is None:
        return NOTHING
    text = f"{value:.2e}" if abs(value) >= _LARGE else f"{value:,.{decimals}f}"
    # −0.00 is a rounding, not a sign.
    negative = text.startswith("-") and any(digit in text for digit in "123456789")
    return _MINUS * negative + text.removeprefix("-")


@dataclass(frozen=True)
class DisplayUnit:
    """A unit in which people read a stored number.

    Attributes:
        name: written behind the number or in the heading.
        size: what the stored number is divided by.
        decimals: digits behind the point.
        least: the unit serves values whose largest is at least this, in the unit.
    """

    name: str
    size: float = 1.0
    decimals: int = 0
    least: float = 0.0

    def __call__(self, value: float | None) -> str:
        """Write a stored number without the unit's name."""
        value = finite(value)
        return number(None if value is None else value / self.size, self.decimals)

    def heading(self, what: str) -> str:
        """Write ``training, min``."""
        return f"{what}, {self.name}" if self.name else what

    def phrase(self, value: float | None) -> str:
        """Write ``12.5 min``."""
        return f"{self(value)} {self.name}".rstrip()


PERCENT = DisplayUnit("%", 0.01, 2)

COUNT = DisplayUnit("")


def unit_of(metric: str) -> DisplayUnit:
    """Return the unit in which people read a metric."""
    row = METRICS[metric]
    return DisplayUnit(row.unit, 1 / row.scale, row.digits)


_PASSES = (DisplayUnit("M", 1e6, 2, least=10), DisplayUnit("k", 1e3, 1, least=10), COUNT)

_SECONDS = (
    DisplayUnit("h", 3600, 2, least=2),
    DisplayUnit("min", 60, 1, least=2),
    DisplayUnit("s", 1, 1),
)


def passes_unit(values: Iterable[float | None]) -> DisplayUnit:
    """Choose the unit for gradient passes in which the largest has at most four digits before the point."""
    return fitting_unit(_PASSES, values)


def seconds_unit(values: Iterable[float | None]) -> DisplayUnit:
    """Choose hours, minutes or seconds."""
    return fitting_unit(_SECONDS, values)


def fitting_unit(units: Sequence[DisplayUnit], values: Iterable[float | None]) -> DisplayUnit:
    """Choose the first unit that the largest value is big enough for, else the last one."""
    largest = max((abs(known) for value in values if (known := finite(value)) is not None), default=0.0)
    return next((unit for unit in units if largest >= unit.least * unit.size), units[-1])


def count(value: float | None) -> str:
    """Write ``950``, ``12.0k``, ``1.2M``."""
    value = finite(value)
    if value is None:
        return NOTHING
    if value < 1e4:
        return f"{value:,.0f}"
    return f"{value / 1e3:.1f}k" if value < 1e6 else f"{value / 1e6:.1f}M"


def duration(seconds: float | None) -> str:
    """Write ``50s``, ``62m``, ``12h30``."""
    seconds = finite(seconds)
    if seconds is None:
        return NOTHING
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f}s"
    return f"{minutes}m" if minutes < 100 else f"{minutes // 60}h{minutes % 60:02d}"


def rank(entry: Entry) -> str:
    """Write ``1``, or ``1–3`` where the data leave it open."""
    if entry.rank_low is None:
        return NOTHING
    return str(entry.rank_low) if entry.rank_low == entry.rank_high else f"{entry.rank_low}–{entry.rank_high}"


def mean_and_spread(entry: Entry, metric: str) -> str:
    """Write ``95.03 ± 0.15``: mean and standard deviation over seeds."""
    found, unit = entry.summary(metric), unit_of(metric)
    if found is None:
        return NOTHING
    return unit(found.mean) + ("" if found.std is None else f" ± {unit(found.std)}")


def interval(entry: Entry, metric: str) -> str:
    """Write ``94.65–95.41``."""
    found = entry.summary(metric)
    return "–".join(map(unit_of(metric), found.ci95)) if found and found.ci95 else NOTHING


@dataclass(frozen=True)
class Column:
    """One column of a table, or one field for programs.

    Names and headings may hold ``{passes}`` and ``{seconds}``: the costs at which a group is compared.

    Attributes:
        field: name in JSON and CSV; empty for what they have under another name.
        value: what JSON has; by default the entry's attribute of that name.
        parts: the class whose fields are cells of their own in CSV.
        name: in words; empty for a column that tables of text lack.
        heading: the name in short lines, for the terminal and LaTeX.
        page: lines of the heading on the page, without the unit; empty for a column that the page lacks.
        section: heading over neighbouring columns of the page.
        help: what the page's heading means.
        units: of the number; the page takes one for the whole column.
        read: the number that people see.
        write: an entry's cell in tables of text; by default the number in the last unit.
        importance: on a narrow table the highest numbers go first; 0 always stays.
        metric: the metric that the column shows.
        is_ranked: whether the ranks are by it.
        is_interval: whether the page draws the interval.
        is_text: aligned to the left, and may be broken into lines; else to the right.
        lower_first: whether the page's first sort begins with the lowest.
    """

    field: str = ""
    value: Callable[[Entry], Any] | None = None
    parts: type | None = None
    name: str = ""
    heading: str = ""
    page: str = ""
    section: str = ""
    help: str = ""
    units: tuple[DisplayUnit, ...] = (COUNT,)
    read: Callable[[Entry], float | None] = lambda _: None
    write: Callable[[Entry], str] | None = None
    importance: int = 0
    metric: str = ""
    is_ranked: bool = False
    is_interval: bool = False
    is_text: bool = False
    lower_first: bool = False

    def cell(self, entry: Entry) -> str:
        """Write an entry's cell in a table of text."""
        return self.write(entry) if self.write else self.units[-1](self.read(entry))

    def width(self, entries: Iterable[Entry]) -> int:
        """Count the characters that the column needs."""
        return max(map(len, [*self.heading.split("\n"), *(self.cell(entry) for entry in entries)]))


SECTIONS = (
    "",
    "test split, last epoch",
    "cost of a run",
    "top-1 at equal cost",
    "evidence",
    "never ranks",
)
"""Headings over the page's columns, in their order."""


def columns(metric: str) -> tuple[Column, ...]:
    """List all columns of a leaderboard that is ranked by ``metric``, in their order."""
    others = (_mean_column(other) for key, other in METRICS.items() if key != metric)
    return (*_FIRST, *_ranked_columns(METRICS[metric]), *others, *_LATER)


def _ranked_columns(metric: Metric) -> tuple[Column, Column]:
    """The ranking metric with its spread, and its confidence interval."""
    arrow = "↑" if metric.higher_is_better else "↓"
    mean = replace(
        _mean_column(metric),
        name=f"{arrow} {metric.name} {metric.unit}".rstrip(),
        heading=f"{arrow} {metric.name}\n{metric.unit}".rstrip(),
        help=f"Mean {metric.name} ± standard deviation over seeds.",
        write=lambda entry: mean_and_spread(entry, metric.key),
        importance=0,
        is_ranked=True,
    )
    confidence = Column(
        name="95 % CI",
        heading="95 %\nCI",
        page="95 % CI",
        section=mean.section,
        help="95 % t-interval of the mean over seeds; thin strokes are the seeds.",
        units=mean.units,
        read=lambda entry: found.ci95[0] if (found := entry.summary(metric.key)) and found.ci95 else None,
        write=lambda entry: interval(entry, metric.key),
        importance=2,
        metric=metric.key,
        is_interval=True,
        lower_first=mean.lower_first,
    )
    return mean, confidence


def _mean_column(metric: Metric) -> Column:
    return Column(
        field=metric.key,
        value=lambda entry: entry.summaries.get(metric.key),
        parts=Summary,
        name=f"{metric.name} {metric.unit}".rstrip(),
        heading=f"{metric.name}\n{metric.unit}".rstrip(),
        page=metric.name,
        section="test split, last epoch",
        help=f"Mean {metric.name} over seeds.",
        units=(unit_of(metric.key),),
        read=lambda entry: found.mean if (found := entry.summary(metric.key)) else None,
        importance=metric.importance,
        metric=metric.key,
        lower_first=not metric.higher_is_better,
    )


# A paper may not say how many; a measured entry always knows.
def _num_seeds(entry: Entry) -> int | None:
    return entry.num_seeds if entry.num_seeds or entry.status == "measured" else None


_FIRST = (
    Column(name="rank", heading="rank", write=rank),
    Column(
        "optimizer", attrgetter("label"),
        name="optimizer", heading="optimizer", write=lambda entry: printable(entry.label), is_text=True,
    ),
    Column("status"),
    Column("rank_low"),
    Column("rank_high"),
    Column(
        "num_seeds", _num_seeds,
        name="seeds", heading="seeds", page="seeds", importance=1, read=_num_seeds,
        help="Completed runs, or as many as the source states.",
    ),
)  # fmt: skip

_LATER = (
    Column(
        "best_test_top1_picked_on_test", attrgetter("best_test_top1"),
        page="best epoch,\npicked on test", section="never ranks", units=(PERCENT,),
        read=attrgetter("best_test_top1"),
        help="Top-1 of the best epoch, picked on the test split: for comparison with papers. It never ranks.",
    ),
    Column("scores"),
    Column(
        "gradient_passes",
        name="gradient passes", heading="grad.\npasses", page="passes", section="cost of a run",
        importance=3, units=_PASSES, lower_first=True,
        read=attrgetter("gradient_passes"), write=lambda entry: count(entry.gradient_passes),
        help="Forward-backward passes over a batch. An update of SAM or PUGD takes two.",
    ),
    Column(
        "train_seconds",
        name="training time", heading="train\ntime", page="training", section="cost of a run",
        importance=4, units=_SECONDS, lower_first=True,
        read=attrgetter("train_seconds"), write=lambda entry: duration(entry.train_seconds),
        help="Time of training, without evaluation.",
    ),
    Column(
        "images_per_second",
        name="images/s", heading="img\n/s", page="images/s", section="cost of a run", importance=13,
        read=attrgetter("images_per_second"), help="Images of updates a second.",
    ),
    Column(
        "peak_memory_bytes",
        name="peak GiB", heading="peak\nGiB", page="memory", section="cost of a run", importance=9,
        units=(DisplayUnit("GiB", 2.0**30, 1),), read=attrgetter("peak_memory_bytes"), lower_first=True,
        help="Peak memory of the device.",
    ),
    Column(
        "top1_at_equal_passes",
        name="top-1 % at {passes} passes", heading="top-1 %\nat {passes}", page="{passes}\npasses",
        section="top-1 at equal cost", importance=6, units=(PERCENT,),
        read=attrgetter("top1_at_equal_passes"),
        help="After as many gradient passes as the cheapest entry takes in all.",
    ),
    Column(
        "top1_at_equal_seconds",
        name="top-1 % at {seconds}", heading="top-1 %\nat {seconds}", page="{seconds}",
        section="top-1 at equal cost", importance=7, units=(PERCENT,),
        read=attrgetter("top1_at_equal_seconds"),
        help="After as much training time as the cheapest entry takes in all.",
    ),
    Column(
        "tuning", parts=TuningBudget,
        name="tuning trials", heading="tuning\ntrials", page="tuning\ntrials", section="cost of a run",
        importance=11, lower_first=True, read=lambda entry: entry.tuning.trials if entry.tuning else None,
        help="Trials on held-out images, spent to choose the options.",
    ),
    Column(
        "mean_perturbation_norm",
        name="‖e‖", heading="‖e‖", page="‖e‖", section="evidence", importance=14,
        units=(DisplayUnit("", 1, 3),), read=attrgetter("mean_perturbation_norm"),
        write=lambda entry: (
            NOTHING if finite(entry.mean_perturbation_norm) is None else f"{entry.mean_perturbation_norm:.3g}"
        ),
        help="Mean length of the perturbation.",
    ),
    Column(
        "mean_gradient_cosine",
        name="cos", heading="cos", page="cos", section="evidence", importance=15,
        units=(DisplayUnit("", 1, 2),), read=attrgetter("mean_gradient_cosine"),
        help="Mean cosine between both gradients of an update.",
    ),
    Column("versus_best", parts=Versus),
    Column("num_failed"),
    Column("failed", attrgetter("unfinished")),
    Column("records"),
    Column("failed_records", attrgetter("unfinished_records")),
    Column("spec"),
    Column("source", parts=PublishedSource),
    Column("notes"),
)  # fmt: skip


def titled(column: Column, group: Group) -> Column:
    """Fill a group's equal costs into the column's names."""
    costs = {"passes": count(group.equal_passes), "seconds": duration(group.equal_seconds)}
    name, heading, page = (text.format_map(costs) for text in (column.name, column.heading, column.page))
    return replace(column, name=name, heading=heading, page=page)


def text_columns(group: Group) -> list[Column]:
    """List the columns for tables of text in which at least one measured entry has something."""
    return [
        titled(column, group)
        for column in columns(group.metric)
        if column.name and (column.is_text or any(column.cell(entry) != NOTHING for entry in group.measured))
    ]


def fit(
    chosen: Sequence[Column], entries: Sequence[Entry], width: int, gap: int
) -> tuple[list[Column], list[Column]]:
    """Split columns into those that ``width`` characters hold and those left out.

    Between columns there are ``gap`` characters. The least important columns go first. Labels may be broken
    into lines, so they ask for a quarter of the width at most.
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
