"""What people read about rankings and comparisons: notes, ties, legends, and the text of ``pugdft compare``.

Plain lines without control characters; a renderer escapes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from pugdft.errors import printable
from pugdft.leaderboard.columns import NOTHING, duration, number, unit_of
from pugdft.leaderboard.entry import Entry, Group, Versus, finite
from pugdft.predictions import METRICS

if TYPE_CHECKING:
    from pugdft.leaderboard.compare import Gate, Report, SeedComparison

REPORTED_HEADING = "reported by others, not ranked: other code, other protocol"

_MOST_UNDECIDED = 5
_MOST_SEEDS_NAMED = 1000
_WIDTH = 110

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
    lines += _equal_costs(group)
    return [printable(line) for line in lines]


def unfinished_text(entry: Entry) -> str:
    """Write ``2 diverged, 1 oom``."""
    return ", ".join(f"{count} {status}" for status, count in entry.unfinished.items())


def versus_text(entry: Entry, group: Group) -> str:
    """Compare an entry with the best mean in words; nothing for the best itself."""
    versus, unit = entry.versus_best, unit_of(group.metric)
    if versus is None or finite(versus.difference) is None:
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
    return f"{verdict}. If the difference is real, {_more_seeds(versus.more_seeds)} each would show it"


def legend(groups: Sequence[Group]) -> list[str]:
    """Explain the figures of all groups, once for the whole output."""
    lines = []
    if any(_num_compared(group) for group in groups):
        lines.append(
            "Ranks share a range where a paired comparison over common seeds and test images "
            "(Holm over all pairs, 5 %) cannot tell the entries apart; one seed claims nothing."
        )
    if any(group.measured for group in groups):
        lines.append(
            "top-1 is the last epoch's on the test split; the best epoch, picked on the test split, "
            "never ranks."
        )
    return lines


def source_lines(group: Group) -> list[str]:
    """List the publications of the reported rows: ``[1] Title, arXiv 2110.00199 (2022)``."""
    return [f"[{number}] {title}" for title, number in _publication_numbers(group).items()]


def source_place(entry: Entry, group: Group) -> str:
    """Name a reported row's place by its publication's number: ``[1] table IV``."""
    if entry.source is None:
        return NOTHING
    return printable(f"[{_publication_numbers(group)[_publication(entry)]}] table {entry.source.table}")


def conditions(entry: Entry) -> str:
    """Describe a reported row's protocol and what is known to be wrong with it."""
    if entry.source is None:
        return NOTHING
    caveat = f"; caveat: {entry.source.caveat}" if entry.source.caveat else ""
    return printable(f"{entry.source.protocol}{caveat}")


def _publication_numbers(group: Group) -> dict[str, int]:
    """Number the publications in the order of the reported rows."""
    publications = dict.fromkeys(_publication(entry) for entry in group.reported)
    return {publication: place for place, publication in enumerate(publications, 1)}


def _publication(entry: Entry) -> str:
    source = entry.source
    if source is None:
        return "no source given"
    arxiv = f", arXiv {source.arxiv}" if source.arxiv else ""
    year = f" ({source.year})" if source.year else ""
    return printable(f"{source.title}{arxiv}{year}")


def _scored(group: Group) -> list[Entry]:
    return [entry for entry in group.measured if entry.summary(group.metric)]


def _num_compared(group: Group) -> int:
    """Count entries with the ranking metric and several seeds; 0 unless there are two entries to compare."""
    scored = _scored(group)
    return sum(entry.num_seeds > 1 for entry in scored) if len(scored) > 1 else 0


def _ties(group: Group) -> list[str]:
    """Say what the numbers of seeds allow to claim, and which entries are not separated from the best."""
    scored = _scored(group)
    if not scored:
        return []
    if len(scored) < 2:
        return ["Nothing to compare with."]
    if not _num_compared(group):
        return ["One seed each: no difference can be claimed."]
    lines = []
    if any(entry.num_seeds == 1 for entry in scored):
        lines.append("An optimizer with one seed shares a range with all.")
    ties = [
        _undecided(entry, entry.versus_best, scored[0], group.metric)
        for entry in scored[1:]
        if entry.num_seeds > 1 and entry.versus_best and not entry.versus_best.separated
    ]
    lines += ties[:_MOST_UNDECIDED]
    if len(ties) > _MOST_UNDECIDED:
        lines.append(f"undecided: and {len(ties) - _MOST_UNDECIDED} more.")
    return lines


