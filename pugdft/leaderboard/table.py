"""Groups as tables for a terminal, as wide as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pugdft.leaderboard.columns import (
    NOTHING,
    Column,
    columns,
    fit,
    mean_and_spread,
    measured,
    reported,
)
from pugdft.leaderboard.entry import Entry, Group
from pugdft.leaderboard.printable import printable
from pugdft.leaderboard.remarks import (
    REPORTED_HEADING,
    conditions,
    legend,
    remarks,
    source_lines,
    source_place,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_GAP = 2


def print_table(groups: Sequence[Group], console: Console) -> None:
    """One table per group, best mean first, each with what its statistics allow to say.

    Every text goes out as ``rich.text.Text``, in which no markup is read, so that brackets in a label stay
    brackets and a record cannot style or link anything; control characters are dropped before.
    """
    from rich.text import Text

    def say(lines: Sequence[str], style: str = "dim") -> None:
        for line in lines:
            console.print(Text(printable(line), style=style))

    for index, group in enumerate(groups):
        if index:
            console.print()
        say([f"{group.dataset} × {group.model}"], "bold")
        say([group.protocol], "")
        entries = measured(group)
        if entries:
            chosen, left_out = fit(columns(group), entries, console.width, _GAP)
            console.print(_measured_table(entries, chosen))
            if left_out:
                names = ", ".join(column.name for column in left_out)
                say([f"No room for: {names}; `--format csv` and `html` have all."])
        say(remarks(group))
        if reported(group):
            if entries:
                console.print()
                say([REPORTED_HEADING], "italic")
            console.print(_reported_table(group))
            say(source_lines(group))
    if lines := legend(groups):
        console.print()
        say(lines)


def _measured_table(entries: Sequence[Entry], chosen: Sequence[Column]) -> Table:
    from rich.text import Text

    table = _empty_table()
    for column in chosen:
        style = "bold" if column.is_ranked else ""
        if column.is_text:
            # The one column that may break: an option list has no natural width.
            table.add_column(
                Text(column.heading), justify="left", overflow="fold", min_width=len("optimizer")
            )
        else:
            # With its width given, rich need not measure every cell twice.
            width = column.width(entries)
            table.add_column(Text(column.heading, style=style), justify="right", no_wrap=True, width=width)
    for entry in entries:
        style = "bold" if entry.rank_low == 1 and len(entries) > 1 else ""
        cells = (Text(column.cell(entry), style if column.is_text else "") for column in chosen)
        table.add_row(*cells)
    return table


def _reported_table(group: Group) -> Table:
    """Optimizer, figure and where it was printed under which conditions."""
    from rich.text import Text

    table = _empty_table()
    table.add_column("optimizer", justify="left", overflow="fold", min_width=len("optimizer"))
    table.add_column("seeds", justify="right", no_wrap=True)
    table.add_column("top-1 %", justify="right", no_wrap=True)
    table.add_column("source", justify="left", no_wrap=True)
    table.add_column("protocol", justify="left", overflow="fold", min_width=20)
    for entry in reported(group):
        table.add_row(
            Text(printable(entry.label)),
            Text(str(entry.num_seeds) if entry.num_seeds else NOTHING),
            Text(mean_and_spread(entry.top1, "top1")),
            Text(source_place(entry, group)),
            Text(conditions(entry)),
        )
    return table


def _empty_table() -> Table:
    from rich import box
    from rich.table import Table

    # A rule under the headings and a blank between columns: with the padding, the gap.
    return Table(box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False)
