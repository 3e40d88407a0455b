"""Groups as tables of text: for a terminal, for GitHub's Markdown and for a paper's LaTeX."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from pugdft.errors import printable
from pugdft.leaderboard import verdicts
from pugdft.leaderboard.columns import GAP, NOTHING, Column, fit, mean_and_spread, text_columns
from pugdft.leaderboard.entry import Entry, Group

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

Escape = Callable[[str], str]

_REPORTED_COLUMNS = ("optimizer", "seeds", "top-1 %", "source", "protocol")


def _is_best(entry: Entry, entries: Sequence[Entry]) -> bool:
    """Say whether an entry stands in bold: tied as the best, and not all are."""
    return entry.rank_low == 1 and any(each.rank_low != 1 for each in entries)


def _measured_rows(
    group: Group, chosen: Sequence[Column], escape: Escape, bold: str, bold_figures: bool = False
) -> Iterator[list[str]]:
    """Write the cells of measured entries; of the best, the label and perhaps the ranking figure are bold."""
    in_bold = [column.is_text or (bold_figures and column.is_ranked) for column in chosen]
    for entry in group.measured:
        forms = [bold if each and _is_best(entry, group.measured) else "{}" for each in in_bold]
        cells = [escape(column.cell(entry)) for column in chosen]
        yield list(map(str.format, forms, cells))


def _reported_rows(group: Group, escape: Escape) -> Iterator[list[str]]:
    """Write the cells of reported entries, under ``_REPORTED_COLUMNS``."""
    for entry in group.reported:
        texts = [printable(entry.label), str(entry.num_seeds or NOTHING), mean_and_spread(entry, "top1")]
        texts += verdicts.source_cells(entry, group)
        yield list(map(escape, texts))


# --- terminal ---

_NARROWEST = len("optimizer")


def print_table(groups: Sequence[Group], console: Console, full: bool = False) -> None:
    """Print one table for each group, best mean first, with the remarks that its statistics allow.

    ``full`` adds the columns and lines that few readers need.
    """
    from rich.text import Text  # without control characters: a record can neither style nor link

    def say(lines: Sequence[str], style: str = "dim") -> None:
        for line in lines:
            console.print(Text(printable(line), style=style))

    for index, group in enumerate(groups):
        if index:
            console.print()
        say([f"{group.dataset} × {group.model}"], "bold")
        say([group.protocol], "")
        if group.measured:
            say([verdicts.verdict(group)], "italic")
            chosen, left_out = fit(group, console.width, full)
            rows = _measured_lines(group.measured, chosen, console.width)
            console.print(Text("\n").join(rows), soft_wrap=True)
            if left_out:
                names = ", ".join(column.name for column in left_out)
                say([f"No room for: {names}; `--format csv` and `html` have all."])
            if lines := verdicts.forest(group):
                console.print(Text("\n".join(["", *lines, ""])), soft_wrap=True)
        say(verdicts.remarks(group, full))
        if group.reported:
            if group.measured:
                console.print()
                say([verdicts.REPORTED_HEADING], "italic")
            console.print(_reported_table(group))
            say(verdicts.source_lines(group))
    if full and (lines := verdicts.legend(groups)):
        console.print()
        say(lines)


def _measured_lines(entries: Sequence[Entry], chosen: Sequence[Column], width: int) -> Iterator[Text]:
    """Headings, a rule and the entries. Rich's own table takes a millisecond a row, of thousands."""
    from rich.cells import cell_len, chop_cells
    from rich.text import Text

    widths = [0 if column.is_text else column.width(entries) for column in chosen]
    room = max(_NARROWEST, width - sum(widths) - GAP * (len(chosen) - 1))
    longest = max(cell_len(column.cell(entry)) for column in chosen if column.is_text for entry in entries)
    widths = [each or min(max(longest, _NARROWEST), room) for each in widths]

    def line(cells: Sequence[str], styles: Sequence[str]) -> Text:
        whole = Text()
        for cell, style, column, size in zip(cells, styles, chosen, widths, strict=True):
            blank = " " * (size - cell_len(cell))
            whole.append(cell + blank if column.is_text else blank + cell, style)
            whole.append(" " * GAP)
        whole.rstrip()
        return whole

    headings = [column.heading.split("\n") for column in chosen]
    height = max(map(len, headings))
    for row in zip(*([""] * (height - len(lines)) + lines for lines in headings), strict=True):
        yield line(row, ["bold"] * len(chosen))
    yield Text("─" * (sum(widths) + GAP * (len(chosen) - 1)))
    for entry in entries:
        styles = ["bold" if column.is_text and _is_best(entry, entries) else "" for column in chosen]
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
    table = Table(box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    least = {"optimizer": _NARROWEST, "protocol": 20}
    for name in _REPORTED_COLUMNS:
        if name in least:
            table.add_column(name, overflow="fold", min_width=least[name])
        else:
            table.add_column(name, justify="left" if name == "source" else "right", no_wrap=True)
    for row in _reported_rows(group, printable):
        table.add_row(*map(Text, row))
    return table


# --- Markdown ---

# What Markdown reads anywhere, and what it reads at the beginning: a list, a heading's underline, a number.
_MARKUP = re.compile(r"([\\`*_\[\]#|~$]|^[-+=])")
_NUMBER_OF_A_LIST = re.compile(r"^(\d+)([.)])(?=\s|$)")


def as_markdown(groups: Sequence[Group], full: bool = False) -> str:
    """Write a heading, the verdict, a table and remarks for each group; the tied best stand in bold."""
    blocks = [*(block for group in groups for block in _blocks(group, full)), _list(verdicts.legend(groups))]
    return "\n\n".join(filter(None, blocks)) + "\n"


def escape_markdown(text: str) -> str:
    """Return Markdown that shows ``text`` as it is: no markup, no HTML, no link, no end of a cell."""
    escaped = _NUMBER_OF_A_LIST.sub(r"\1\\\2", _MARKUP.sub(r"\\\1", printable(text)))
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("://", "&#58;//"), ("@", "&#64;")):
        escaped = escaped.replace(sign, entity)
    return escaped


