"""Groups as the page's template wants them: everything decided, nothing left but markup."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pugdft.errors import counted
from pugdft.leaderboard.columns import rank
from pugdft.leaderboard.entry import HIGHER_IS_BETTER, Entry, Group
from pugdft.leaderboard.page.board import measured_columns, reported_columns
from pugdft.leaderboard.page.cells import Column
from pugdft.leaderboard.page.cost_chart import CostChart, cost_chart
from pugdft.leaderboard.page.details import Details, details_of, unfinished_text
from pugdft.leaderboard.page.frame import assign_styles, listed, shortened
from pugdft.leaderboard.page.history_chart import HistoryChart, history_chart
from pugdft.leaderboard.page.quantities import MEASURES, summary_of

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
    columns: tuple[Column, ...]

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
    cost_charts: tuple[CostChart, ...]
    history_charts: tuple[HistoryChart, ...]


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
    costs = [cost_chart(group, styles, cost) for cost in ("passes", "seconds")]
    histories = [history_chart(group, styles, cost) for cost in ("epochs", "passes", "seconds")]
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
