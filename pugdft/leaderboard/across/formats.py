"""A verdict over several tasks as text: for a terminal, Markdown, LaTeX, CSV and JSON.

The sentence that answers stands first, then one table of the entries, who wins where, and what limits it all.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pugdft.errors import counted, printable
from pugdft.leaderboard.across.board import AcrossStanding, AcrossVerdict, PairVerdict
from pugdft.leaderboard.across.tasks import OPTIONS_DIFFER
from pugdft.leaderboard.columns import GAP, NOTHING, number, unit_of
from pugdft.leaderboard.entry import Summary
from pugdft.leaderboard.formats.csv_json import csv_cell, plain
from pugdft.leaderboard.formats.text import escape_latex, escape_markdown
from pugdft.leaderboard.warnings import listed
from pugdft.predictions import METRICS

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = "pugdft.across/1"

_MOST_UNDECIDED = 4
_MOST_SHOWN = 12  # entries whose wins are shown in a matrix
_LATEX = ("rank", "optimizer", "difference", "rank_mean", "wins", "cost")
_Write = Callable[[AcrossVerdict, int], str]


@dataclass(frozen=True)
class AcrossColumn:
    """One column of the table of entries; functions get the verdict and the entry's place in it."""

    key: str
    name: str  # may hold ``{near}`` and ``{unit}``
    help: str
    write: _Write
    ends: Callable[[AcrossVerdict, int], tuple[str, str] | None] | None = None  # of its 95 % interval
    importance: int = 0  # on a narrow terminal the highest numbers go first; 0 always stays
    is_text: bool = False

    def cell(self, verdict: AcrossVerdict, place: int, with_interval: bool = True) -> str:
        """Write ``0.62 (0.21 to 1.03)``."""
        text = self.write(verdict, place)
        found = self.ends(verdict, place) if self.ends and with_interval else None
        return f"{text} ({found[0]} to {found[1]})" if found else text

    def title(self, verdict: AcrossVerdict) -> str:
        unit = "points" if unit_of(verdict.metric).name else METRICS[verdict.metric].name
        return self.name.format(near=_points(verdict.near, verdict), unit=unit)


def _signed(value: float, verdict: AcrossVerdict) -> str:
    """Write ``−0.31``; a difference that rounds to zero has no minus sign."""
    text = unit_of(verdict.metric)(value)
    return text if text.startswith("−") else f"+{text}"


def _points(value: float, verdict: AcrossVerdict) -> str:
    """Write ``0.31 points``, a difference without its sign."""
    unit = unit_of(verdict.metric)
    return f"{unit(abs(value))}{' points' if unit.name else ''}"


def _pair_with_best(verdict: AcrossVerdict, place: int) -> PairVerdict | None:
    return verdict.pair(place, 0) if place else None


def _difference(verdict: AcrossVerdict, place: int) -> str:
    pair = _pair_with_best(verdict, place)
    return NOTHING if pair is None or not pair.num_tasks else _signed(pair.difference, verdict)


def _difference_ends(verdict: AcrossVerdict, place: int) -> tuple[str, str] | None:
    pair = _pair_with_best(verdict, place)
    if pair is None or pair.ci95 is None:
        return None
    return _signed(pair.ci95[0], verdict), _signed(pair.ci95[1], verdict)


def _p_value(verdict: AcrossVerdict, place: int) -> str:
    pair = _pair_with_best(verdict, place)
    if pair is None or pair.p_value is None:
        return NOTHING
    return "<.001" if pair.p_value < 0.001 else number(pair.p_value, 3)


def _chance(verdict: AcrossVerdict, place: int) -> str:
    pair = _pair_with_best(verdict, place)
    return NOTHING if pair is None or not pair.num_tasks else number(pair.improvement.mean)


def _chance_ends(verdict: AcrossVerdict, place: int) -> tuple[str, str] | None:
    pair = _pair_with_best(verdict, place)
    found = pair.improvement.ci95 if pair and pair.num_tasks else None
    return (number(found[0]), number(found[1])) if found else None


