"""The columns of a leaderboard, one row for each, and how their numbers are written.

The terminal's table, Markdown, LaTeX, CSV, JSON and the HTML page all read :func:`columns`. People read
fractions as percent; JSON and CSV keep them in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from pugdft.errors import printable
from pugdft.leaderboard.entry import Entry, Group, PublishedSource, Summary, TuningBudget, Versus, finite
from pugdft.predictions import METRICS, Metric

NOTHING = "–"
_MINUS = "\N{MINUS SIGN}"
_LARGE = 1e9  # from here on digits say less than a power of ten
_SHORTEST_LABEL = 16
GAP = 2  # characters between columns of text


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
    """A unit in which people read a stored number."""

    name: str  # behind the number or in the heading
    size: float = 1.0  # the stored number is divided by it
    decimals: int = 0
    least: float = 0.0  # the unit serves values whose largest is at least this, in the unit

    def __call__(self, value: float | None) -> str:
        """Write a stored number without the unit's name."""
        return number(None if value is None else value / self.size, self.decimals)

    def heading(self, what: str) -> str:
        """Write ``training, min``."""
        return f"{what}, {self.name}" if self.name else what

    def phrase(self, value: float | None) -> str:
        """Write ``12.5 min``."""
        return f"{self(value)} {self.name}".rstrip()


PERCENT, COUNT = DisplayUnit("%", 0.01, 2), DisplayUnit("")
# For `fitting_unit`: the largest has at most four digits before the point.
PASSES = (DisplayUnit("M", 1e6, 2, least=10), DisplayUnit("k", 1e3, 1, least=10), COUNT)
SECONDS = (DisplayUnit("h", 3600, 2, least=2), DisplayUnit("min", 60, 1, least=2), DisplayUnit("s", 1, 1))


def unit_of(metric: str) -> DisplayUnit:
    row = METRICS[metric]
    return DisplayUnit(row.unit, 1 / row.scale, row.digits)


def fitting_unit(units: Sequence[DisplayUnit], values: Iterable[float | None]) -> DisplayUnit:
    """Choose the first unit that the largest value is big enough for, else the last one."""
    largest = max((abs(known) for value in values if (known := finite(value)) is not None), default=0.0)
    return next((unit for unit in units if largest >= unit.least * unit.size), units[-1])


def count(value: float | None) -> str:
    """Write ``950``, ``12.0k``, ``1.2M``."""
    value = finite(value)
    if value is None or value < 1e4:
        return number(value, 0)
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


def interval(entry: Entry, metric: str, joint: str = " to ") -> str:
    """Write ``94.65 to 95.41``; nothing if there is none."""
    found = entry.summary(metric)
    return joint.join(map(unit_of(metric), found.ci95)) if found and found.ci95 else ""


@dataclass(frozen=True)
class Column:
    """One column of a table, or one field for programs."""

    field: str = ""  # name in JSON and CSV; empty for what they have under another name
    value: Callable[[Entry], Any] | None = None  # what JSON has; by default the entry's attribute `field`
    parts: type | None = None  # the class whose fields are cells of their own in CSV
    # The next three may hold ``{passes}`` and ``{seconds}``, the costs at which a group is compared.
    name: str = ""  # in words; empty for a column that tables of text lack
    heading: str = ""  # the name in short lines, for the terminal and LaTeX; by default the name
    page: str = ""  # lines of the heading on the page, without the unit; empty for what the page lacks
    section: str = ""  # heading over neighbouring columns of the page
    help: str = ""  # what the page's heading means
    units: tuple[DisplayUnit, ...] = (COUNT,)  # of the number; the page takes one for the whole column
    read: Callable[[Entry], float | None] | None = None  # the number that people see; by default the value
    write: Callable[[Entry], str] | None = None  # a cell of text; by default the number in the last unit
    importance: int = 0  # on a narrow table the highest numbers go first; 0 always stays
    metric: str = ""  # the metric that the column shows
    is_ranked: bool = False  # whether the ranks are by it
    has_spread: bool = False  # whether the page writes the standard deviation beside the number
    is_interval: bool = False  # whether the page draws the interval
    is_text: bool = False  # aligned to the left, and may be broken into lines; else to the right
    is_extra: bool = False  # shown in text where all columns are asked for
    lower_first: bool = False  # whether the page's first sort begins with the lowest

    def get(self, entry: Entry) -> Any:
        """Return what JSON has for an entry."""
        return self.value(entry) if self.value else attrgetter(self.field)(entry)

    def figure(self, entry: Entry) -> float | None:
        """Return the number that people see for an entry; None if there is none."""
        return finite(self.read(entry) if self.read else self.get(entry))

    def cell(self, entry: Entry) -> str:
        """Write an entry's cell in a table of text."""
        return self.write(entry) if self.write else self.units[-1](self.figure(entry))

    def width(self, entries: Iterable[Entry]) -> int:
        return max(map(len, [*self.heading.split("\n"), *(self.cell(entry) for entry in entries)]))


