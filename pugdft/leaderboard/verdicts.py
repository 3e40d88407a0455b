"""Plain lines that people read: notes, ties and legends of rankings, and the text of ``pugdft compare``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from textwrap import wrap
from typing import TYPE_CHECKING

from pugdft.errors import counted, printable
from pugdft.leaderboard.columns import NOTHING, duration, number, unit_of
from pugdft.leaderboard.entry import Entry, Group, PublishedSource
from pugdft.predictions import METRICS

if TYPE_CHECKING:
    from pugdft.leaderboard.compare import Gate, Report, SeedComparison

REPORTED_HEADING = "reported by others, not ranked: other code, other protocol"

_MOST_UNDECIDED = 5
_wrapped = partial(wrap, width=110, break_on_hyphens=False, break_long_words=False)
_MCNEMAR = (
    "McNemar's test speaks of the two trained networks of a seed, and not of the optimizers: another seed "
    "may turn it round."
)


def remarks(group: Group) -> list[str]:
    """Write the lines below one group: runs that do not count, notes, ties, and equal costs."""
    lines = []
    for entry in group.measured:
        if entry.unfinished:
            where = "not in its mean" if entry.num_seeds else "none completed"
            lines.append(f"{entry.label}: {unfinished_text(entry)}; {where}.")
        lines += [f"{entry.label}: {note}." for note in entry.notes]
    lines += [f"{note}." for note in group.notes]
    lines += _ties(group)
    costs = []
    if any(entry.top1_at_equal_passes is not None for entry in group.measured):
        costs.append(f"{group.equal_passes or 0:,.0f} passes")
    if any(entry.top1_at_equal_seconds is not None for entry in group.measured):
        costs.append(f"{duration(group.equal_seconds)} of training")
    if costs:
        lines.append(
            f"At {' and at '.join(costs)}, the cheapest entry's cost, the others' schedules are unfinished; "
            "`pugdft bench --budget passes` compares whole ones."
        )
    return [printable(line) for line in lines]


def unfinished_text(entry: Entry) -> str:
    """Write ``2 diverged, 1 oom``."""
    return ", ".join(f"{count} {status}" for status, count in entry.unfinished.items())


def versus_text(entry: Entry, group: Group) -> str:
    """Compare an entry with the best mean in words; nothing for the best itself."""
    versus, unit = entry.versus_best, unit_of(group.metric)
    if versus is None or not math.isfinite(versus.difference):
        return ""
    if versus.difference == 0 and versus.p_value is None:
        return ""
    sign = "+" if versus.difference > 0 else ""
    points = " percentage points" if unit.name == "%" else ""
    difference = f"{sign}{unit(versus.difference)}{points} in {METRICS[group.metric].name}"
    if versus.p_value is None:
        return f"{difference}; nothing can be tested with these seeds, so no difference is claimed"
    p_value = "p < 0.001" if versus.p_value < 0.001 else f"p = {number(versus.p_value, 3)}"
    verdict = f"{difference}; {p_value} (Holm-corrected): {'' if versus.separated else 'not '}told apart"
    if versus.separated or not versus.more_seeds:
        return verdict
    more_seeds = counted(versus.more_seeds, "more seed")
    return f"{verdict}. If the difference is real, about {more_seeds} each would show it"


def legend(groups: Sequence[Group]) -> list[str]:
    """Explain the figures of all groups, once for the whole output."""
    lines = []
    if any(_are_compared(_scored(group)) for group in groups):
        lines.append(
            "Ranks share a range where a paired comparison over common seeds and test images "
            "(Holm over all pairs, 5 %) cannot tell the entries apart; one seed claims nothing."
        )
    if any(group.measured for group in groups):
        lines.append(
            "top-1 is the last epoch's on the test split, unless a note says otherwise; the best epoch, "
            "picked on the test split, never ranks."
        )
    return lines


def source_lines(group: Group) -> list[str]:
    """List the publications of the reported rows: ``[1] Title, arXiv 2110.00199 (2022)``."""
    return [f"[{number}] {title}" for number, title in enumerate(_publications(group), 1)]


def source_cells(entry: Entry, group: Group) -> tuple[str, str]:
    """Write a reported row's place, ``[1] table IV``, and its protocol with what is known to be wrong."""
    source = entry.source
    if source is None:
        return NOTHING, NOTHING
    caveat = f"; caveat: {source.caveat}" if source.caveat else ""
    number = _publications(group).index(_publication(source)) + 1
    return printable(f"[{number}] table {source.table}"), printable(f"{source.protocol}{caveat}")


def _publications(group: Group) -> list[str]:
    """List the publications in the order of the reported rows."""
    return list(dict.fromkeys(_publication(entry.source) for entry in group.reported if entry.source))


def _publication(source: PublishedSource) -> str:
    arxiv = f", arXiv {source.arxiv}" if source.arxiv else ""
    year = f" ({source.year})" if source.year else ""
    return printable(f"{source.title}{arxiv}{year}")


def _scored(group: Group) -> list[Entry]:
    return [entry for entry in group.measured if entry.summary(group.metric)]


def _are_compared(scored: Sequence[Entry]) -> bool:
    """Tell whether there are two entries, and one of several seeds."""
    return len(scored) > 1 and any(entry.num_seeds > 1 for entry in scored)


