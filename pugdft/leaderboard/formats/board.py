"""One column of a table: its heading, and for each entry the text and what to sort by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pugdft.leaderboard.charts import PixelScale, Tick, metric_axis
from pugdft.leaderboard.columns import (
    COUNT,
    MEASURES,
    MEMORY,
    NOTHING,
    PERCENT,
    Unit,
    finite,
    passes_unit,
    seconds_unit,
    summary_of,
)
from pugdft.leaderboard.entry import HIGHER_IS_BETTER, Entry, Group, Metric, Summary

STRIP_WIDTH = 120.0

_EDGE = 6.0

Direction = Literal["ascending", "descending"]


@dataclass(frozen=True)
class Strip:
    """An interval as a line in a cell, with the mean and every seed; in pixels."""

    mean: float
    low: float | None
    high: float | None
    cut_low: bool
    cut_high: bool
    seeds: tuple[float, ...]
    off: bool


@dataclass(frozen=True)
class Cell:
    """What an entry has in a column.

    Attributes:
        sort: a number, or nothing, which sorts behind every number in both directions.
        spread: the standard deviation, shown after the text.
        strip: drawn in front of the text.
    """

    text: str
    sort: str = ""
    spread: str = ""
    strip: Strip | None = None


@dataclass(frozen=True)
class PageColumn:
    """A heading and a cell for each entry.

    Attributes:
        heading: its lines.
        section: heading over neighbouring columns.
        help: what the heading means.
        first: the direction that a first click sorts in.
        ticks: over the strips.
        sorted: the direction in which the rows come already.
    """

    heading: tuple[str, ...]
    section: str
    help: str
    first: Direction
    cells: tuple[Cell, ...]
    ticks: tuple[Tick, ...] = ()
    sorted: Direction | Literal["none"] = "none"

    @property
    def has_spread(self) -> bool:
        return any(cell.spread for cell in self.cells)


@dataclass(frozen=True)
class Section:
    """Makes the columns below one heading."""

    heading: str
    entries: Sequence[Entry]

    def column(
        self,
        what: str,
        help: str,
        unit: Unit,
        read: Callable[[Entry], float | None],
        first: Direction = "descending",
    ) -> PageColumn:
        cells = tuple(Cell(unit(value), _sort(value)) for value in map(read, self.entries))
        return PageColumn(_lines(what, unit), self.heading, help, first, cells)

    def count(
        self,
        what: str,
        help: str,
        read: Callable[[Entry], int | None],
        first: Direction = "descending",
    ) -> PageColumn:
        return self.column(what, help, COUNT, read, first)

    def mean(self, metric: Metric) -> PageColumn:
        """Of a metric that does not rank."""
        measure = MEASURES[metric]
        return self.column(
            measure.name,
            f"Mean {measure.name} over seeds.",
            measure.unit,
            lambda entry: found.mean if (found := summary_of(entry, metric)) else None,
            _better(metric),
        )

    def summary(self, metric: Metric) -> PageColumn:
        """Mean and standard deviation."""
        measure = MEASURES[metric]
        cells = []
        for entry in self.entries:
            found = summary_of(entry, metric)
            mean, std = (found.mean, found.std) if found else (None, None)
            spread = "" if std is None else f"± {measure.unit(std)}"
            cells.append(Cell(measure.unit(mean), _sort(mean), spread))
        help = f"Mean {measure.name} ± standard deviation over seeds."
        heading, better = _lines(measure.name, measure.unit), _better(metric)
        return PageColumn(heading, self.heading, help, better, tuple(cells), sorted=_order(cells, better))

    def interval(self, metric: Metric) -> PageColumn:
        """The confidence interval, drawn and in figures; sorted by its lower end."""
        unit = MEASURES[metric].unit
        summaries = [summary_of(entry, metric) for entry in self.entries]
        known = [summary for summary in summaries if summary]
        axis = metric_axis(known, metric, _EDGE, STRIP_WIDTH - _EDGE) if known else None
        cells = []
        for entry, summary in zip(self.entries, summaries, strict=True):
            if summary is None or axis is None:
                cells.append(Cell(NOTHING))
                continue
            bounds = summary.ci95
            text = f"{unit(bounds[0])} to {unit(bounds[1])}" if bounds else NOTHING
            strip = _strip(axis, summary, entry)
            cells.append(Cell(text, _sort(bounds[0] if bounds else None), strip=strip))
        help = "95 % t-interval of the mean over seeds; thin strokes are the seeds."
        ticks = axis.ticks(unit, 3) if axis else ()
        return PageColumn(_lines("95 % CI", unit), self.heading, help, _better(metric), tuple(cells), ticks)

    def best_epoch(self) -> PageColumn:
        return self.column(
            "best epoch,\npicked on test",
            "Top-1 of the best epoch, picked on the test split: for comparison with papers. It never ranks.",
            PERCENT,
            lambda entry: entry.best_test_top1,
        )


def _strip(axis: PixelScale, summary: Summary, entry: Entry) -> Strip:
    low, high = summary.ci95 or (None, None)
    return Strip(
        mean=axis.at(summary.mean),
        low=None if low is None else axis.at(low),
        high=None if high is None else axis.at(high),
        cut_low=low is not None and low < axis.low,
        cut_high=high is not None and high > axis.high,
        seeds=tuple(axis.at(score) for score in entry.scores.values() if axis.holds(score)),
        off=not axis.holds(summary.mean),
    )


def _lines(what: str, unit: Unit) -> tuple[str, ...]:
    return (*what.split("\n"), *([unit.name] if unit.name else []))


def _sort(value: float | None) -> str:
    return "" if finite(value) is None else repr(value)


def _order(cells: Sequence[Cell], better: Direction) -> Direction | Literal["none"]:
    """``better`` if the rows come in that order, those without a value last, as a ranking's do."""
    values = [float(cell.sort) for cell in cells if cell.sort]
    in_order = values == sorted(values, reverse=better == "descending")
    return better if in_order and all(cell.sort for cell in cells[: len(values)]) else "none"