def _undecided(entry: Entry, versus: Versus, best: Entry, metric: str) -> str:
    """``undecided: sam vs pugd (best): −0.31 points, p = 0.21; about 7 more seeds each would tell …``."""
    difference = _signed(versus.difference, metric) + ("" if METRICS[metric].unit else f" {metric}")
    line = f"undecided: {entry.label} vs {best.label} (best): {difference}"
    if versus.p_value is not None:
        line += f", p = {versus.p_value:.2g}"
    if versus.more_seeds is not None:
        line += f"; {_more_seeds(versus.more_seeds)} each would tell if it is real"
    return f"{line}."


def _more_seeds(number: int) -> str:
    if number > _MOST_SEEDS_NAMED:
        return f"more than {_MOST_SEEDS_NAMED:,} more seeds"
    return f"about {number} more {'seed' if number == 1 else 'seeds'}"


def _equal_costs(group: Group) -> list[str]:
    """Say at which cost the figures at equal cost were read off, if there are any."""
    entries = group.measured
    costs = []
    if any(entry.top1_at_equal_passes is not None for entry in entries):
        costs.append(f"{group.equal_passes or 0:,.0f} passes")
    if any(entry.top1_at_equal_seconds is not None for entry in entries):
        costs.append(f"{duration(group.equal_seconds)} of training")
    if not costs:
        return []
    return [
        f"At {' and at '.join(costs)}, the cheapest entry's cost, the others' schedules are unfinished; "
        "`pugdft bench --budget passes` compares whole ones."
    ]


def _points(value: float, metric: str) -> str:
    """``0.31 points``: a difference without its sign."""
    unit = unit_of(metric)
    return f"{unit(abs(value))}{' points' if unit.name else ''}"


def _signed(value: float, metric: str) -> str:
    """``−0.31 points``; a difference that rounds to zero has no minus sign."""
    sign = "−" if unit_of(metric)(value).startswith("−") else "+"
    return sign + _points(value, metric)


def comparison_text(report: Report) -> str:
    """Write a comparison for people: the difference, each seed, and what the data cannot show."""
    group, metric, difference = report.selections[0].group, report.metric, report.difference
    lines = [f"{group.dataset} × {group.model}", group.protocol]
    for letter, selection, value in zip("AB", report.selections, report.means, strict=True):
        seeds = ", ".join(str(run.record.seed) for run in selection.runs.completed)
        name = METRICS[metric].name
        lines.append(
            f"{letter}  {selection.runs.label}: {name} {unit_of(metric).phrase(value)}, seeds {seeds}"
        )
    lines += ["", f"A − B  {_signed(difference.difference, metric)}{_uncertainty(report)}"]
    if report.more_seeds is not None:
        lines.append(f"undecided: {_more_seeds(report.more_seeds)} each would tell if the difference is real")
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


def _wrapped(text: str) -> list[str]:
    return wrap(text, _WIDTH, break_on_hyphens=False, break_long_words=False)


def _uncertainty(report: Report) -> str:
    difference = report.difference
    interval = difference.interval()
    if interval is None:
        return ""
    low, high = (_signed(bound, report.metric).removesuffix(" points") for bound in interval)
    kind = "common seeds" if difference.paired else "seeds each or more, unpaired"
    images = f" and {report.num_images:,} test images" if report.num_images else ""
    numbers = f"{difference.num_seeds} {kind}{images}"
    return f", 95 % interval {low} to {high}, p = {difference.p_value:.2g} ({numbers})"


def _gate_line(gate: Gate, metric: str) -> str:
    claim = f"A is worse than B by less than {_points(gate.margin, metric)}, if at all"
    if gate.bound is None:
        return f"not shown that {claim}: {gate.reason}"
    is_lower, bound = METRICS[metric].higher_is_better, gate.bound
    limit = f"at least {_signed(bound, metric)}" if is_lower else f"at most {_signed(-bound, metric)}"
    shown = f"{claim} (A − B is {limit}, one-sided 95 %)"
    if gate.holds:
        return f"holds: {shown}"
    number_needed = gate.seeds_needed
    needed = f"; of two equal ones about {number_needed:,} seeds would show it" if number_needed else ""
    return f"not shown that {shown}{needed}"


def _seed_table(seeds: Sequence[SeedComparison], metric: str) -> list[str]:
    """Write a row for each seed, with all columns aligned to the right."""
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
