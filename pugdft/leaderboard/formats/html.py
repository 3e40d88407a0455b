"""Groups as one HTML page: sortable tables, charts, and the details behind each row."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import groupby
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from pugdft import __version__
from pugdft.config import yaml
from pugdft.errors import counted, printable
from pugdft.figures.charts import NUM_STYLES, svg_text, swatch
from pugdft.leaderboard.charts import (
    COST_WORDS,
    PixelScale,
    Tick,
    assign_styles,
    cost_chart,
    history_chart,
    listed,
    metric_axis,
    shortened,
)
from pugdft.leaderboard.columns import (
    NOTHING,
    PERCENT,
    SECTIONS,
    Column,
    columns,
    fitting_unit,
    number,
    rank,
    titled,
    unit_of,
)
from pugdft.leaderboard.entry import Entry, Group, Summary, finite
from pugdft.leaderboard.formats.csv_json import SCHEMA
from pugdft.predictions import METRICS

STRIP_WIDTH = 120.0

_EDGE = 6.0

_MOST_SEEDS = 1000  # beyond this a difference is too small for anyone to run

_MOST_NAMES = 6

_LONGEST_ASIDE = 60

_ARXIV = re.compile(r"[0-9]{4}\.[0-9]{4,5}(v[0-9]{1,2})?")

_Direction = Literal["ascending", "descending"]


def as_html(groups: Sequence[Group], title: str = "pugdft leaderboard") -> str:
    """Write the whole page. Equal groups give equal text.

    Everything from a record is untrusted: it is put on one line, without control characters or
    bidirectional overrides, and escaped, in one place for all of the template. The page's own policy allows
    the one style sheet and the one script whose hashes it names.
    """
    environment = Environment(
        loader=PackageLoader("pugdft.leaderboard.formats", "templates"),
        autoescape=True,
        finalize=_harmless,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        strip_width=STRIP_WIDTH, words=COST_WORDS, num_styles=NUM_STYLES, swatch=_swatch
    )
    environment.filters["indented"] = escape  # made printable line by line before, with its indentation
    style, script = _text("page.css"), _text("page.js")
    return environment.get_template("page.html.j2").render(
        page=_page_view(groups),
        title=title,
        schema=SCHEMA,
        version=__version__,
        # Our own text, not a record's.
        style=Markup(style),  # noqa: S704
        script=Markup(script),  # noqa: S704
        style_hash=_digest(style),
        script_hash=_digest(script),
    )


def _harmless(value: Any) -> Any:
    """Clean all text that is not the template's own markup."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _swatch(style: int, filled: bool) -> str:
    """Draw a short line with its marker, for the legend."""
    return svg_text(swatch(style, filled), f"swatch{style}{filled}")


def _text(name: str) -> str:
    """Read a file of the templates' folder, with the line ends that a browser hashes."""
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# --- the cells of a table ---


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
class PageCell:
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
    """A column's heading and a cell for each entry.

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
    first: _Direction
    cells: tuple[PageCell, ...]
    ticks: tuple[Tick, ...]
    sorted: _Direction | Literal["none"]

    @property
    def has_spread(self) -> bool:
        """Whether any cell has a standard deviation."""
        return any(cell.spread for cell in self.cells)


def _page_columns(group: Group, metric: str, entries: Sequence[Entry]) -> tuple[PageColumn, ...]:
    """The columns of a table in which at least one entry has something, by section."""
    chosen = [titled(column, group) for column in columns(metric) if column.page]
    made = [
        _page_column(column, entries)
        for column in sorted(chosen, key=lambda column: SECTIONS.index(column.section))
        if not column.is_interval or (entries and entries[0].status == "measured")
    ]
    return tuple(
        column
        for column in made
        if any(cell.strip or cell.text not in (NOTHING, "") for cell in column.cells)
    )


def _page_column(column: Column, entries: Sequence[Entry]) -> PageColumn:
    values = [column.figure(entry) for entry in entries]
    unit = fitting_unit(column.units, values)
    texts = [unit(value) for value in values]
    spreads = [""] * len(entries)
    strips: list[Strip | None] = [None] * len(entries)
    ticks: tuple[Tick, ...] = ()
    summaries = [entry.summary(column.metric) for entry in entries]
    if column.is_ranked:
        spreads = [f"± {unit(each.std)}" if each and each.std is not None else "" for each in summaries]
    known = [summary for summary in summaries if summary]
    if column.is_interval and known:
        axis = metric_axis(known, column.metric, _EDGE, STRIP_WIDTH - _EDGE)
        ticks = axis.ticks(unit, 3)
        texts = [" to ".join(map(unit, each.ci95)) if each and each.ci95 else NOTHING for each in summaries]
        strips = [
            _strip(axis, summary, entry) if summary else None
            for summary, entry in zip(summaries, entries, strict=True)
        ]
    first: _Direction = "ascending" if column.lower_first else "descending"
    return PageColumn(
        heading=(*column.page.split("\n"), *([unit.name] if unit.name else [])),
        section=column.section,
        help=column.help,
        first=first,
        cells=tuple(
            PageCell(text, "" if value is None else repr(value), spread, strip)
            for text, value, spread, strip in zip(texts, values, spreads, strips, strict=True)
        ),
        ticks=ticks,
        sorted=first if column.is_ranked and _is_sorted(values, first) else "none",
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


def _is_sorted(values: Sequence[float | None], direction: _Direction) -> bool:
    """Whether rows come in that order, those without a value last, as a ranking's do."""
    known = [value for value in values if value is not None]
    return known == sorted(known, reverse=direction == "descending") and None not in values[: len(known)]