def _field(key: str, write: Callable[[float, AcrossVerdict], str]) -> dict[str, Any]:
    """Columns of a mean with an interval in a field of the entry."""

    def mean(verdict: AcrossVerdict, place: int) -> str:
        found: Summary | None = getattr(verdict.standings[place], key)
        return NOTHING if found is None else write(found.mean, verdict)

    def ends(verdict: AcrossVerdict, place: int) -> tuple[str, str] | None:
        found: Summary | None = getattr(verdict.standings[place], key)
        if found is None or found.ci95 is None:
            return None
        return write(found.ci95[0], verdict), write(found.ci95[1], verdict)

    return {"write": mean, "ends": ends}


def _front(verdict: AcrossVerdict, place: int) -> str:
    standing = verdict.standings[place]
    return NOTHING if standing.front_share is None else f"{standing.front} {number(standing.front_share)}"


def rank_text(standing: AcrossStanding) -> str:
    """Write ``1``, or ``1–3`` where the tasks leave it open."""
    low, high = standing.rank_low, standing.rank_high
    return str(low) if low == high else f"{low}–{high}"


COLUMNS = (
    AcrossColumn("rank", "rank", "Places that the tasks allow: tests of all pairs, Shaffer's "
                 "correction, 5 %.", lambda verdict, place: rank_text(verdict.standings[place])),
    AcrossColumn("optimizer", "optimizer", "", is_text=True,
                 write=lambda verdict, place: printable(verdict.standings[place].label)),
    AcrossColumn("tasks", "tasks", "Tasks with a result.",
                 lambda verdict, place: str(verdict.standings[place].num_tasks), importance=4),
    AcrossColumn("difference", "vs best, {unit}", "Mean over tasks of the difference to the first entry; "
                 "its 95 % interval is of this pair alone, by t over tasks.", _difference, _difference_ends),
    AcrossColumn("p", "p", "Of no difference to the first entry, corrected over all pairs.", _p_value,
                 importance=1),
    AcrossColumn("rank_mean", "mean rank", "Mean of its ranks within each task.", importance=3,
                 **_field("average_rank", lambda value, _: number(value))),
    AcrossColumn("wins", "won/tied/lost", "Comparisons with others within a task that are separated, "
                 "corrected over all pairs of all tasks.", importance=2,
                 write=lambda verdict, place: _won(verdict.standings[place])),
    AcrossColumn("chance", "P > best", "Probability that a run of it beats one of the first entry, mean "
                 "over tasks.", _chance, _chance_ends, importance=6),
    AcrossColumn("middle", "IQM", "Mean of the middle half of its runs, relative to their task's mean over "
                 "entries.", importance=8, **_field("interquartile_mean", _signed)),
    AcrossColumn("near", "within {near}", "Share of tasks in which its mean is so near the best one's.",
                 importance=7, **_field("near_best", lambda value, _: number(value))),
    AcrossColumn("cost", "cost ×", "As a multiple of the cheapest entry's: geometric mean over tasks.",
                 importance=5, **_field("cost", lambda value, _: number(value))),
    AcrossColumn("front", "front", "Whether nothing that costs no more is better: on the front, behind it, "
                 "or open; and the share of resampled tasks and seeds in which it is on it.", _front,
                 importance=5),
)  # fmt: skip


def _won(standing: AcrossStanding) -> str:
    return f"{standing.wins}/{standing.ties}/{standing.losses}"


def columns_of(verdict: AcrossVerdict) -> list[AcrossColumn]:
    """List the columns in which at least one entry has something."""
    places = range(len(verdict.standings))
    return [each for each in COLUMNS if any(each.write(verdict, place) != NOTHING for place in places)]


