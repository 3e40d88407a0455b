"""One file for each format of the leaderboard, and the rows that the tables of text share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pugdft.errors import printable
from pugdft.leaderboard.columns import NOTHING, Column, mean_and_spread
from pugdft.leaderboard.entry import Entry, Group
from pugdft.leaderboard.verdicts import source_cells

REPORTED_COLUMNS = ("optimizer", "seeds", "top-1 %", "source", "protocol")


def measured_rows(
    entries: Sequence[Entry],
    chosen: Sequence[Column],
    escape: Callable[[str], str],
    bold: Callable[[str], str],
    *,
    bold_figures: bool = False,
) -> Iterator[list[str]]:
    """Write the cells of measured entries; of entries tied as the best the label is bold.

    Args:
        entries: rows.
        chosen: columns.
        escape: makes a text harmless in the format.
        bold: makes an escaped text bold.
        bold_figures: make the ranking figure of the tied best bold, too.
    """
    for entry in entries:
        is_best = entry.rank_low == 1 and len(entries) > 1
        yield [
            bold(cell) if is_best and (column.is_text or (bold_figures and column.is_ranked)) else cell
            for column in chosen
            for cell in [escape(column.cell(entry))]
        ]


def reported_rows(group: Group, escape: Callable[[str], str]) -> Iterator[list[str]]:
    """Write the cells of reported entries, under :data:`REPORTED_COLUMNS`."""
    for entry in group.reported:
        texts = (
            printable(entry.label),
            str(entry.num_seeds) if entry.num_seeds else NOTHING,
            mean_and_spread(entry, "top1"),
            *source_cells(entry, group),
        )
        yield list(map(escape, texts))
