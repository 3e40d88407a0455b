"""What stands behind a row: its comparison with the best, every seed, runs that do not count, all options."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from pugdft import __version__
from pugdft.config import yaml
from pugdft.errors import counted, printable
from pugdft.figures.charts import NUM_STYLES, svg_text, swatch
from pugdft.leaderboard.charts import (
    COST_WORDS,
    PageChart,
    assign_styles,
    cost_chart,
    history_chart,
    listed,
    shortened,
)
from pugdft.leaderboard.columns import MEASURES, finite, number, rank, summary_of
from pugdft.leaderboard.entry import HIGHER_IS_BETTER, Entry, Group, Metric
from pugdft.leaderboard.formats.board import PageColumn, measured_columns, reported_columns
from pugdft.leaderboard.formats.csv_json import SCHEMA

if TYPE_CHECKING:
    from jinja2 import Environment


_MOST_SEEDS = 1000  # beyond this a difference is too small for anyone to run


@dataclass(frozen=True)
class SeedRow:
    """One run that counts; ``record`` is None where it is not known which record is whose."""

    seed: int
    score: str
    record: str | None


@dataclass(frozen=True)
class Details:
    """Everything in words.

    Attributes:
        facts: names and what is known of them.
        records: of counted runs, where they cannot be told by seed.
        spec: lines of YAML.
    """

    facts: tuple[tuple[str, str], ...]
    seeds: tuple[SeedRow, ...]
    score_heading: str
    records: tuple[str, ...]
    unfinished_records: tuple[str, ...]
    notes: tuple[str, ...]
    spec: tuple[str, ...]


def details_of(entry: Entry, group: Group) -> Details:
    measure = MEASURES[group.metric]
    seeds = sorted(entry.scores)
    paired = len(seeds) == len(entry.records)
    rows = tuple(
        SeedRow(seed, measure.unit(entry.scores[seed]), entry.records[position] if paired else None)
        for position, seed in enumerate(seeds)
    )
    return Details(
        facts=tuple(_facts(entry, group)),
        seeds=rows,
        score_heading=measure.heading,
        records=() if paired else entry.records,
        unfinished_records=entry.unfinished_records,
        notes=entry.notes,
        spec=tuple(spec_lines(entry.spec)),
    )


def _facts(entry: Entry, group: Group) -> list[tuple[str, str]]:
    facts = []
    if versus := versus_text(entry, group):
        facts.append(("against the best", versus))
    facts += [(MEASURES[metric].name, text) for metric in MEASURES if (text := _summary_text(entry, metric))]
    if finite(entry.best_test_top1) is not None:
        best = MEASURES["top1"].unit.phrase(entry.best_test_top1)
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
    return ", ".join(f"{count} {status}" for status, count in entry.unfinished.items())


def versus_text(entry: Entry, group: Group) -> str:
    """What the data say about an entry and the best mean; nothing for the best itself."""
    versus, measure = entry.versus_best, MEASURES[group.metric]
    if versus is None or finite(versus.difference) is None:
        return ""
    if versus.difference == 0 and versus.p_value is None:
        return ""
    sign = "+" if versus.difference > 0 else ""
    unit = " percentage points" if measure.unit.name == "%" else ""
    difference = f"{sign}{measure.unit(versus.difference)}{unit} in {measure.name}"
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


def _summary_text(entry: Entry, metric: Metric) -> str:
    summary, unit = summary_of(entry, metric), MEASURES[metric].unit
    if summary is None:
        return ""
    text = unit(summary.mean)
    if summary.std is not None:
        text += f" ± {unit(summary.std)}"
    text = f"{text} {unit.name}".rstrip()
    if summary.ci95:
        text += f", 95 % CI {unit(summary.ci95[0])} to {unit(summary.ci95[1])}"
    return text


def spec_lines(spec: Mapping[str, Any]) -> Sequence[str]:
    """The whole ``optimizer`` mapping as YAML, each line safe to show with its indentation."""
    try:
        text = yaml.dump(dict(spec))
    except Exception:  # a value that YAML has no form for: show it all the same
        text = repr(dict(spec))
    lines = text.split("\n")
    return [line[: len(line) - len(line.lstrip(" "))] + printable(line) for line in lines if line.strip()]


_MOST_NAMES = 6

_LONGEST_ASIDE = 60

_ARXIV = re.compile(r"[0-9]{4}\.[0-9]{4,5}(v[0-9]{1,2})?")


@dataclass(frozen=True)
class Row:
    """An entry's row.

    Attributes:
        id: unique on the page.
        badge: said of an entry that cannot be ruled out as the best.
        asides: what a reader must not miss, in a few words.
    """

    id: str
    entry: Entry
    style: int | None
    rank: str
    rank_sort: str
    badge: str
    asides: tuple[str, ...]
    details: Details
    arxiv: str


@dataclass(frozen=True)
class Table:
    """Rows and the columns behind the fixed ones; a column's cells are in the order of the rows."""

    rows: tuple[Row, ...]
    columns: tuple[PageColumn, ...]

    @property
    def sections(self) -> list[tuple[str, int]]:
        """Headings over the columns and how many each spans."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and spans[-1][0] == column.section:
                spans[-1] = (column.section, spans[-1][1] + 1)
            else:
                spans.append((column.section, 1))
        return spans


@dataclass(frozen=True)
class GroupView:
    """A section of the page.

    Attributes:
        dataset, model: positions in the page's lists of them.
        legend: rows that have a style.
    """

    id: str
    group: Group
    dataset: int
    model: int
    verdict: str
    measured: Table
    reported: Table
    legend: tuple[Row, ...]
    has_equal_cost: bool
    cost_charts: tuple[PageChart, ...]
    history_charts: tuple[PageChart, ...]


@dataclass(frozen=True)
class PageView:
    """The whole page."""

    groups: tuple[GroupView, ...]
    datasets: tuple[str, ...]
    models: tuple[str, ...]
    num_entries: int
    num_reported: int
    num_records: int


def page_view(groups: Sequence[Group]) -> PageView:
    datasets = list(dict.fromkeys(group.dataset for group in groups))
    models = list(dict.fromkeys(group.model for group in groups))
    views = tuple(
        _group_view(f"g{number}", group, styles, datasets.index(group.dataset), models.index(group.model))
        for number, (group, styles) in enumerate(zip(groups, assign_styles(groups), strict=True))
    )
    entries = [entry for group in groups for entry in group.entries]
    records = {record for entry in entries for record in (*entry.records, *entry.unfinished_records)}
    num_reported = sum(entry.status == "reported" for entry in entries)
    return PageView(views, tuple(datasets), tuple(models), len(entries), num_reported, len(records))


def _group_view(id: str, group: Group, styles: Mapping[int, int], dataset: int, model: int) -> GroupView:
    rows = [
        _row(f"{id}e{index}", entry, group, styles.get(index)) for index, entry in enumerate(group.entries)
    ]
    measured = [row for row in rows if row.entry.status == "measured"]
    reported = [row for row in rows if row.entry.status == "reported"]
    costs = [cost_chart(group, styles, cost, id) for cost in ("passes", "seconds")]
    histories = [history_chart(group, styles, cost, id) for cost in ("epochs", "passes", "seconds")]
    return GroupView(
        id=id,
        group=group,
        dataset=dataset,
        model=model,
        verdict=_verdict(group),
        measured=Table(tuple(measured), tuple(measured_columns(group, [row.entry for row in measured]))),
        reported=Table(tuple(reported), tuple(reported_columns([row.entry for row in reported]))),
        legend=tuple(row for row in measured if row.style is not None),
        has_equal_cost=any(
            entry.top1_at_equal_passes is not None or entry.top1_at_equal_seconds is not None
            for entry in group.entries
        ),
        cost_charts=tuple(chart for chart in costs if chart),
        history_charts=tuple(chart for chart in histories if chart),
    )


def _row(id: str, entry: Entry, group: Group, style: int | None) -> Row:
    asides = []
    if entry.unfinished:
        asides.append(shortened(unfinished_text(entry), _LONGEST_ASIDE))
    if entry.notes:
        asides.append(counted(len(entry.notes), "note"))
    arxiv = (entry.source.arxiv or "") if entry.source else ""
    return Row(
        id=id,
        entry=entry,
        style=style,
        rank=rank(entry),
        rank_sort="" if entry.rank_low is None else f"{entry.rank_low} {entry.rank_high}",
        badge=("tied best" if len(group.best) > 1 else "best") if entry.rank_low == 1 else "",
        asides=tuple(asides),
        details=details_of(entry, group),
        arxiv=arxiv if _ARXIV.fullmatch(arxiv) else "",
    )


def _verdict(group: Group) -> str:
    """What a group's numbers allow to claim, in a sentence or two."""
    compared = [entry for entry in group.entries if entry.rank_low and summary_of(entry, group.metric)]
    if len(compared) < 2:
        return "Nothing to compare with: fewer than two optimizers have a result."
    name, direction = MEASURES[group.metric].name, "higher" if HIGHER_IS_BETTER[group.metric] else "lower"
    by = "" if group.metric == "top1" else f"Ranked by {name}, {direction} is better. "
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