def _ties(group: Group) -> list[str]:
    """Say what the numbers of seeds allow to claim, and which entries are not separated from the best."""
    scored = _scored(group)
    if not scored:
        return []
    if not _are_compared(scored):
        one_seed = "One seed each: no difference can be claimed."
        return [one_seed if len(scored) > 1 else "Nothing to compare with."]
    lines = ["An optimizer with one seed shares a range with all."]
    lines *= any(entry.num_seeds == 1 for entry in scored)
    ties = []
    for entry in scored[1:]:
        versus = entry.versus_best
        if entry.num_seeds < 2 or versus is None or versus.separated:
            continue
        unit = "" if METRICS[group.metric].unit else f" {group.metric}"
        difference = f"{_signed(versus.difference, group.metric)}{unit}"
        p_value = "" if versus.p_value is None else f", p = {versus.p_value:.2g}"
        line = f"undecided: {entry.label} vs {scored[0].label} (best): {difference}{p_value}"
        if versus.more_seeds is not None:
            line += f"; about {counted(versus.more_seeds, 'more seed')} each would tell if it is real"
        ties.append(f"{line}.")
    if len(ties) > _MOST_UNDECIDED:
        ties[_MOST_UNDECIDED:] = [f"undecided: and {len(ties) - _MOST_UNDECIDED} more."]
    return lines + ties


def _points(value: float, metric: str) -> str:
    """Write ``0.31 points``, a difference without its sign."""
    unit = unit_of(metric)
    return f"{unit(abs(value))}{' points' if unit.name else ''}"


def _signed(value: float, metric: str) -> str:
    """Write ``−0.31 points``; a difference that rounds to zero has no minus sign."""
    sign = "−" if unit_of(metric)(value).startswith("−") else "+"
    return sign + _points(value, metric)


def comparison_text(report: Report) -> str:
    """Write a comparison for people: the difference, each seed, and what the data cannot show."""
    metric, difference = report.metric, report.difference
    lines = [f"{report.group.dataset} × {report.group.model}", report.group.protocol]
    for letter, side in zip("AB", report.sides, strict=True):
        score = f"{METRICS[metric].name} {unit_of(metric).phrase(side.mean(metric))}"
        seeds = ", ".join(str(record.seed) for record in side.records)
        lines.append(f"{letter}  {side.runs.label}: {score}, seeds {seeds}")
    uncertainty = ""
    if interval := difference.interval():
        low, high = (_signed(bound, metric).removesuffix(" points") for bound in interval)
        kind = "common seeds" if difference.paired else "seeds each or more, unpaired"
        images = f" and {report.num_images:,} test images" if report.num_images else ""
        numbers = f"p = {difference.p_value:.2g} ({difference.num_seeds} {kind}{images})"
        uncertainty = f", 95 % interval {low} to {high}, {numbers}"
    lines += ["", f"A − B  {_signed(difference.difference, metric)}{uncertainty}"]
    if report.more_seeds is not None:
        more_seeds = counted(report.more_seeds, "more seed")
        lines.append(f"undecided: about {more_seeds} each would tell if the difference is real")
    if report.detectable is not None:
        lines.append(
            f"{difference.num_seeds} seeds find a true difference of {_points(report.detectable, metric)} "
            "four times in five"
        )
    if report.gate:
        lines += _wrapped(_gate_line(report.gate, metric))
    if report.rows:
        lines += ["", *_seed_table(report.rows, metric)]
    if any(row.p_value is not None for row in report.rows):
        lines += _wrapped(_MCNEMAR)
    if report.notes:
        lines += ["", *(line for note in report.notes for line in _wrapped(f"{note}."))]
    # Nothing but printable characters, whatever the records hold.
    return "\n".join("".join(each for each in line if each.isprintable()) for line in lines)


def _gate_line(gate: Gate, metric: str) -> str:
    claim = f"A is worse than B by less than {_points(gate.margin, metric)}, if at all"
    if gate.bound is None:
        return f"not shown that {claim}: {gate.reason}"
    is_lower, bound = METRICS[metric].higher_is_better, gate.bound
    limit = f"at least {_signed(bound, metric)}" if is_lower else f"at most {_signed(-bound, metric)}"
    shown = f"{claim} (A − B is {limit}, one-sided 95 %)"
    if gate.holds:
        return f"holds: {shown}"
    if gate.seeds_needed is None:
        return f"not shown that {shown}"
    return f"not shown that {shown}; of two equal ones about {gate.seeds_needed:,} seeds would show it"


def _seed_table(seeds: Sequence[SeedComparison], metric: str) -> list[str]:
    unit = unit_of(metric)
    rows = [("seed", "A", "B", "A − B", "only A right", "only B right", "McNemar's p")]
    for each in seeds:
        values = unit.phrase(each.first), unit.phrase(each.second), _signed(each.first - each.second, metric)
        counts = number(each.only_first, 0), number(each.only_second, 0)
        p_value = NOTHING if each.p_value is None else f"{each.p_value:.2g}"
        rows.append((str(each.seed), *values, *counts, p_value))
    num_columns = 4 if all(each.p_value is None for each in seeds) else len(rows[0])
    columns = list(zip(*rows, strict=True))[:num_columns]
    widths = [max(map(len, column)) for column in columns]
    return ["  ".join(map(str.rjust, row, widths)) for row in zip(*columns, strict=True)]