# --- what stands behind a row ---


@dataclass(frozen=True)
class EntryRow:
    """An entry's row and its details.

    Attributes:
        id: unique on the page.
        badge: said of an entry that cannot be ruled out as the best.
        asides: what a reader must not miss, in a few words.
        facts: names and what is known of them.
        seeds: of each run that counts: seed, score, and record if it is known which record is whose.
        records: of counted runs, where they cannot be told by seed.
        spec: lines of YAML.
        arxiv: the identifier of a reported row's source, if it is well-formed.
    """

    id: str
    entry: Entry
    style: int | None
    rank: str
    rank_sort: str
    badge: str
    asides: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    seeds: tuple[tuple[int, str, str | None], ...]
    records: tuple[str, ...]
    spec: tuple[str, ...]
    arxiv: str


def _row(id: str, entry: Entry, group: Group, style: int | None) -> EntryRow:
    asides = [shortened(unfinished_text(entry), _LONGEST_ASIDE)] if entry.unfinished else []
    asides += [counted(len(entry.notes), "note")] if entry.notes else []
    arxiv = (entry.source.arxiv or "") if entry.source else ""
    seeds = sorted(entry.scores)
    paired = len(seeds) == len(entry.records)
    return EntryRow(
        id=id,
        entry=entry,
        style=style,
        rank=rank(entry),
        rank_sort="" if entry.rank_low is None else f"{entry.rank_low} {entry.rank_high}",
        badge=("tied best" if len(group.best) > 1 else "best") if entry.rank_low == 1 else "",
        asides=tuple(asides),
        facts=tuple(_facts(entry, group)),
        seeds=tuple(
            (seed, unit_of(group.metric)(entry.scores[seed]), entry.records[position] if paired else None)
            for position, seed in enumerate(seeds)
        ),
        records=() if paired else entry.records,
        spec=spec_lines(entry.spec),
        arxiv=arxiv if _ARXIV.fullmatch(arxiv) else "",
    )


def _facts(entry: Entry, group: Group) -> list[tuple[str, str]]:
    facts = []
    if versus := versus_text(entry, group):
        facts.append(("against the best", versus))
    facts += [(row.name, text) for key, row in METRICS.items() if (text := _summary_text(entry, key))]
    if finite(entry.best_test_top1) is not None:
        best = PERCENT.phrase(entry.best_test_top1)
        facts.append(("best epoch", f"{best}, picked on the test split: never ranks"))
    if entry.tuning:
        trials, passes = counted(entry.tuning.trials, "trial"), number(entry.tuning.gradient_passes, 0)
        facts.append(("tuning", f"{trials} on held-out images, {passes} gradient passes"))
    if finite(entry.gradient_passes) is not None:
        facts.append(("gradient passes", number(entry.gradient_passes, 0)))
    if entry.unfinished:
        facts.append(("not counted", f"{unfinished_text(entry)}; not in any mean"))
    return facts


def unfinished_text(entry: Entry) -> str:
    """Write ``2 diverged, 1 oom``."""
    return ", ".join(f"{count} {status}" for status, count in entry.unfinished.items())


def versus_text(entry: Entry, group: Group) -> str:
    """Compare an entry with the best mean in words; nothing for the best itself."""
    versus, unit = entry.versus_best, unit_of(group.metric)
    if versus is None or finite(versus.difference) is None:
        return ""
    if versus.difference == 0 and versus.p_value is None:
        return ""
    sign = "+" if versus.difference > 0 else ""
    points = " percentage points" if unit.name == "%" else ""
    difference = f"{sign}{unit(versus.difference)}{points} in {METRICS[group.metric].name}"
    if versus.p_value is None:
        return f"{difference}; nothing can be tested with these seeds, so no difference is claimed"
    p_value = "p < 0.001" if versus.p_value < 0.001 else f"p = {number(versus.p_value, 3)}"
    if versus.separated:
        return f"{difference}; {p_value} (Holm-corrected): told apart"
    verdict = f"{difference}; {p_value} (Holm-corrected): not told apart"
    if not versus.more_seeds:
        return verdict
    more = f"about {counted(versus.more_seeds, 'more seed')}"
    if versus.more_seeds > _MOST_SEEDS:
        more = f"more than {counted(_MOST_SEEDS, 'more seed')}"
    return f"{verdict}. If the difference is real, {more} each would show it"


