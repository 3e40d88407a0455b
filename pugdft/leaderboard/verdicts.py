"""Plain lines that people read: notes, ties and legends of rankings, and the text of ``pugdft compare``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from textwrap import wrap
from typing import TYPE_CHECKING

from pugdft.errors import counted, printable, shortened
from pugdft.leaderboard.columns import NOTHING, duration, number, unit_of
from pugdft.leaderboard.entry import Entry, Group, PublishedSource
from pugdft.leaderboard.warnings import listed
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


def verdict(group: Group) -> str:
    """Say in a sentence or two what a group's numbers allow to claim."""
    scored = _scored(group)
    if len(scored) < 2:
        return "Nothing to compare with: fewer than two optimizers have a result."
    metric = METRICS[group.metric]
    direction = "higher" if metric.higher_is_better else "lower"
    by = "" if group.metric == "top1" else f"Ranked by {metric.name}, {direction} is better. "
    if max(entry.num_seeds for entry in scored) == 1:
        return f"{by}One seed each: no difference can be claimed."
    if group.baseline:
        return by + _baseline_verdict(group, scored)
    best = [shortened(entry.label, 40) for entry in group.best]
    if len(best) >= len(scored):
        return f"{by}No optimizer is shown to be the best here{_detectable(group)}."
    if len(best) == 1:
        versus = scored[1].versus_best if scored[0].label == group.best[0].label else None
        ahead = f", {_points(versus.difference, group.metric)} ahead of the next" if versus else ""
        return f"{by}{best[0]} is the best here{ahead}."
    return f"{by}One of {listed(best)} is the best here; the data do not tell which."


def _detectable(group: Group) -> str:
    """Say how large a difference would have been found."""
    if group.detectable is None or not math.isfinite(group.detectable):
        return ""
    unit = unit_of(group.metric)
    size = f"{number(group.detectable / unit.size, 1)} points" if unit.name else unit(group.detectable)
    return f"; a difference of {size} would have been found four times in five"


def _baseline_verdict(group: Group, scored: Sequence[Entry]) -> str:
    higher = METRICS[group.metric].higher_is_better
    shown: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for entry in scored:
        if versus := entry.versus_baseline:
            word = "better" if (versus.difference > 0) == higher else "worse"
            shown[word if versus.separated else "not told apart"].append(shortened(entry.label, 40))
    name = shortened(group.baseline or "", 40)
    if not shown["better"] and not shown["worse"]:
        return f"No optimizer is shown to be better or worse than {name} here{_detectable(group)}."
    parts = [f"{word}: {listed(labels)}" for word, labels in shown.items() if labels]
    return f"Against {name}, {'; '.join(parts)}."


def remarks(group: Group, full: bool = False) -> list[str]:
    """Write the lines below one group: runs that do not count, notes, ties, and with ``full`` equal costs."""
    said: dict[str, list[str]] = {}  # notes, with the entries that have them
    for entry in group.measured:
        if entry.unfinished:
            where = "not in its mean" if entry.num_seeds else "none completed"
            said.setdefault(f"{unfinished_text(entry)}; {where}", []).append(entry.label)
        for note in entry.notes:
            said.setdefault(note, []).append(entry.label)
    lines = [f"{listed(labels)}: {note}." for note, labels in said.items()]
    lines += [f"{note}." for note in group.notes]
    lines += _ties(group)
    costs = []
    if any(entry.top1_at_equal_passes is not None for entry in group.measured):
        costs.append(f"{group.equal_passes or 0:,.0f} passes")
    if any(entry.top1_at_equal_seconds is not None for entry in group.measured):
        costs.append(f"{duration(group.equal_seconds)} of training")
    if costs and full:
        lines.append(
            f"At {' and at '.join(costs)}, the cheapest entry's cost, the others' schedules are unfinished; "
            "`pugdft bench --budget passes` compares whole ones."
        )
    return [printable(line) for line in lines]


def unfinished_text(entry: Entry) -> str:
    """Write ``2 diverged, 1 oom``."""
    return ", ".join(f"{count} {status}" for status, count in entry.unfinished.items())


def versus_text(entry: Entry, group: Group) -> str:
    """Compare an entry with the best mean or the baseline in words; nothing for that entry itself."""
    versus, unit = entry.versus_baseline or entry.versus_best, unit_of(group.metric)
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
    advice = _advice(entry, group)
    return f"{verdict}. {advice[0].upper()}{advice[1:]}" if advice else verdict


