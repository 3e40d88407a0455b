"""Groups as LaTeX tables for a paper: booktabs, everything escaped, the tied best in bold."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from pugdft.errors import printable
from pugdft.leaderboard.columns import Column, fit, text_columns
from pugdft.leaderboard.entry import Group
from pugdft.leaderboard.formats import REPORTED_COLUMNS, measured_rows, reported_rows
from pugdft.leaderboard.verdicts import REPORTED_HEADING, legend, remarks, source_lines

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
    r"""Write a ``table*`` for each group; needs ``\usepackage{booktabs}``.

    Comments name the records of each row. The least important columns are left out where the page is full.
    """
    blocks = [r"% needs \usepackage{booktabs}"]
    blocks += [_float(group, number) for number, group in enumerate(groups, start=1)]
    blocks.append("\n".join(map(_comment, legend(groups))))
    return "\n\n".join(block for block in blocks if block) + "\n"


def escape(text: str) -> str:
    """Return LaTeX that shows ``text`` as it is; a sign that pdfLaTeX's usual fonts lack becomes ``?``."""
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
    entries = group.measured
    chosen, left_out = fit(text_columns(group), entries, _WIDTH, gap=2) if entries else ([], [])
    caption = f"{group.dataset} × {group.model}: {group.protocol}"
    notes = [caption]
    notes += [f"{each.label}: records {' '.join(each.records)}" for each in entries if each.records]
    notes += [*remarks(group), *source_lines(group)]
    if left_out:
        notes.append(f"left out for the width: {', '.join(column.name for column in left_out)}")
    tables = []
    if entries:
        rows = measured_rows(entries, chosen, escape, lambda cell: f"\\textbf{{{cell}}}", bold_figures=True)
        alignment = "".join("l" if column.is_text else "r" for column in chosen)
        tables.append(_tabular(alignment, map(_heading, chosen), rows))
    if group.reported:
        heading = f"\\multicolumn{{5}}{{l}}{{\\emph{{{escape(REPORTED_HEADING)}}}}}"
        names = map(escape, REPORTED_COLUMNS)
        tables.append(_tabular(r"lrrlp{0.5\textwidth}", names, reported_rows(group, escape), heading))
    return "\n".join(
        [
            *map(_comment, notes),
            r"\begin{table*}",
            r"\centering\small",
            f"\\caption{{{escape(caption)}}}",
            f"\\label{{tab:leaderboard-{number}}}",
            "\n\n\\medskip\n\n".join(tables),
            r"\end{table*}",
        ]
    )


def _heading(column: Column) -> str:
    lines = [escape(line) for line in column.heading.split("\n")]
    stacked = r"\\".join(lines)
    return f"\\shortstack[r]{{{stacked}}}" if len(lines) > 1 else stacked


def _tabular(alignment: str, names: Iterable[str], rows: Iterable[Iterable[str]], heading: str = "") -> str:
    lines = [f"\\begin{{tabular}}{{{alignment}}}", r"\toprule"]
    lines += [rf"{heading} \\", r"\midrule"] if heading else []
    lines += [_row(names), r"\midrule", *map(_row, rows), r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _comment(text: str) -> str:
    return f"% {printable(text)}"
