"""Groups as GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pugdft.errors import printable
from pugdft.leaderboard.columns import text_columns
from pugdft.leaderboard.entry import Group
from pugdft.leaderboard.formats import REPORTED_COLUMNS, measured_rows, reported_rows
from pugdft.leaderboard.verdicts import REPORTED_HEADING, legend, remarks, source_lines

# What Markdown reads anywhere, and what it reads at the beginning: a list, a heading's underline.
_MARKUP = re.compile(r"([\\`*_\[\]#|~$]|^[-+=]|(?<=^\d)[.)](?=\s|$))")


def as_markdown(groups: Sequence[Group]) -> str:
    """Write a heading, a table and a list of remarks for each group; the tied best stand in bold."""
    blocks = [block for group in groups for block in _blocks(group)]
    if lines := legend(groups):
        blocks.append(_list(lines))
    return "\n\n".join(blocks) + "\n"


def escape(text: str) -> str:
    """Return Markdown that shows ``text`` as it is: no markup, no HTML, no link, no end of a cell."""
    escaped = _MARKUP.sub(r"\\\1", printable(text))
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("://", "&#58;//"), ("@", "&#64;")):
        escaped = escaped.replace(sign, entity)
    return escaped


def _blocks(group: Group) -> list[str]:
    blocks = [f"### {escape(group.dataset)} × {escape(group.model)}", escape(group.protocol)]
    if group.measured:
        chosen = text_columns(group)
        rows = measured_rows(group.measured, chosen, escape, lambda cell: f"**{cell}**")
        headings = [escape(column.name) for column in chosen]
        blocks.append(_table(headings, [":--" if column.is_text else "--:" for column in chosen], rows))
    if lines := remarks(group):
        blocks.append(_list(lines))
    if group.reported:
        if group.measured:
            blocks.append(f"*{escape(REPORTED_HEADING)}*")
        rows = reported_rows(group, escape)
        blocks.append(_table(REPORTED_COLUMNS, [":--", "--:", "--:", ":--", ":--"], rows))
        blocks.append(_list(source_lines(group)))
    return blocks


def _table(headings: Sequence[str], alignments: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, alignments, *rows))


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)