__all__ = ["as_html"]


def as_html(groups: Sequence[Group], title: str = "pugdft leaderboard") -> str:
    """The whole page. Equal groups give equal text.

    Everything from a record is untrusted: it is put on one line, without control characters or
    bidirectional overrides, and escaped, in one place for all of the template. The page's own policy allows
    the one style sheet and the one script whose hashes it names.
    """
    from markupsafe import Markup

    style, script = _text("page.css"), _text("page.js")
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            page=page_view(groups),
            title=title,
            schema=SCHEMA,
            version=__version__,
            # Our own text, not a record's.
            style=Markup(style),  # noqa: S704
            script=Markup(script),  # noqa: S704
            style_hash=_digest(style),
            script_hash=_digest(script),
        )
    )


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    from pugdft.leaderboard.formats.board import STRIP_WIDTH

    def harmless(value: Any) -> Any:
        """Markup is the template's own; all other text came from somewhere."""
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=PackageLoader("pugdft.leaderboard.formats", "templates"),
        autoescape=True,
        finalize=harmless,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        strip_width=STRIP_WIDTH, words=COST_WORDS, num_styles=NUM_STYLES, swatch=_swatch
    )
    environment.filters["indented"] = escape  # made printable line by line before, with its indentation
    return environment


@cache
def _swatch(style: int, filled: bool) -> str:
    """A short line with its marker, for the legend."""
    return svg_text(swatch(style, filled), f"swatch{style}{filled}")


def _text(name: str) -> str:
    """A file of this folder, with the line ends that a browser hashes."""
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