_LARGEST_P = 0.3  # beyond it nobody should plan for the difference that was found


def _advice(entry: Entry, group: Group) -> str:
    """Say how many more seeds might tell an entry from the one it is compared with, and their cost."""
    versus, other = entry.versus_baseline or entry.versus_best, group.tested_against
    if versus is None or versus.separated or versus.p_value is None or versus.p_value > _LARGEST_P:
        return ""
    if versus.more_seeds is None or other is None:
        return ""
    low, high = versus.more_seeds_range or (versus.more_seeds, versus.more_seeds)
    many = f"{low}" if low == high else f"{low} to {high}" if high else f"{low} or many"
    per_seed = [each.train_seconds for each in (entry, other)]
    price = ""
    if all(per_seed):
        # A seed of each of the two.
        cost = sum(filter(None, per_seed))
        hours = [f"{duration(cost * each)}" for each in dict.fromkeys((low, high)) if each]
        price = f" ({' to '.join(hours)} of training)"
    looks = group.looks + 1
    seeds = "more seed" if many == "1" else "more seeds"
    return (
        f"if it is real, {many} {seeds} each would tell{price}; that is a further look: plan the number now, "
        f"and rank then with --looks {looks}"
    )


def legend(groups: Sequence[Group]) -> list[str]:
    """Explain the figures of all groups, once for the whole output."""
    lines = []
    if any(_are_compared(_scored(group)) for group in groups):
        lines.append(
            "Ranks share a range where a comparison over seeds and test images (equal seeds are pairs, Holm "
            "over all pairs, 5 %) cannot tell the entries apart; one seed claims nothing."
        )
    if any(group.measured for group in groups):
        lines.append(
            "top-1 is the last epoch's on the test split, unless a note says otherwise; the best epoch, "
            "picked on the test split, never ranks."
        )
    return lines


_FOREST_WIDTH = 41  # of the axis, in characters


def forest(group: Group) -> list[str]:
    """Draw each entry's difference to the baseline with its interval, variants of one method together.

    Intervals have 95 % each; a star marks what is told apart after the correction over all entries.
    """
    rows = [(entry, versus) for entry in _scored(group) if (versus := entry.versus_baseline) and versus.ci95]
    if not group.baseline or not rows:
        return []
    first_of = {str(entry.spec.get("name")): place for place, (entry, _) in reversed(list(enumerate(rows)))}
    rows.sort(key=lambda row: first_of[str(row[0].spec.get("name"))])
    reach = max(max(map(abs, versus.ci95 or ())) for _, versus in rows) or 1.0
    half = _FOREST_WIDTH // 2

    def place(value: float) -> int:
        return half + round(half * max(-1.0, min(1.0, value / reach)))

    names = [shortened(entry.label, 30) for entry, _ in rows]
    size, unit, lines = max(map(len, names)), unit_of(group.metric), []
    for name, (_, versus) in zip(names, rows, strict=True):
        low, high = map(place, versus.ci95 or (0.0, 0.0))
        axis = ["─" if low <= at <= high else " " for at in range(_FOREST_WIDTH)]
        axis[half] = "┼" if low <= half <= high else "│"
        axis[place(versus.difference)] = "●"
        bounds = " to ".join(map(unit, versus.ci95 or ()))
        mark = "*" if versus.separated else " "
        lines.append(f"{name:<{size}} {mark} {''.join(axis)}  {unit(versus.difference)} ({bounds})")
    metric = METRICS[group.metric]
    unit_name = f", {metric.unit}" if metric.unit else ""
    title = f"{metric.name} minus that of {shortened(group.baseline, 40)}{unit_name}"
    return [f"{title}; 95 % intervals of each pair, * told apart", *lines]


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
    """Say which entries are not separated from the best, or from the baseline."""
    scored = _scored(group)
    if not _are_compared(scored):
        return []
    lines = ["An optimizer with one seed shares a range with all."]
    lines *= any(entry.num_seeds == 1 for entry in scored)
    other, ties = group.tested_against, []
    for entry in scored:
        versus = entry.versus_baseline or entry.versus_best
        if other is None or entry.num_seeds < 2 or versus is None or versus.separated:
            continue
        unit = "" if METRICS[group.metric].unit else f" {group.metric}"
        difference = f"{_signed(versus.difference, group.metric)}{unit}"
        p_value = "" if versus.p_value is None else f", p = {versus.p_value:.2g}"
        advice = _advice(entry, group)
        name = other.label if group.baseline else f"{other.label} (best)"
        ties.append((f"{entry.label} vs {name}: {difference}{p_value}", f"; {advice}" if advice else ""))
    if not ties:
        return lines
    # What more seeds would tell is said of the nearest tie alone.
    nearest = next((at for at, (_, advice) in enumerate(ties) if advice), None)
    words = [text + (advice if at == nearest else "") for at, (text, advice) in enumerate(ties)]
    shown = words[:_MOST_UNDECIDED]
    if len(words) > _MOST_UNDECIDED:
        shown.append(f"and {len(words) - _MOST_UNDECIDED} more")
    return [*lines, f"undecided: {'; '.join(shown)}."]