def _blocks(group: Group, full: bool) -> Iterator[str]:
    yield f"### {escape_markdown(group.dataset)} × {escape_markdown(group.model)}"
    yield escape_markdown(group.protocol)
    if group.measured:
        yield escape_markdown(verdicts.verdict(group))
        chosen = text_columns(group, full)
        names = [escape_markdown(column.name) for column in chosen]
        alignments = [":--" if column.is_text else "--:" for column in chosen]
        rows = _measured_rows(group, chosen, escape_markdown, "**{}**")
        yield _lines_of_cells(names, alignments, *rows)
        if lines := verdicts.forest(group):
            yield "\n".join(f"    {line}" for line in lines)
    yield _list(verdicts.remarks(group, full))
    if group.reported:
        if group.measured:
            yield f"*{escape_markdown(verdicts.REPORTED_HEADING)}*"
        alignments = [":--", "--:", "--:", ":--", ":--"]
        yield _lines_of_cells(_REPORTED_COLUMNS, alignments, *_reported_rows(group, escape_markdown))
        yield _list(verdicts.source_lines(group))


def _lines_of_cells(*rows: Sequence[str]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)


# --- LaTeX ---

# What a text block of two columns holds at \small; a table with all columns would run off the page.
_PAGE_WIDTH = 90
_PAIRS = re.compile(r"([-'`,])(?=\1)")
_SIGNS = {
    "\0": "{}",
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "[": "{[}", "]": "{]}",
    "–": "--", "—": "---", "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "‖": r"$\|$", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "’": "'", "‘": "`", "“": "``", "”": "''", "…": r"\ldots{}", "·": r"$\cdot$",
    "≤": r"$\le$", "≥": r"$\ge$", "λ": r"$\lambda$",
}  # fmt: skip

