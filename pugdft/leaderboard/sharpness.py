"""Sharpness beside accuracy: what ``pugdft sharpness`` stored beside records, as means over seeds.

It never ranks. Numbers are taken together only if their samples and options are equal. Which of two
optimizers ends flatter is said only of common seeds, and only if both fit their images about equally well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np

from pugdft.analysis.files import find_analyses, read_analysis
from pugdft.errors import ConfigIssue, UserError
from pugdft.leaderboard import stats, warnings
from pugdft.leaderboard.entry import Summary
from pugdft.leaderboard.grouping import RunEntry, group_runs
from pugdft.records import LARGEST, StoredRun, is_number

MEASURES = ("lambda1", "adaptive_lambda1", "trace", "worst_rise")
WORDS = dict(zip(MEASURES, ("λ1", "adaptive λ1", "trace", "worst rise"), strict=True))
UNEQUAL = 2.0  # how many times one loss is another before λ1 says who trained longer
_KIND = "sharpness"


@dataclass(frozen=True)
class StoredSharpness:
    """One run's numbers; equal ``comparison`` means equal sample and options."""

    comparison: str
    values: Mapping[str, float]
    loss: float  # of the sample

    @classmethod
    def of(cls, facts: Mapping[str, Any], run: StoredRun) -> StoredSharpness | None:
        """Read a measurement; None if it is damaged, or of other weights than the record's."""
        if list(_faults_of(facts, run)):
            return None
        numbers = facts["numbers"]
        values = {name: float(numbers[name]["value"]) for name in MEASURES}
        return cls(str(facts["comparison"]), values, float(numbers["loss"]))


def sharpness_of(run: StoredRun) -> list[StoredSharpness]:
    """All sound measurements beside a record that are of its weights; `leaderboard check` names others."""
    found = []
    for path in find_analyses(run.path.parent, [_KIND]):
        with suppress(UserError):
            found.append(StoredSharpness.of(read_analysis(path).facts, run))
    return [each for each in found if each is not None]


def sharpness_faults(run: StoredRun) -> Iterator[ConfigIssue]:
    """What is wrong with the measurements beside a record."""
    for path in find_analyses(run.path.parent, [_KIND]):
        try:
            facts = read_analysis(path).facts
        except UserError as error:
            yield ConfigIssue(path.name, str(error).removeprefix(f"{path}: "))
            continue
        yield from (
            ConfigIssue(f"{path.name}: {each.where}", each.message) for each in _faults_of(facts, run)
        )


def _faults_of(facts: Mapping[str, Any], run: StoredRun) -> Iterator[ConfigIssue]:
    """Facts of a measurement that are missing, impossible, or of other weights than the record's."""
    records = facts.get("records")
    first = records[0] if isinstance(records, list) and records else None
    theirs = first.get("weights_sha256") if isinstance(first, Mapping) else None
    if facts.get("kind") != _KIND:
        yield ConfigIssue("kind", f"must be {_KIND}")
    if theirs is None or theirs != run.record.weights_sha256:
        yield ConfigIssue("records.0.weights_sha256", "is not that of the record's weights")
    if not isinstance(facts.get("comparison"), str):
        yield ConfigIssue("comparison", "is required")
    numbers = facts.get("numbers")
    loss = numbers.get("loss") if isinstance(numbers, Mapping) else None
    if not is_number(loss) or not 0 <= loss <= LARGEST:
        yield ConfigIssue("numbers.loss", "must be a number of at least 0")
    for name in MEASURES:
        row = numbers.get(name) if isinstance(numbers, Mapping) else None
        value = row.get("value") if isinstance(row, Mapping) else None
        if not is_number(value) or abs(value) > LARGEST:
            yield ConfigIssue(f"numbers.{name}.value", "must be a finite number")
        elif name == "worst_rise" and value < 0:
            yield ConfigIssue(f"numbers.{name}.value", "must be at least 0")