def sentence(verdict: AcrossVerdict) -> str:
    """Answer the question in a sentence or two."""
    labels = [printable(each.label) for each in verdict.standings]
    best = [printable(each.label) for each in verdict.best]
    over = f"Over {len(verdict.tasks)} tasks"
    if len(best) == len(labels):
        return f"{over}, none of these {len(labels)} optimizers is ruled out as the best."
    pairs = [verdict.pair(0, place) for place in range(1, len(labels))]
    if len(best) == 1 and all(each.separated for each in pairs):
        nearest = pairs[0]
        low, high = (_signed(end, verdict).removeprefix("+") for end in nearest.ci95 or (0.0, 0.0))
        return (
            f"{over}, {best[0]} is better than {'the other' if len(pairs) == 1 else 'all others'}: "
            f"than {printable(nearest.second)} by {_points(nearest.difference, verdict)} "
            f"(95 % interval {low} to {high})."
        )
    worse = [
        f"{printable(each.second)} by {_points(each.difference, verdict)}" for each in pairs if each.separated
    ]
    behind = f" {labels[0]} is better than {listed(worse)}." if worse else ""
    return f"{over}, not ruled out as the best: {listed(best)}.{behind}"


def remarks(verdict: AcrossVerdict) -> list[str]:
    """Write the lines below the table: pairs with the best that are undecided, then notes."""
    lines = []
    undecided = [
        each
        for each in (verdict.pair(0, place) for place in range(1, len(verdict.standings)))
        if not each.separated
    ]
    for each in undecided[:_MOST_UNDECIDED]:
        line = f"undecided: {each.second} vs {each.first}"
        if each.p_value is None:
            lines.append(f"{line}: they share {counted(each.num_tasks, 'task')}, so nothing can be tested.")
            continue
        p_values = f"p = {each.p_value:.2g} over all pairs, {each.p_alone:.2g} alone"
        line += f": {_signed(-each.difference, verdict)}, {p_values}"
        if each.more_tasks is not None:
            line += f"; about {counted(each.more_tasks, 'more task')} like these would tell if it is real"
        lines.append(f"{line}.")
    if len(undecided) > _MOST_UNDECIDED:
        lines.append(f"undecided: and {len(undecided) - _MOST_UNDECIDED} more.")
    differing: dict[str, list[str]] = {}
    for standing in verdict.standings:
        for note in standing.notes:
            if note.startswith(OPTIONS_DIFFER):  # which and how takes two lines an entry
                differing.setdefault(note[len(OPTIONS_DIFFER) :].partition("): ")[0], []).append(
                    standing.label
                )
            else:
                lines.append(f"{standing.label}: {note}.")
    for how, labels in differing.items():
        lines.append(f"options differ from task to task{how}): {listed(labels)}; `--format json` has them.")
    lines += [f"{note}." for note in verdict.notes]
    return [printable(line) for line in lines]


def legend(verdict: AcrossVerdict) -> list[str]:
    """Explain the figures."""
    metric, critical = METRICS[verdict.metric], verdict.critical_difference
    nemenyi = f" (critical difference {number(critical)} by Nemenyi)" if critical is not None else ""
    lines = [
        f"By {metric.name} of the last epoch on the test split, "
        f"{'higher' if metric.higher_is_better else 'lower'} is better. Tasks weigh equally. "
        "Ranks: t over tasks for each pair, Shaffer's correction over all pairs, 5 %. "
        f"Mean ranks{nemenyi} depend on who else is in the table: they describe, and decide nothing."
    ]
    if verdict.cost:
        lines.append(f"Cost: {verdict.cost} of a run, without tuning. Intervals: 95 %.")
    return lines


def _wins_rows(verdict: AcrossVerdict) -> Iterator[list[str]]:
    """Rows of won/tied/lost, each entry against each other one; none for more than a page holds."""
    size = len(verdict.standings)
    if size > _MOST_SHOWN:
        return
    yield ["won/tied/lost against", *(printable(each.label) for each in verdict.standings)]
    for place, standing in enumerate(verdict.standings):
        cells = [NOTHING] * size
        for other in range(size):
            if other != place:
                pair = verdict.pair(place, other)
                cells[other] = f"{pair.wins}/{pair.ties}/{pair.losses}"
        yield [printable(standing.label), *cells]


def task_rows(verdict: AcrossVerdict) -> Iterator[list[str]]:
    """Rows of each task's means ± standard deviations over seeds."""
    unit = unit_of(verdict.metric)
    shown = verdict.standings[:_MOST_SHOWN]
    yield [unit.heading(METRICS[verdict.metric].name), *(printable(each.label) for each in shown)]
    for task in verdict.tasks:
        cells = []
        for standing in shown:
            found = task.scores.get(standing.label)
            spread = "" if found is None or found.std is None else f" ± {unit(found.std)}"
            cells.append(NOTHING if found is None else f"{unit(found.mean)}{spread}")
        yield [printable(task.name), *cells]