# Headings over the page's columns, in their order.
SECTIONS = ("", "test split, last epoch", "cost of a run", "top-1 at equal cost", "evidence", "never ranks")
_TEST, _COST, EQUAL, _EVIDENCE, _NEVER = SECTIONS[1:]


def columns(metric: str) -> tuple[Column, ...]:
    """List all columns of a leaderboard that is ranked by ``metric``, in their order."""
    plain = {key: _mean_column(row) for key, row in METRICS.items()}
    own, arrow = plain.pop(metric), "↑" if METRICS[metric].higher_is_better else "↓"
    mean = replace(
        own, name=f"{arrow} {own.name}", heading=f"{arrow} {own.heading}", importance=0, is_ranked=True,
        write=lambda entry: mean_and_spread(entry, metric),
        help=f"{METRICS[metric].meaning} Mean ± standard deviation over seeds. The ranks are by it.",
    )  # fmt: skip
    confidence = Column(
        name="95 % CI", heading="95 %\nCI", page="95 % CI", section=_TEST, units=own.units, metric=metric,
        importance=2, is_interval=True, lower_first=own.lower_first,
        read=lambda entry: found.ci95[0] if (found := entry.summary(metric)) and found.ci95 else None,
        write=lambda entry: interval(entry, metric, "–") or NOTHING,
        help="95 % interval of the mean, for other seeds and test images; in the picture the bar.",
    )  # fmt: skip
    return (*_FIRST, mean, confidence, *plain.values(), *_LATER, *SHARPNESS, *_LAST)


def _mean_column(metric: Metric) -> Column:
    return Column(
        metric.key, lambda entry: entry.summaries.get(metric.key), Summary,
        name=f"{metric.name} {metric.unit}".rstrip(), heading=f"{metric.name}\n{metric.unit}".rstrip(),
        page=metric.name, section=_TEST, units=(unit_of(metric.key),), metric=metric.key,
        importance=metric.importance, lower_first=not metric.higher_is_better,
        read=lambda entry: found.mean if (found := entry.summary(metric.key)) else None,
        help=f"{metric.meaning} Mean over seeds.",
    )  # fmt: skip


_FIRST = (
    Column(name="rank", write=rank,
           help="The places that the data allow: 1–3 means first, second or third. Who shares a place is not "
           "told apart."),
    Column("optimizer", attrgetter("label"), name="optimizer", is_text=True,
           write=lambda entry: printable(entry.label),
           help="Method and base optimizer; in brackets the options in which the entries differ. "
           "All of them are in the row's details."),
    *map(Column, ("status", "rank_low", "rank_high")),
    # A paper may not say how many; a measured entry always knows.
    Column("num_seeds", lambda entry: entry.num_seeds or (0 if entry.status == "measured" else None),
           name="seeds", page="seeds", importance=1,
           help="How many completed runs count, each with its own random draws."),
)  # fmt: skip

_LATER = (
    Column("best_test_top1_picked_on_test", attrgetter("best_test_top1"), page="best epoch,\npicked on test",
           section=_NEVER, units=(PERCENT,),
           help="Top-1 of the best epoch, picked on the test split: for comparison with papers. "
           "It never ranks."),
    Column("scores"),
    Column("gradient_passes", name="gradient passes", heading="grad.\npasses", page="passes", section=_COST,
           units=PASSES, write=lambda entry: count(entry.gradient_passes), importance=3, lower_first=True,
           help="Forward-backward passes over a batch in a whole run. An update of SAM or PUGD takes two."),
    Column("train_seconds", name="training time", heading="train\ntime", page="training", section=_COST,
           units=SECONDS, write=lambda entry: duration(entry.train_seconds), importance=4, lower_first=True,
           help="Time of training of one run, without evaluation."),
    Column("images_per_second", name="images/s", heading="img\n/s", page="images/s", section=_COST,
           importance=13, help="Images of updates a second; an image that is passed twice counts once."),
    Column("peak_memory_bytes", name="peak GiB", heading="peak\nGiB", page="memory", section=_COST,
           units=(DisplayUnit("GiB", 2.0**30, 1),), importance=9, lower_first=True,
           help="Largest memory of the device that a run took."),
    Column("top1_at_equal_passes", name="top-1 % at {passes} passes", heading="top-1 %\nat {passes}",
           page="top-1 at\n{passes} passes", section=EQUAL, units=(PERCENT,), importance=6,
           help="Top-1 after as many gradient passes as the cheapest entry takes in all. The schedules of "
           "the others are unfinished there; `pugdft bench --budget passes` compares whole ones."),
    Column("top1_at_equal_seconds", name="top-1 % at {seconds}", heading="top-1 %\nat {seconds}",
           page="top-1\nat {seconds}", section=EQUAL, units=(PERCENT,), importance=7,
           help="Top-1 after as much training time as the cheapest entry takes in all. The schedules of the "
           "others are unfinished there."),
    Column("tuning", parts=TuningBudget, name="tuning trials", heading="tuning\ntrials",
           page="tuning\ntrials", section=_COST, importance=11, lower_first=True,
           read=lambda entry: entry.tuning.trials if entry.tuning else None,
           help="Trials on held-out images, spent to choose the options."),
    Column("mean_perturbation_norm", name="‖e‖", page="‖e‖", section=_EVIDENCE,
           is_extra=True, units=(DisplayUnit("", 1, 3),), importance=14, write=lambda entry: (
               NOTHING if (norm := finite(entry.mean_perturbation_norm)) is None else f"{norm:.3g}"),
           help="Mean length of the perturbation, which shows that the method acted."),
    Column("mean_gradient_cosine", name="cos", page="cos", section=_EVIDENCE,
           is_extra=True, units=(DisplayUnit("", 1, 2),), importance=15,
           help="Mean cosine between both gradients of an update; at 1 the second one tells nothing new."),
)  # fmt: skip

