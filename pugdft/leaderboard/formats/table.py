"""Groups as tables for a terminal, as wide as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from pugdft.errors import printable
from pugdft.leaderboard.columns import Column, fit, text_columns
from pugdft.leaderboard.entry import Entry, Group
from pugdft.leaderboard.formats import REPORTED_COLUMNS, reported_rows
from pugdft.leaderboard.verdicts import REPORTED_HEADING, legend, remarks, source_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


_GAP = 2

_NARROWEST = len("optimizer")


def print_table(groups: Sequence[Group], console: Console) -> None:
    """Print one table for each group, best mean first, with the remarks that its statistics allow.

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
        entries = group.measured
        if entries:
            chosen, left_out = fit(text_columns(group), entries, console.width, _GAP)
            rows = _measured_lines(entries, chosen, console.width)
            console.print(Text("\n").join(rows), soft_wrap=True)
            if left_out:
                names = ", ".join(column.name for column in left_out)
                say([f"No room for: {names}; `--format csv` and `html` have all."])
        say(remarks(group))
        if group.reported:
            if entries:
                console.print()
                say([REPORTED_HEADING], "italic")
            console.print(_reported_table(group))
            say(source_lines(group))
    if lines := legend(groups):
        console.print()
        say(lines)


def _measured_lines(entries: Sequence[Entry], chosen: Sequence[Column], width: int) -> Iterator[Text]:
    """Headings, a rule and the entries. Rich's own table takes a millisecond a row, of thousands."""
    from rich.cells import cell_len, chop_cells
    from rich.text import Text

    widths = [0 if column.is_text else column.width(entries) for column in chosen]
    room = max(_NARROWEST, width - sum(widths) - _GAP * (len(chosen) - 1))
    longest = max(cell_len(column.cell(entry)) for column in chosen if column.is_text for entry in entries)
    widths = [each or min(max(longest, _NARROWEST), room) for each in widths]

    def line(cells: Sequence[str], styles: Sequence[str]) -> Text:
        whole = Text()
        for cell, style, column, size in zip(cells, styles, chosen, widths, strict=True):
            blank = " " * (size - cell_len(cell))
            whole.append(cell + blank if column.is_text else blank + cell, style)
            whole.append(" " * _GAP)
        whole.rstrip()
        return whole

    headings = [column.heading.split("\n") for column in chosen]
    height = max(map(len, headings))
    for row in zip(*([""] * (height - len(lines)) + lines for lines in headings), strict=True):
        yield line(row, ["bold"] * len(chosen))
    yield Text("─" * (sum(widths) + _GAP * (len(chosen) - 1)))
    for entry in entries:
        bold = "bold" if entry.rank_low == 1 and len(entries) > 1 else ""
        styles = [bold if column.is_text else "" for column in chosen]
        # The one column that may break: an option list has no natural width.
        cells = [
            chop_cells(column.cell(entry), size) if column.is_text else [column.cell(entry)]
            for column, size in zip(chosen, widths, strict=True)
        ]
        for row in zip_longest(*cells, fillvalue=""):
            yield line(row, styles)


def _reported_table(group: Group) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # A rule under the headings and a blank between columns: with the padding, the gap.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    least = {"optimizer": _NARROWEST, "protocol": 20}
    for name in REPORTED_COLUMNS:
        if name in least:
            table.add_column(name, overflow="fold", min_width=least[name])
        else:
            table.add_column(name, justify="left" if name == "source" else "right", no_wrap=True)
    for row in reported_rows(group, printable):
        table.add_row(*map(Text, row))
    return table
