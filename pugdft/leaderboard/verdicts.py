"""What is said below a ranking: runs that do not count, doubts, ties, and what the figures mean.

Plain lines without control characters; a renderer escapes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from pugdft.errors import printable
from pugdft.leaderboard.columns import NOTHING, duration
from pugdft.leaderboard.entry import Entry, Group
from pugdft.predictions import METRICS

REPORTED_HEADING = "reported by others, not ranked: other code, other protocol"

_MOST_UNDECIDED = 5


def remarks(group: Group) -> list[str]:
    """The lines below one group."""
    lines = []
    for entry in group.measured:
        if entry.unfinished:
            counts = ", ".join(f"{number} {status}" for status, number in entry.unfinished.items())
            lines.append(
                f"{entry.label}: {counts}; {'not in its mean' if entry.num_seeds else 'none completed'}."
            )
        lines += [f"{entry.label}: {note}." for note in entry.notes]
    lines += [f"{note}." for note in group.notes]
    lines += _verdict(group)
    lines += _equal_costs(group)
    return [printable(line) for line in lines]


def legend(groups: Sequence[Group]) -> list[str]:
    """What the figures of all groups mean, once for the whole output."""
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


def source_legend(group: Group) -> dict[tuple[str, str], int]:
    """A number for each publication, by title and what else tells it, in the order of the reported rows."""
    numbers: dict[tuple[str, str], int] = {}
    for entry in group.reported:
        numbers.setdefault(_publication(entry), len(numbers) + 1)
    return numbers


def source_lines(group: Group) -> list[str]:
    """``[1] Title, arXiv 2110.00199 (2022)``."""
    lines = []
    for (title, rest), number in source_legend(group).items():
        lines.append(printable(f"[{number}] {title}{rest}"))
    return lines


def source_place(entry: Entry, group: Group) -> str:
    """``[1] table IV``."""
    if entry.source is None:
        return NOTHING
    return printable(f"[{source_legend(group)[_publication(entry)]}] table {entry.source.table}")


def conditions(entry: Entry) -> str:
    """A reported row's protocol and what is known to be wrong with it."""
    if entry.source is None:
        return NOTHING
    caveat = f"; caveat: {entry.source.caveat}" if entry.source.caveat else ""
    return printable(f"{entry.source.protocol}{caveat}")


def _publication(entry: Entry) -> tuple[str, str]:
    source = entry.source
    if source is None:
        return "no source given", ""
    arxiv = f", arXiv {source.arxiv}" if source.arxiv else ""
    year = f" ({source.year})" if source.year else ""
    return source.title, f"{arxiv}{year}"


def _num_compared(group: Group) -> int:
    """Entries with the ranking metric and several seeds, if there are at least two to compare."""
    scored = [entry for entry in group.measured if entry.summary(group.metric)]
    return sum(entry.num_seeds > 1 for entry in scored) if len(scored) > 1 else 0


def _verdict(group: Group) -> list[str]:
    """What the numbers of seeds allow to claim, and the ties with the best entry."""
    scored = [entry for entry in group.measured if entry.summary(group.metric)]
    if not scored:
        return []
    if len(scored) < 2:
        return ["Nothing to compare with."]
    if not _num_compared(group):
        return ["One seed each: no difference can be claimed."]
    single = [entry for entry in scored if entry.num_seeds == 1]
    lines = ["An optimizer with one seed shares a range with all."] if single else []
    ties = [
        line
        for entry in scored[1:]
        if entry not in single and (line := _undecided(entry, scored[0], group)) is not None
    ]
    lines += ties[:_MOST_UNDECIDED]
    if len(ties) > _MOST_UNDECIDED:
        lines.append(f"undecided: and {len(ties) - _MOST_UNDECIDED} more.")
    return lines


def _undecided(entry: Entry, best: Entry, group: Group) -> str | None:
    """``undecided: sam vs pugd (best): −0.31 points, p = 0.21; about 7 more seeds …``, or None."""
    versus = entry.versus_best
    if versus is None or versus.separated:
        return None
    metric = METRICS[group.metric]
    unit, digits = metric.unit, metric.digits
    difference = f"{round(metric.scale * versus.difference, digits) or 0.0:+.{digits}f}".replace("-", "−")
    line = (
        f"undecided: {entry.label} vs {best.label} (best): {difference} {'points' if unit else group.metric}"
    )
    if versus.p_value is not None:
        line += f", p = {versus.p_value:.2g}"
    if versus.more_seeds is not None:
        # Beyond this the difference is too small for anyone to run.
        seeds = "more than 1,000" if versus.more_seeds > 1000 else f"about {versus.more_seeds}"
        line += (
            f"; {seeds} more {'seed' if versus.more_seeds == 1 else 'seeds'} each would tell if it is real"
        )
    return f"{line}."


def _equal_costs(group: Group) -> list[str]:
    """Where the figures at equal cost were read off, if there are any."""
    entries = group.measured
    shown = []
    if any(entry.top1_at_equal_passes is not None for entry in entries):
        shown.append(f"{group.equal_passes or 0:,.0f} passes")
    if any(entry.top1_at_equal_seconds is not None for entry in entries):
        shown.append(f"{duration(group.equal_seconds)} of training")
    if not shown:
        return []
    return [
        f"At {' and at '.join(shown)}, the cheapest entry's cost, the others' schedules are unfinished; "
        "`pugdft bench --budget passes` compares whole ones."
    ]