def tables(verdict: AcrossVerdict) -> list[list[list[str]]]:
    """The smaller tables, with their headings: wins, and the tasks."""
    return [rows for rows in (list(_wins_rows(verdict)), list(task_rows(verdict))) if rows]


# --- terminal ---


def print_across(verdict: AcrossVerdict, console: Console) -> None:
    """Print the answer, the table of entries, those of wins and tasks where they fit, and remarks."""
    from rich.text import Text  # without control characters: a record can neither style nor link

    def say(lines: Sequence[str], style: str = "") -> None:
        for line in lines:
            console.print(Text(printable(line), style=style))

    def show(rows: Sequence[Sequence[str]], bold: Sequence[int] = ()) -> None:
        for place, line in enumerate(_aligned(rows)):
            console.print(Text(line, style="bold" if place in bold else ""), soft_wrap=True)

    say([sentence(verdict)], "bold")
    console.print()
    rows, left_out = _fitting(verdict, console.width)
    show(rows, [0, *(1 + place for place, each in enumerate(verdict.standings) if each.rank_low == 1)])
    for rows in tables(verdict):
        if max(map(len, _aligned(rows))) <= console.width:
            console.print()
            show(rows, [0])
        else:
            left_out.append(rows[0][0] if rows[0][0].startswith("won") else "the tasks' means")
    console.print()
    if left_out:
        say([f"No room for: {', '.join(left_out)}; `--format markdown` and `html` have all."], "dim")
    say(remarks(verdict), "dim")
    say(legend(verdict), "dim")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Join cells to lines, all but the texts on the right; the first column of text is on the left."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    left = 1 if rows[0][0] == "rank" else 0
    lines = []
    for row in rows:
        cells = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            blank = " " * (width - cell_len(cell))
            cells.append(cell + blank if place == left else blank + cell)
        lines.append((" " * GAP).join(cells).rstrip())
    return lines


def _fitting(verdict: AcrossVerdict, width: int) -> tuple[list[list[str]], list[str]]:
    """Choose the columns that fit; the difference to the best keeps its interval."""
    chosen = columns_of(verdict)

    def rows() -> list[list[str]]:
        cells = [
            [each.cell(verdict, place, each.key == "difference") for each in chosen]
            for place in range(len(verdict.standings))
        ]
        return [[each.title(verdict) for each in chosen], *cells]

    left_out = []
    while max(map(len, _aligned(rows()))) > width:
        least = max(chosen, key=lambda each: each.importance)
        if not least.importance:
            break
        chosen.remove(least)
        left_out.append(least.title(verdict))
    return rows(), left_out


# --- Markdown and LaTeX ---


def across_markdown(verdict: AcrossVerdict) -> str:
    """Write the answer, the tables with all intervals, and a list of remarks."""
    chosen = columns_of(verdict)
    rows = [[escape_markdown(each.title(verdict)) for each in chosen]]
    for place, standing in enumerate(verdict.standings):
        cells = [escape_markdown(each.cell(verdict, place)) for each in chosen]
        form = "**{}**" if standing.rank_low == 1 and len(verdict.standings) > 1 else "{}"
        rows.append(
            [form.format(cell) if each.is_text else cell for cell, each in zip(cells, chosen, strict=True)]
        )
    blocks = [f"**{escape_markdown(sentence(verdict))}**", _pipes(rows, [each.is_text for each in chosen])]
    for table in tables(verdict):
        escaped = [list(map(escape_markdown, row)) for row in table]
        blocks.append(_pipes(escaped, [place == 0 for place in range(len(table[0]))]))
    lines = [*remarks(verdict), *legend(verdict)]
    blocks.append("\n".join(f"- {escape_markdown(line)}" for line in lines))
    return "\n\n".join(blocks) + "\n"


def _pipes(rows: Sequence[Sequence[str]], is_text: Sequence[bool]) -> str:
    alignment = [":--" if each else "--:" for each in is_text]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (rows[0], alignment, *rows[1:]))