def _points(value: float, metric: str) -> str:
    """Write ``0.31 points``, a difference without its sign."""
    unit = unit_of(metric)
    return f"{unit(abs(value))}{' points' if unit.name else ''}"


def _signed(value: float, metric: str) -> str:
    """Write ``−0.31 points``; a difference that rounds to zero has no minus sign."""
    sign = "−" if unit_of(metric)(value).startswith("−") else "+"
    return sign + _points(value, metric)


def comparison_text(report: Report, full: bool = False) -> str:
    """Write a comparison for people: the difference, each seed, and what the data cannot show.

    ``full`` adds McNemar's test of each seed's two networks.
    """
    metric, difference = report.metric, report.difference
    lines = [f"{report.group.dataset} × {report.group.model}", report.group.protocol]
    for letter, side in zip("AB", report.sides, strict=True):
        score = f"{METRICS[metric].name} {unit_of(metric).phrase(side.mean(metric))}"
        seeds = ", ".join(str(record.seed) for record in side.records)
        lines.append(f"{letter}  {side.runs.label}: {score}, seeds {seeds}")
    uncertainty = ""
    if interval := difference.interval():
        low, high = (_signed(bound, metric).removesuffix(" points") for bound in interval)
        kind = "common seeds" if difference.share == 1 else "seeds each or more, unpaired"
        if 0 < difference.share < 1:
            kind = f"seeds each or more, {difference.num_pairs} of them pairs"
        images = f" and {report.num_images:,} test images" if report.num_images else ""
        numbers = f"p = {difference.p_value:.2g} ({difference.num_seeds} {kind}{images})"
        uncertainty = f", 95 % interval {low} to {high}, {numbers}"
    lines += ["", f"A − B  {_signed(difference.difference, metric)}{uncertainty}"]
    if difference.testable:
        lines += _wrapped(_p_line(report))
    if report.outlook.more_seeds is not None and difference.p_value <= _LARGEST_P:
        low_end, high_end = report.outlook.range or (report.outlook.more_seeds, report.outlook.more_seeds)
        many = f"{low_end}" if low_end == high_end else f"{low_end} to {high_end or 'many'}"
        lines.append(
            f"undecided: {many} more seed{'s' * (many != '1')} each would tell if the difference is real"
        )
    if report.detectable is not None:
        lines.append(
            f"{difference.num_seeds} seeds find a true difference of {_points(report.detectable, metric)} "
            "four times in five"
        )
    if report.gate:
        lines += _wrapped(_gate_line(report.gate, metric))
    if report.rows:
        rows = report.rows if full else [replace(row, p_value=None) for row in report.rows]
        lines += ["", *_seed_table(rows, metric)]
    if full and any(row.p_value is not None for row in report.rows):
        lines += _wrapped(_MCNEMAR)
    if report.notes:
        lines += ["", *(line for note in report.notes for line in _wrapped(f"{note}."))]
    # Nothing but printable characters, whatever the records hold.
    return "\n".join("".join(each for each in line if each.isprintable()) for line in lines)


def _p_line(report: Report) -> str:
    """Say what the p-value is of, and what it becomes among all comparisons that the records invite."""
    if report.corrected is None:
        return "p is of this pair alone, as if no other two had been compared"
    entries = counted(report.num_entries, "optimizer")
    pairs = report.num_entries * (report.num_entries - 1) // 2
    return (
        f"p is of this pair alone; corrected for all {pairs} pairs of the {entries} there (Holm): "
        f"p = {report.corrected:.2g}"
    )


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
