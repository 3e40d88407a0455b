"""Groups as LaTeX tables for a paper: booktabs, everything escaped, the tied best in bold."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from pugdft.errors import printable
from pugdft.leaderboard.columns import NOTHING, Column, columns, fit, mean_and_spread, measured, reported
from pugdft.leaderboard.entry import Entry, Group
from pugdft.leaderboard.verdicts import (
    REPORTED_HEADING,
    conditions,
    legend,
    remarks,
    source_lines,
    source_place,
)

# What a text block of two columns holds at \small; a table with all columns would run off the page.
_WIDTH = 90

_PAIRS = re.compile(r"([-'`,])(?=\1)")

_SIGNS = {
    "\0": "{}",
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "[": "{[}", "]": "{]}",
    "–": "--", "—": "---", "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "‖": r"$\|$", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "’": "'", "‘": "`", "“": "``", "”": "''", "…": r"\ldots{}", "·": r"$\cdot$",
    "≤": r"$\le$", "≥": r"$\ge$",
}  # fmt: skip

_GREEK = re.compile(r"GREEK (SMALL|CAPITAL) LETTER ([A-Z]+)")
# Those capitals and small letters that LaTeX has a command for; the others look like Latin ones.
_GREEK_COMMANDS = {
    "SMALL": "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi chi psi omega",
    "CAPITAL": "gamma delta theta lambda xi pi sigma upsilon phi psi omega",
}


def as_latex(groups: Sequence[Group]) -> str:
    r"""A ``table*`` for each group; needs ``\usepackage{booktabs}``.

    Comments say which records each row is from. The least important columns give way to the page's width.
    """
    blocks = [r"% needs \usepackage{booktabs}"]
    blocks += [_float(group, number) for number, group in enumerate(groups, start=1)]
    blocks.append("\n".join(map(_comment, legend(groups))))
    return "\n\n".join(block for block in blocks if block) + "\n"


def escape(text: str) -> str:
    """``text`` as LaTeX that shows it as it is; a sign that pdfLaTeX's usual fonts lack becomes ``?``."""
    # TeX makes one other sign of a pair such as --: {} keeps the two apart.
    return "".join(map(_escaped, _PAIRS.sub("\\1\0", printable(text))))


def _escaped(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    if character.isascii():
        return character
    greek = _GREEK.fullmatch(unicodedata.name(character, ""))
    if greek and (name := greek[2].lower().replace("lamda", "lambda")) in _GREEK_COMMANDS[greek[1]].split():
        return f"$\\{name if greek[1] == 'SMALL' else name.capitalize()}$"
    # Accents over Latin letters are read as UTF-8 by any LaTeX since 2018.
    plain = unicodedata.normalize("NFKD", character)[0]
    if plain.isascii() and plain.isprintable():
        return character if "À" <= character <= "ÿ" else _SIGNS.get(plain, plain)
    return "?"


def _float(group: Group, number: int) -> str:
    entries = measured(group)
    chosen, left_out = fit(columns(group), entries, _WIDTH, gap=2) if entries else ([], [])
    notes = [*remarks(group), *(source_lines(group) if reported(group) else [])]
    if left_out:
        notes.append(f"left out for the width: {', '.join(column.name for column in left_out)}")
    comments = [_comment(f"{group.dataset} × {group.model}: {group.protocol}")]
    comments += [
        _comment(f"{each.label}: records {' '.join(each.records)}") for each in entries if each.records
    ]
    comments += [_comment(note) for note in notes]
    caption = f"{group.dataset} × {group.model}: {group.protocol}"
    tables = [_measured_table(entries, chosen)] if entries else []
    if reported(group):
        tables.append(_reported_table(group))
    return "\n".join(
        [
            *comments,
            r"\begin{table*}",
            r"\centering\small",
            f"\\caption{{{escape(caption)}}}",
            f"\\label{{tab:leaderboard-{number}}}",
            "\n\n\\medskip\n\n".join(tables),
            r"\end{table*}",
        ]
    )


def _measured_table(entries: Sequence[Entry], chosen: Sequence[Column]) -> str:
    rows = []
    for entry in entries:
        is_best = entry.rank_low == 1 and len(entries) > 1
        bold = [is_best and (column.is_text or column.is_ranked) for column in chosen]
        cells = [escape(column.cell(entry)) for column in chosen]
        rows.append(
            [f"\\textbf{{{cell}}}" if is_bold else cell for cell, is_bold in zip(cells, bold, strict=True)]
        )
    alignment = "".join("l" if column.is_text else "r" for column in chosen)
    return _tabular(alignment, [_heading(column) for column in chosen], rows)


def _heading(column: Column) -> str:
    lines = [escape(line) for line in column.heading.split("\n")]
    stacked = r"\\".join(lines)
    return f"\\shortstack[r]{{{stacked}}}" if len(lines) > 1 else stacked


def _reported_table(group: Group) -> str:
    rows = [
        [
            escape(entry.label),
            str(entry.num_seeds) if entry.num_seeds else escape(NOTHING),
            escape(mean_and_spread(entry.top1, "top1")),
            escape(source_place(entry, group)),
            escape(conditions(entry)),
        ]
        for entry in reported(group)
    ]
    heading = f"\\multicolumn{{5}}{{l}}{{\\emph{{{escape(REPORTED_HEADING)}}}}}"
    names = [escape(name) for name in ("optimizer", "seeds", "top-1 %", "source", "protocol")]
    return _tabular(r"lrrlp{0.5\textwidth}", names, rows, heading)


def _tabular(alignment: str, names: Sequence[str], rows: Iterable[Sequence[str]], heading: str = "") -> str:
    lines = [f"\\begin{{tabular}}{{{alignment}}}", r"\toprule"]
    lines += [rf"{heading} \\", r"\midrule"] if heading else []
    lines += [_row(names), r"\midrule", *map(_row, rows), r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _comment(text: str) -> str:
    return f"% {printable(text)}"