_LAST = (
    Column("versus_best", parts=Versus),
    Column("versus_baseline", parts=Versus),
    Column("num_failed"),
    Column("failed", attrgetter("unfinished")),
    Column("records"),
    Column("failed_records", attrgetter("unfinished_records")),
    Column("spec"),
    Column("source", parts=PublishedSource),
    Column("notes"),
)  # fmt: skip


# The largest number has at least three digits.
_THREE_DIGITS = tuple(DisplayUnit("", 1, digits, 10.0 ** (2 - digits)) for digits in range(6))


def _sharpness_column(field: str, name: str, page: str, help_: str, importance: int) -> Column:
    """A column of means over seeds; numbers of any size, so with three digits."""

    def mean(entry: Entry) -> float | None:
        found = entry.sharpness.get(field)
        return finite(found.mean) if found else None

    def text(entry: Entry) -> str:
        found = entry.sharpness.get(field)
        if found is None or finite(found.mean) is None:
            return NOTHING
        return f"{found.mean:.3g}" + ("" if finite(found.std) is None else f" ± {found.std:.2g}")

    return Column(
        field, lambda entry: entry.sharpness.get(field), Summary, name=name, heading=page, page=page,
        section=_NEVER, units=_THREE_DIGITS, importance=importance, lower_first=True,
        read=mean, write=text, help=help_, has_spread=True,
    )  # fmt: skip


SHARPNESS = (
    _sharpness_column("lambda1", "λ1", "λ1", "Largest eigenvalue of the Hessian, on train images.", 5),
    _sharpness_column("adaptive_lambda1", "adaptive λ1", "adaptive\nλ1",
                      "Largest eigenvalue of |w|H|w|: it does not depend on the scale of layers.", 8),
    _sharpness_column("trace", "trace", "trace", "Trace of the Hessian.", 10),
    _sharpness_column("worst_rise", "worst rise", "worst\nrise",
                      "Largest rise of the loss that was found in a ball around the weights.", 12),
)  # fmt: skip


def titled(column: Column, group: Group) -> Column:
    """Fill a group's equal costs into the column's names."""
    costs = {"passes": count(group.equal_passes), "seconds": duration(group.equal_seconds)}
    texts = (column.name, column.heading or column.name, column.page)
    name, heading, page = (text.format_map(costs) for text in texts)
    return replace(column, name=name, heading=heading, page=page)


_MOST_FIRST = 10
_FEW_CLASSES = 10  # of so few, five guesses are nearly always enough


def text_columns(group: Group, full: bool = True) -> list[Column]:
    """List the columns for tables of text in which at least one measured entry has something.

    Unless ``full``, without evidence that a method acted, top-5 of few classes, and top-1 at the cost of the
    cheapest entry, unless the recipe's budget is passes: there the others' schedules are unfinished.
    """
    train = group.recipe.get("train")
    in_passes = isinstance(train, Mapping) and train.get("budget") == "passes"

    def is_shown(column: Column) -> bool:
        is_extra = column.is_extra or (column.section == EQUAL and not in_passes)
        is_extra |= column.metric == "top5" and (group.num_classes or math.inf) <= _FEW_CLASSES
        return full or not is_extra or column.is_ranked

    return [
        titled(column, group)
        for column in columns(group.metric)
        if column.name
        and is_shown(column)
        and (column.is_text or any(column.cell(entry) != NOTHING for entry in group.measured))
    ]


def first_columns(group: Group) -> list[Column]:
    """List the ten most important columns, which the page shows first."""
    return sorted(text_columns(group, full=False), key=lambda column: column.importance)[:_MOST_FIRST]


def fit(group: Group, width: int, full: bool = True) -> tuple[list[Column], list[Column]]:
    """Split a group's columns into those that ``width`` characters hold and the least important others."""
    # Labels may be broken into lines, so they ask for a quarter at most.
    chosen, most = text_columns(group, full), max(_SHORTEST_LABEL, width // 4)
    widths = {column.name: column.width(group.measured) for column in chosen}
    widths |= {column.name: min(widths[column.name], most) for column in chosen if column.is_text}
    kept = list(chosen)
    for column in sorted(chosen, key=lambda column: -column.importance):
        if sum(widths[each.name] + GAP for each in kept) - GAP <= width or not column.importance:
            break
        kept.remove(column)
    return kept, [column for column in chosen if column not in kept]
