"""Groups as GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pugdft.errors import printable
from pugdft.leaderboard.columns import NOTHING, columns, mean_and_spread, measured, reported
from pugdft.leaderboard.entry import Group
from pugdft.leaderboard.verdicts import (
    REPORTED_HEADING,
    conditions,
    legend,
    remarks,
    source_lines,
    source_place,
)

# What Markdown reads anywhere, and what it reads at the beginning: a list, a heading's underline.
_MARKUP = re.compile(r"([\\`*_\[\]#|~$]|^[-+=]|(?<=^\d)[.)](?=\s|$))")


def as_markdown(groups: Sequence[Group]) -> str:
    """A heading, a table and a list of remarks for each group; the tied best stand in bold."""
    blocks = [block for group in groups for block in _group_blocks(group)]
    if lines := legend(groups):
        blocks.append(_list(lines))
    return "\n\n".join(blocks) + "\n"


def escape(text: str) -> str:
    """``text`` as Markdown that shows it as it is: no markup, no HTML, no link, no end of a cell."""
    escaped = _MARKUP.sub(r"\\\1", printable(text))
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("://", "&#58;//"), ("@", "&#64;")):
        escaped = escaped.replace(sign, entity)
    return escaped


def _group_blocks(group: Group) -> list[str]:
    blocks = [f"### {escape(group.dataset)} × {escape(group.model)}", escape(group.protocol)]
    if measured(group):
        blocks.append(_measured_table(group))
    if lines := remarks(group):
        blocks.append(_list(lines))
    if reported(group):
        if measured(group):
            blocks.append(f"*{escape(REPORTED_HEADING)}*")
        blocks += [_reported_table(group), _list(source_lines(group))]
    return blocks


def _measured_table(group: Group) -> str:
    entries, chosen = measured(group), columns(group)
    rows = []
    for entry in entries:
        is_best = entry.rank_low == 1 and len(entries) > 1
        cells = [(column, escape(column.cell(entry))) for column in chosen]
        rows.append([f"**{cell}**" if is_best and column.is_text else cell for column, cell in cells])
    return _table(
        [escape(column.name) for column in chosen],
        [":--" if column.is_text else "--:" for column in chosen],
        rows,
    )


def _reported_table(group: Group) -> str:
    rows = [
        [
            escape(entry.label),
            str(entry.num_seeds) if entry.num_seeds else NOTHING,
            mean_and_spread(entry.top1, "top1"),
            escape(source_place(entry, group)),
            escape(conditions(entry)),
        ]
        for entry in reported(group)
    ]
    headings = ["optimizer", "seeds", "top-1 %", "source", "protocol"]
    return _table(headings, [":--", "--:", "--:", ":--", ":--"], rows)


def _table(headings: Sequence[str], alignments: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, alignments, *rows))


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)