def _summary_text(entry: Entry, metric: str) -> str:
    summary, unit = entry.summary(metric), unit_of(metric)
    if summary is None:
        return ""
    spread = "" if summary.std is None else f" ± {unit(summary.std)}"
    interval = f", 95 % CI {' to '.join(map(unit, summary.ci95))}" if summary.ci95 else ""
    return f"{unit(summary.mean)}{spread} {unit.name}".rstrip() + interval


def spec_lines(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Write the ``optimizer`` mapping as YAML, each line safe to show with its indentation."""
    try:
        text = yaml.dump(dict(spec))
    except Exception:  # a value that YAML has no form for: show it all the same
        text = repr(dict(spec))
    lines = [line for line in text.split("\n") if line.strip()]
    return tuple(line[: len(line) - len(line.lstrip(" "))] + printable(line) for line in lines)


# --- the page ---


@dataclass(frozen=True)
class PageTable:
    """Rows and the columns behind the fixed ones; a column's cells are in the order of the rows."""

    rows: tuple[EntryRow, ...]
    columns: tuple[PageColumn, ...]

    @property
    def sections(self) -> list[tuple[str, int]]:
        """Headings over the columns and how many each spans."""
        groups = groupby(column.section for column in self.columns)
        return [(section, len(list(members))) for section, members in groups]


def _page_view(groups: Sequence[Group]) -> dict[str, Any]:
    datasets = list(dict.fromkeys(group.dataset for group in groups))
    models = list(dict.fromkeys(group.model for group in groups))
    entries = [entry for group in groups for entry in group.entries]
    return {
        "groups": [
            _group_view(f"g{index}", group, styles, datasets.index(group.dataset), models.index(group.model))
            for index, (group, styles) in enumerate(zip(groups, assign_styles(groups), strict=True))
        ],
        "datasets": datasets,
        "models": models,
        "num_reported": sum(entry.status == "reported" for entry in entries),
        "num_records": len({id for entry in entries for id in (*entry.records, *entry.unfinished_records)}),
    }


def _group_view(id: str, group: Group, styles: Mapping[int, int], dataset: int, model: int) -> dict[str, Any]:
    """Collect what a section of the page shows; its data set and model are positions in the page's lists."""
    rows = [
        _row(f"{id}e{index}", entry, group, styles.get(index)) for index, entry in enumerate(group.entries)
    ]
    measured = tuple(row for row in rows if row.entry.status == "measured")
    reported = tuple(row for row in rows if row.entry.status == "reported")
    costs = [cost_chart(group, styles, cost, id) for cost in ("passes", "seconds")]
    histories = [history_chart(group, styles, cost, id) for cost in ("epochs", "passes", "seconds")]
    return {
        "id": id,
        "group": group,
        "dataset": dataset,
        "model": model,
        "verdict": _verdict(group),
        "score_heading": unit_of(group.metric).heading(METRICS[group.metric].name),
        "measured": PageTable(measured, _page_columns(group, group.metric, group.measured)),
        "reported": PageTable(reported, _page_columns(group, "top1", group.reported)),
        "legend": [row for row in measured if row.style is not None],
        "has_equal_cost": any(
            entry.top1_at_equal_passes is not None or entry.top1_at_equal_seconds is not None
            for entry in group.entries
        ),
        "cost_charts": [chart for chart in costs if chart],
        "history_charts": [chart for chart in histories if chart],
    }


def _verdict(group: Group) -> str:
    """What a group's numbers allow to claim, in a sentence or two."""
    compared = [entry for entry in group.entries if entry.rank_low and entry.summary(group.metric)]
    if len(compared) < 2:
        return "Nothing to compare with: fewer than two optimizers have a result."
    metric = METRICS[group.metric]
    direction = "higher" if metric.higher_is_better else "lower"
    by = "" if group.metric == "top1" else f"Ranked by {metric.name}, {direction} is better. "
    if max(entry.num_seeds for entry in compared) == 1:
        return f"{by}One seed each: no difference can be claimed."
    if len(group.best) >= len(compared):
        return f"{by}None of these optimizers is ruled out as the best."
    names = [shortened(entry.label, 40) for entry in group.best[:_MOST_NAMES]]
    if len(group.best) > _MOST_NAMES:
        names.append(f"{len(group.best) - _MOST_NAMES} more")
    if len(names) == 1:
        return f"{by}Only {names[0]} is not ruled out as the best."
    return f"{by}Not ruled out as the best: {listed(names)}."