# Those letters that LaTeX has a command for; the others look like Latin ones.
_GREEK = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩ"
_COMMANDS = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi "
    "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
)
_SIGNS |= {letter: f"$\\{name}$" for letter, name in zip(_GREEK, _COMMANDS.split(), strict=True)}


def as_latex(groups: Sequence[Group], full: bool = False) -> str:
    r"""Write a ``table*`` of six columns for each group, with each row's records in comments.

    ``full`` takes as many columns as a page is wide.
    """
    blocks = [r"% needs \usepackage{booktabs}"]
    blocks += [_float(group, number, full) for number, group in enumerate(groups, start=1)]
    blocks.append("\n".join(map(_comment, verdicts.legend(groups))))
    return "\n\n".join(block for block in blocks if block) + "\n"


def escape_latex(text: str) -> str:
    """Return LaTeX that shows ``text`` as it is; a sign that pdfLaTeX's usual fonts lack becomes ``?``."""
    # TeX makes one other sign of a pair such as --: {} keeps the two apart.
    return "".join(map(_escaped, _PAIRS.sub("\\1\0", printable(text))))


def _escaped(character: str) -> str:
    if character in _SIGNS or character.isascii():
        return _SIGNS.get(character, character)
    # Accents over Latin letters are read as UTF-8 by any LaTeX since 2018.
    plain = unicodedata.normalize("NFKD", character)[0]
    if plain.isascii() and plain.isprintable():
        return character if "À" <= character <= "ÿ" else _SIGNS.get(plain, plain)
    return "?"


_IMPORTANT = 3  # rank, optimizer, seeds, the metric, its interval and the cost in passes


def _float(group: Group, number: int, full: bool) -> str:
    chosen, left_out = fit(group, _PAGE_WIDTH, full)
    if not full:
        left_out += [column for column in chosen if column.importance > _IMPORTANT]
        chosen = [column for column in chosen if column.importance <= _IMPORTANT]
    caption = f"{group.dataset} × {group.model}: {group.protocol}"
    if group.measured:
        caption += f". {verdicts.verdict(group)}"
    notes = [caption]
    notes += [f"{each.label}: records {' '.join(each.records)}" for each in group.measured if each.records]
    notes += [*verdicts.remarks(group, full), *verdicts.source_lines(group)]
    if left_out:
        notes.append(f"left out: {', '.join(column.name for column in left_out)}")
    tables = []
    if group.measured:
        rows = _measured_rows(group, chosen, escape_latex, r"\textbf{{{}}}", bold_figures=True)
        alignment = "".join("l" if column.is_text else "r" for column in chosen)
        headings = [list(map(escape_latex, column.heading.split("\n"))) for column in chosen]
        stack = "\\shortstack[r]{{{}}}".format
        names = [stack(r"\\".join(each)) if len(each) > 1 else each[0] for each in headings]
        tables.append(_tabular(alignment, [names], rows))
    if group.reported:
        heading = f"\\multicolumn{{5}}{{l}}{{\\emph{{{escape_latex(verdicts.REPORTED_HEADING)}}}}}"
        names, rows = list(map(escape_latex, _REPORTED_COLUMNS)), _reported_rows(group, escape_latex)
        tables.append(_tabular(r"lrrlp{0.5\textwidth}", [[heading]], [names], rows))
    drawn = [f"% {line}" for line in verdicts.forest(group)]
    lines = [*map(_comment, notes), *drawn, r"\begin{table*}", r"\centering\small"]
    lines += [f"\\caption{{{escape_latex(caption)}}}", f"\\label{{tab:leaderboard-{number}}}"]
    return "\n".join([*lines, "\n\n\\medskip\n\n".join(tables), r"\end{table*}"])


def _tabular(alignment: str, *blocks: Iterable[Iterable[str]]) -> str:
    """Write blocks of rows, with a rule between them."""
    body = "\n\\midrule\n".join("\n".join(rf"{' & '.join(cells)} \\" for cells in rows) for rows in blocks)
    return f"\\begin{{tabular}}{{{alignment}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}"


def _comment(text: str) -> str:
    return f"% {printable(text)}"