def usual_comparison(runs: Sequence[StoredRun]) -> str | None:
    """The sample and options that most of a group's runs were measured with; None if none was."""
    counts = Counter(name for run in runs for name in {each.comparison for each in sharpness_of(run)})
    return max(counts, key=lambda name: (counts[name], name), default=None)


def summaries(runs: Sequence[StoredRun], comparison: str | None) -> dict[str, Summary]:
    """Mean and spread over an entry's seeds; nothing unless every seed was measured alike."""
    found = []
    for run in runs:
        own = [each for each in sharpness_of(run) if each.comparison == comparison]
        if not own:
            return {}
        found.append(own[0].values)
    if not found:
        return {}
    bounds = (-LARGEST, LARGEST)
    return {name: stats.summarize([each[name] for each in found], None, bounds) for name in MEASURES}


def which_is_flatter(measured: Sequence[tuple[StoredRun, StoredSharpness]]) -> list[str]:
    """Say of every two optimizers which ends flatter, by each measure: a line a pair.

    Differences are paired over common seeds, with the leaderboard's statistics and Holm's correction over all
    pairs and measures. No verdict is given if the means of the losses differ by more than ``UNEQUAL`` times.
    """
    values = {run.record.id: found for run, found in measured}
    lines: list[str] = []
    for group in group_runs([run for run, _ in measured]):
        lines += _verdicts([each for each in group.entries if each.completed], values)
    return lines


def _verdicts(entries: Sequence[RunEntry], values: Mapping[str, StoredSharpness]) -> list[str]:
    own = [{run.record.seed: values[run.record.id] for run in entry.completed} for entry in entries]
    if len(entries) < 2:
        return []
    conflicts, _ = warnings.unpaired(entries)
    lines = list[str]()
    found = {}
    for name in MEASURES:
        scores = [{seed: each.values[name] for seed, each in by_seed.items()} for by_seed in own]
        found[name] = stats.compare_all([stats.EntryScores(each) for each in scores], None, conflicts)
    p_values = stats.holm_adjusted(np.concatenate([np.atleast_1d(each.p_value) for each in found.values()]))
    pairs = list(combinations(range(len(entries)), 2))
    adjusted = p_values.reshape(len(MEASURES), len(pairs))
    for place, (first, second) in enumerate(pairs):
        names = entries[first].label, entries[second].label
        common = sorted(own[first].keys() & own[second].keys())
        pair = found[MEASURES[0]][place]
        if not pair.paired:
            said = f"nothing is paired: {'other random draws' if common else 'no common seeds'}"
        elif text := _unequal([fmean(own[each][seed].loss for seed in common) for each in (first, second)]):
            said = text
        elif len(common) < 2:
            said = warnings.why_untestable(pair)
        else:
            rows = enumerate(MEASURES)
            told = [_told(WORDS[name], found[name][place], adjusted[row, place], names) for row, name in rows]
            said = f"{len(common)} common seeds: {'; '.join(told)}"
        lines.append(f"flatter, {names[0]} or {names[1]}? {said}")
    return lines


def _unequal(losses: Sequence[float]) -> str:
    """Why losses allow no verdict; empty if they do."""
    low, high = sorted(losses)
    is_equal = high <= UNEQUAL * low
    return "" if is_equal else f"no verdict: unequal loss ({low:.3g} and {high:.3g}) says who trained longer"


def _told(words: str, pair: stats.MeanDifference, p_value: float, names: tuple[str, str]) -> str:
    """Write ``λ1 sam (sgd − sam: 0.3 to 0.9, p = 0.01)``."""
    interval = pair.interval()
    if interval is None:
        return f"{words} undecided"
    low, high = (f"{bound:.2g}".replace("-", "−") for bound in interval)
    numbers = f"{names[0]} − {names[1]}: {low} to {high}, p = {p_value:.2g}"
    verdict = "undecided" if p_value > stats.LEVEL else names[0] if pair.difference < 0 else names[1]
    return f"{words} {verdict} ({numbers})"