def _better(metric: Metric) -> Direction:
    return "descending" if HIGHER_IS_BETTER[metric] else "ascending"


_NORM, _COSINE = Unit("", 1, 3), Unit("", 1, 2)


def measured_columns(group: Group, entries: Sequence[Entry]) -> list[PageColumn]:
    """Columns of the ranked entries, without those in which no entry has anything."""
    metric = group.metric
    passes = passes_unit(entry.gradient_passes for entry in entries)
    seconds = seconds_unit(entry.train_seconds for entry in entries)
    equal_passes = passes_unit([group.equal_passes]).phrase(group.equal_passes)
    equal_seconds = seconds_unit([group.equal_seconds]).phrase(group.equal_seconds)
    test = Section("test split, last epoch", entries)
    cost = Section("cost of a run", entries)
    equal = Section("top-1 at equal cost", entries)
    evidence = Section("evidence", entries)
    never = Section("never ranks", entries)
    columns = [
        Section("", entries).count("seeds", "Completed runs.", lambda entry: entry.num_seeds),
        test.summary(metric),
        test.interval(metric),
        *(test.mean(other) for other in MEASURES if other != metric),
        cost.column(
            "passes",
            "Forward-backward passes over a batch. An update of SAM or PUGD takes two.",
            passes,
            lambda entry: entry.gradient_passes,
            "ascending",
        ),
        cost.column(
            "training",
            "Time of training, without evaluation.",
            seconds,
            lambda entry: entry.train_seconds,
            "ascending",
        ),
        cost.column("images/s", "Images of updates a second.", COUNT, lambda entry: entry.images_per_second),
        cost.column(
            "memory",
            "Peak memory of the device.",
            MEMORY,
            lambda entry: entry.peak_memory_bytes,
            "ascending",
        ),
        cost.count(
            "tuning\ntrials",
            "Trials on held-out images, spent to choose the options.",
            lambda entry: entry.tuning.trials if entry.tuning else None,
            "ascending",
        ),
        equal.column(
            "equal\npasses" if group.equal_passes is None else f"{equal_passes}\npasses",
            "After as many gradient passes as the cheapest entry takes in all.",
            PERCENT,
            lambda entry: entry.top1_at_equal_passes,
        ),
        equal.column(
            "equal\ntime" if group.equal_seconds is None else equal_seconds.replace(" ", "\n"),
            "After as much training time as the cheapest entry takes in all.",
            PERCENT,
            lambda entry: entry.top1_at_equal_seconds,
        ),
        evidence.column(
            "‖e‖", "Mean length of the perturbation.", _NORM, lambda entry: entry.mean_perturbation_norm
        ),
        evidence.column(
            "cos",
            "Mean cosine between both gradients of an update.",
            _COSINE,
            lambda entry: entry.mean_gradient_cosine,
        ),
        never.best_epoch(),
    ]
    return _filled(columns)


def reported_columns(entries: Sequence[Entry]) -> list[PageColumn]:
    """Columns of what others reported: numbers without ranks."""
    section = Section("", entries)
    seeds = section.count("seeds", "As stated by the source.", lambda entry: entry.num_seeds or None)
    return _filled([section.summary("top1"), section.mean("top5"), section.best_epoch(), seeds])


def _filled(columns: Sequence[PageColumn]) -> list[PageColumn]:
    return [
        column
        for column in columns
        if any(cell.strip or cell.text not in (NOTHING, "") for cell in column.cells)
    ]
