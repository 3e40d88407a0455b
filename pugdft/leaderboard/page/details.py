"""What stands behind a row: its comparison with the best, every seed, runs that do not count, all options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pugdft import yaml_text
from pugdft.errors import counted
from pugdft.leaderboard.entry import Entry, Group, Metric
from pugdft.leaderboard.page.quantities import MEASURES, finite, number, summary_of
from pugdft.leaderboard.printable import printable

_MOST_SEEDS = 1000  # beyond this a difference is too small for anyone to run


@dataclass(frozen=True)
class SeedRow:
    """One run that counts; ``record`` is None where it is not known which record is whose."""

    seed: int
    score: str
    record: str | None


@dataclass(frozen=True)
class Details:
    """Everything in words.

    Attributes:
        facts: names and what is known of them.
        records: of counted runs, where they cannot be told by seed.
        spec: lines of YAML.
    """

    facts: tuple[tuple[str, str], ...]
    seeds: tuple[SeedRow, ...]
    score_heading: str
    records: tuple[str, ...]
    unfinished_records: tuple[str, ...]
    notes: tuple[str, ...]
    spec: tuple[str, ...]


def details_of(entry: Entry, group: Group) -> Details:
    measure = MEASURES[group.metric]
    seeds = sorted(entry.scores)
    paired = len(seeds) == len(entry.records)
    rows = tuple(
        SeedRow(seed, measure.unit(entry.scores[seed]), entry.records[position] if paired else None)
        for position, seed in enumerate(seeds)
    )
    return Details(
        facts=tuple(_facts(entry, group)),
        seeds=rows,
        score_heading=measure.heading,
        records=() if paired else entry.records,
        unfinished_records=entry.unfinished_records,
        notes=entry.notes,
        spec=tuple(spec_lines(entry.spec)),
    )


def _facts(entry: Entry, group: Group) -> list[tuple[str, str]]:
    facts = []
    if versus := versus_text(entry, group):
        facts.append(("against the best", versus))
    facts += [(MEASURES[metric].name, text) for metric in MEASURES if (text := _summary_text(entry, metric))]
    if finite(entry.best_test_top1) is not None:
        best = MEASURES["top1"].unit.phrase(entry.best_test_top1)
        facts.append(("best epoch", f"{best}, picked on the test split: never ranks"))
    if entry.tuning:
        trials, passes = counted(entry.tuning.trials, "trial"), number(entry.tuning.gradient_passes, 0)
        facts.append(("tuning", f"{trials} on held-out images, {passes} gradient passes"))
    if finite(entry.gradient_passes) is not None:
        facts.append(("gradient passes", number(entry.gradient_passes, 0)))
    if entry.unfinished:
        facts.append(("not counted", f"{unfinished_text(entry)}; not in any mean"))
    return facts


def unfinished_text(entry: Entry) -> str:
    return ", ".join(f"{count} {status}" for status, count in entry.unfinished.items())


def versus_text(entry: Entry, group: Group) -> str:
    """What the data say about an entry and the best mean; nothing for the best itself."""
    versus, measure = entry.versus_best, MEASURES[group.metric]
    if versus is None or finite(versus.difference) is None:
        return ""
    if versus.difference == 0 and versus.p_value is None:
        return ""
    sign = "+" if versus.difference > 0 else ""
    unit = " percentage points" if measure.unit.name == "%" else ""
    difference = f"{sign}{measure.unit(versus.difference)}{unit} in {measure.name}"
    if versus.p_value is None:
        return f"{difference}; nothing can be tested with these seeds, so no difference is claimed"
    p_value = "p < 0.001" if versus.p_value < 0.001 else f"p = {number(versus.p_value, 3)}"
    if versus.separated:
        return f"{difference}; {p_value} (Holm-corrected): told apart"
    verdict = f"{difference}; {p_value} (Holm-corrected): not told apart"
    if not versus.more_seeds:
        return verdict
    more = f"about {counted(versus.more_seeds, 'more seed')}"
    if versus.more_seeds > _MOST_SEEDS:
        more = f"more than {counted(_MOST_SEEDS, 'more seed')}"
    return f"{verdict}. If the difference is real, {more} each would show it"


def _summary_text(entry: Entry, metric: Metric) -> str:
    summary, unit = summary_of(entry, metric), MEASURES[metric].unit
    if summary is None:
        return ""
    text = unit(summary.mean)
    if summary.std is not None:
        text += f" ± {unit(summary.std)}"
    text = f"{text} {unit.name}".rstrip()
    if summary.ci95:
        text += f", 95 % CI {unit(summary.ci95[0])} to {unit(summary.ci95[1])}"
    return text


def spec_lines(spec: Mapping[str, Any]) -> Sequence[str]:
    """The whole ``optimizer`` mapping as YAML, each line safe to show with its indentation."""
    try:
        text = yaml_text.dump(dict(spec))
    except Exception:  # a value that YAML has no form for: show it all the same
        text = repr(dict(spec))
    lines = text.split("\n")
    return [line[: len(line) - len(line.lstrip(" "))] + printable(line) for line in lines if line.strip()]