def across_latex(verdict: AcrossVerdict) -> str:
    r"""Write a ``table*`` of six columns and one of the tasks, with what limits them in comments."""
    chosen = [each for each in columns_of(verdict) if each.key in _LATEX]
    rows = [[escape_latex(each.title(verdict)) for each in chosen]]
    for place, standing in enumerate(verdict.standings):
        cells = [
            escape_latex(each.cell(verdict, place, each.key in ("difference", "rank_mean")))
            for each in chosen
        ]
        form = r"\textbf{{{}}}" if standing.rank_low == 1 and len(verdict.standings) > 1 else "{}"
        rows.append(
            [form.format(cell) if each.is_text else cell for cell, each in zip(cells, chosen, strict=True)]
        )
    alignment = "".join("l" if each.is_text else "r" for each in chosen)
    notes = [*remarks(verdict), *legend(verdict)]
    for task in verdict.tasks:
        notes += [f"{task.name}, {label}: records {' '.join(ids)}" for label, ids in task.records.items()]
    blocks = [r"% needs \usepackage{booktabs}", "\n".join(f"% {printable(line)}" for line in notes)]
    blocks.append(_table(sentence(verdict), "tab:across", rows, alignment))
    means = [list(map(escape_latex, row)) for row in task_rows(verdict)]
    blocks.append(_table("Means of the tasks.", "tab:across-tasks", means, "l" + "r" * (len(means[0]) - 1)))
    return "\n\n".join(blocks) + "\n"


def _table(caption: str, label: str, rows: Sequence[Sequence[str]], alignment: str) -> str:
    heading, *body = (rf"{' & '.join(cells)} \\" for cells in rows)
    lines = [
        r"\begin{table*}",
        r"\centering\small",
        f"\\caption{{{escape_latex(caption)}}}",
        f"\\label{{{label}}}",
    ]
    lines += [f"\\begin{{tabular}}{{{alignment}}}", r"\toprule", heading, r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table*}"])


# --- for programs ---


def across_json(verdict: AcrossVerdict) -> str:
    """Write the whole verdict as one JSON document, without rounding; what is not defined is null."""
    content = {"schema": SCHEMA, "verdict": sentence(verdict), **asdict(verdict)}
    return json.dumps(plain(content), indent=2, allow_nan=False) + "\n"


def across_csv(verdict: AcrossVerdict) -> str:
    """Write one line for each entry: its fields, its difference to the first, and by others what it won.

    ``against`` is JSON, by the other entry's label: tasks won, tied and lost, and the probability of
    improvement with its interval. Profiles and the tasks are in JSON alone.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rows = [_csv_fields(verdict, place) for place in range(len(verdict.standings))]
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow(map(csv_cell, row.values()))
    return text.getvalue()


def _csv_fields(verdict: AcrossVerdict, place: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"metric": verdict.metric}
    summaries = ("average_rank", "interquartile_mean", "near_best", "cost")
    for key, value in vars(verdict.standings[place]).items():
        if key in summaries:
            low, high = value.ci95 if value else (None, None)
            fields |= {key: value and value.mean, f"{key}_ci95_low": low, f"{key}_ci95_high": high}
        elif key != "profile":
            fields[key] = "; ".join(value) if isinstance(value, tuple) else value
    pair = _pair_with_best(verdict, place)
    low, high = pair.ci95 if pair and pair.ci95 else (None, None)
    fields |= {
        "versus_best": pair and pair.difference,
        "versus_best_ci95_low": low,
        "versus_best_ci95_high": high,
    }
    for key in ("p_value", "p_alone", "separated", "true_std", "num_tasks", "more_tasks"):
        fields[f"versus_best_{key}"] = getattr(pair, key, None)
    others = (verdict.pair(place, other) for other in range(len(verdict.standings)) if other != place)
    fields["against"] = {
        each.second: {"wins": each.wins, "ties": each.ties, "losses": each.losses}
        | {"improvement": each.improvement.mean, "improvement_ci95": each.improvement.ci95}
        for each in others
    }
    return fields
