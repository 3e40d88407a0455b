"""Sharpness beside accuracy: what ``pugdft sharpness`` stored beside records, as means over seeds.

It never ranks. Numbers are taken together only if their samples and options are equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pugdft.analysis.files import find_analyses, read_analysis
from pugdft.errors import ConfigIssue, UserError
from pugdft.leaderboard import stats
from pugdft.leaderboard.entry import Summary
from pugdft.records import LARGEST, StoredRun, is_number

MEASURES = ("lambda1", "adaptive_lambda1", "trace", "worst_rise")
_KIND = "sharpness"


@dataclass(frozen=True)
class StoredSharpness:
    """One run's numbers; equal ``comparison`` means equal sample and options."""

    comparison: str
    values: Mapping[str, float]


def sharpness_of(run: StoredRun) -> list[StoredSharpness]:
    """All valid measurements beside a record that are of its weights."""
    found = []
    for path in find_analyses(run.path.parent, [_KIND]):
        try:
            facts = read_analysis(path).facts
        except UserError:
            continue  # `leaderboard check` says why
        if not list(_faults_of(facts, run)):
            values = {name: float(facts["numbers"][name]["value"]) for name in MEASURES}
            found.append(StoredSharpness(str(facts["comparison"]), values))
    return found


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
    weights = run.record.artifacts["model"].sha256 if "model" in run.record.artifacts else None
    records = facts.get("records")
    first = records[0] if isinstance(records, list) and records else None
    theirs = first.get("weights_sha256") if isinstance(first, Mapping) else None
    if facts.get("kind") != _KIND:
        yield ConfigIssue("kind", f"must be {_KIND}")
    if theirs is None or theirs != weights:
        yield ConfigIssue("records.0.weights_sha256", "is not that of the record's weights")
    if not isinstance(facts.get("comparison"), str):
        yield ConfigIssue("comparison", "is required")
    numbers = facts.get("numbers")
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
