"""Compare two optimizers: which runs are meant, the difference of their means, and a non-inferiority gate."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from pugdft.errors import UserError, close_match, printable
from pugdft.leaderboard import warnings
from pugdft.leaderboard.grouping import (
    RunEntry,
    RunGroup,
    by_key,
    canonical,
    differing,
    entry_labels,
    group_runs,
    shown,
)
from pugdft.leaderboard.load import collect
from pugdft.leaderboard.power import Outlook, Plan, outlook
from pugdft.leaderboard.ranking import LOST, Measured, measure, num_test_images
from pugdft.leaderboard.stats import LEVEL, EntryScores, MeanDifference, compare_all, holm_adjusted, mcnemar
from pugdft.predictions import METRICS

SCHEMA = "pugdft.compare/1"

_MOST_NAMED = 20


@dataclass(frozen=True)
class Selection:
    """The runs of one optimizer, and the group of comparable runs that they belong to."""

    runs: RunEntry
    group: RunGroup

    @property
    def title(self) -> str:
        return f"{self.group.dataset} × {self.group.model} ({self.group.protocol})"


def find_selections(
    first: str,
    second: str,
    records: Sequence[Path],
    dataset: str | None,
    model: str | None,
    report: Callable[[str], None],
) -> tuple[Selection, Selection]:
    """Find the runs of two optimizers in one group; ``report`` gets messages about files left out.

    Each is the path of a record or of a folder with the runs of one optimizer, else a label in ``records``.
    """

    @cache
    def read(*paths: Path) -> list[Selection]:
        collected = collect(paths)
        for message in (*collected.left_out, *collected.notes):
            report(message)
        groups = group_runs(collected.records, dataset, model)
        return [Selection(entry, group) for group in groups for entry in group.entries]

    candidates = [_named(text, read, records) for text in (first, second)]
    comparable = [pair for pair in product(*candidates) if not _protocol_differences(*pair)]
    if not comparable:
        differences = "; ".join(_protocol_differences(candidates[0][0], candidates[1][0]))
        raise UserError(
            f"A ({printable(first)}) and B ({printable(second)}) did not run under one protocol, so nothing "
            f"can be said of the optimizers: {differences}"
        )
    if len(comparable) > 1:
        groups = "; ".join(one.title for one, _ in comparable[:_MOST_NAMED])
        raise UserError(
            f"both are in several groups: {groups}. Choose one with --dataset and --model, or give folders."
        )
    one, two = comparable[0]
    return one, two


def _named(text: str, read: Callable[..., list[Selection]], records: Sequence[Path]) -> list[Selection]:
    """Find what a path or a label means: for a path one selection, for a label one in each group."""
    name = printable(text)
    if os.path.exists(text):
        found = read(Path(text))
        if not found:
            raise UserError(f"{name}: no run on a test split")
        if len(found) > 1:
            names = "; ".join(f"{each.runs.label} on {each.title}" for each in found[:_MOST_NAMED])
            raise UserError(
                f"{name}: holds runs of several optimizers or protocols: {names}. Give a folder with "
                "one of them, or its label with --records."
            )
        return found
    if missing := [path for path in records if not path.exists()]:
        raise UserError(
            f'"{name}": no such file or folder; nor can it be looked up as an optimizer: '
            f"{printable(missing[0])} does not exist (--records)"
        )
    known = read(*records)
    if found := [each for each in known if each.runs.label == text]:
        return found
    labels = sorted({each.runs.label for each in known})
    exists = f"Known: {', '.join(labels[:_MOST_NAMED])}" if labels else "There are none"
    raise UserError(
        f'"{name}": no such file or folder, and no optimizer of that label in '
        f"{printable(', '.join(map(str, records)))}. {exists}.{close_match(text, labels)}"
    )


def _protocol_differences(*pair: Selection) -> list[str]:
    """List where two protocols differ, in words."""
    has_data = all(each.group.data_sha256 for each in pair)
    facts = []
    for group in (each.group for each in pair):
        data = (
            {"data.sha256": group.data_sha256, "data.sizes.test": group.num_test_images} if has_data else {}
        )
        facts.append({"data.name": group.dataset, "model.name": group.model, **group.recipe, **data})
    left, right = ({key: shown(value)[:80] for key, value in each.items()} for each in differing(facts))
    return [
        printable(f"{key} is {left.get(key, 'absent')} for A and {right.get(key, 'absent')} for B")
        for key in dict.fromkeys([*left, *right])
    ]


@dataclass(frozen=True)
class SeedComparison:
    """The scores of one common seed; without stored predictions these alone."""

    seed: int
    first: float
    second: float
    only_first: int | None = None  # number of images that only A's network gets right
    only_second: int | None = None
    p_value: float | None = None  # of McNemar's exact test, two-sided


@dataclass(frozen=True)
class Gate:
    """A test of non-inferiority: A is not worse than B by ``margin`` or more."""

    margin: float
    bound: float | None  # one-sided 95 % lower bound of how much A is better than B, if there is one
    holds: bool
    reason: str | None  # why it does not hold
    seeds_needed: int | None = None  # to show it four times in five if both are equal; None if unknown


@dataclass(frozen=True)
class Report:
    """The comparison A minus B, in the metric's own unit."""

    group: RunGroup
    sides: list[Measured]  # A and B, with labels that tell them apart
    metric: str
    difference: MeanDifference
    rows: list[SeedComparison]  # one for each common seed; empty if equal seeds are no pairs
    num_images: int | None  # of the test split if the interval counts them as a sample
    outlook: Outlook  # what more seeds would show
    detectable: float | None  # true difference that as many seeds find four times in five, if testable
    corrected: float | None  # the p-value among all pairs of the optimizers there; None for two alone
    num_entries: int  # there
    gate: Gate | None
    notes: list[str]  # warnings, and what the data cannot show


def compare_selections(
    first: Selection, second: Selection, metric: str = "top1", margin: float | None = None
) -> Report:
    """Compare the runs of two optimizers, A and B, with a gate if A may be worse by ``margin``."""
    if margin is not None and not 0 <= margin < math.inf:
        raise UserError(f"--margin {margin}: must be a number of at least 0, such as 0.002")
    # Two people's runs of one recipe and seed have one id; a run and its copy have one content.
    completed = [[run.record for run in each.runs.completed] for each in (first, second)]
    if any(one.id == two.id and one.to_yaml() == two.to_yaml() for one, two in product(*completed)):
        raise UserError("A and B share runs: two different optimizers are to be compared")
    measured = measure([each.runs for each in (first, second)], metric)
    runs = [each.runs for each in measured]
    for name, each in zip("AB", measured, strict=True):
        title = f"{name} ({each.runs.label})"
        if not each.runs.completed:
            raise UserError(f"{title} has no completed run")
        if without := ", ".join(map(str, each.without(metric))):
            raise UserError(f"{title} has no valid {METRICS[metric].name} for seed {without}")
    conflicts, pairing_notes = warnings.unpaired(runs)
    one, two = (EntryScores(each.scores(metric), each.images) for each in measured)
    num_images = num_test_images(measured)
    size = num_images if METRICS[metric].is_share_of_images else None
    difference = compare_all([one, two], size, conflicts)[0]
    p_value, detectable = None, None
    if difference.testable:
        p_value = difference.p_value
        detectable = Plan.of(difference).detectable_difference(difference.num_seeds)
    ahead = outlook(difference, p_value)
    corrected, num_entries = _corrected(first, second, metric)
    lettered = [replace(each, label=name) for each, name in zip(runs, "AB", strict=True)]
    if runs[0].spec != runs[1].spec:  # else two sets of runs of one optimizer
        labels = entry_labels([each.spec for each in runs])
        runs = [replace(each, label=label) for each, label in zip(runs, labels, strict=True)]
    return Report(
        group=first.group,
        sides=[replace(each, runs=labelled) for each, labelled in zip(measured, runs, strict=True)],
        metric=metric,
        difference=difference,
        rows=_seed_rows(one, two) if difference.paired else [],
        num_images=num_images if one.images is not None and two.images is not None else None,
        outlook=ahead,
        detectable=detectable,
        corrected=corrected if difference.testable else None,
        num_entries=num_entries,
        gate=None if margin is None else _gate(difference, metric, margin, runs[0]),
        notes=[
            *warnings.difference_limits(difference, measured, metric, ahead.needs_images),
            *pairing_notes,
            *warnings.kept_notes(first.group.recipe),
            *warnings.condition_warnings(lettered),
            *_notes_on("A", measured[0]),
            *_notes_on("B", measured[1]),
        ],
    )


def _corrected(first: Selection, second: Selection, metric: str) -> tuple[float | None, int]:
    """Correct the p-value for all pairs of the optimizers among the records; their number, two at least."""
    runs = {canonical(each.spec): each for side in (second, first) for each in side.group.entries}
    runs |= {canonical(each.runs.spec): each.runs for each in (first, second)}
    if len(runs) < 3 or first.runs.spec == second.runs.spec:
        return None, 2
    measured = [each for each in measure(list(runs.values()), metric) if each.records]
    measured = [each for each in measured if not each.without(metric)]
    specs = [each.runs.spec for each in measured]
    num_images = num_test_images(measured) if METRICS[metric].is_share_of_images else None
    samples = [EntryScores(each.scores(metric), each.images) for each in measured]
    pairs = compare_all(samples, num_images, warnings.unpaired([each.runs for each in measured])[0])
    one, two = sorted(specs.index(each.runs.spec) for each in (first, second))
    left, right = np.triu_indices(len(specs), 1)
    place = int(np.flatnonzero((left == one) & (right == two))[0])
    return float(holm_adjusted(pairs.p_value)[place]), len(specs)


def as_json(report: Report) -> str:
    """Write a comparison as one JSON document; fractions stay fractions."""
    difference, group, metric = report.difference, report.group, report.metric
    one, two = (
        {"optimizer": side.runs.label, "mean": side.mean(metric), "records": [run.id for run in side.records]}
        for side in report.sides
    )
    content: dict[str, Any] = {
        "schema": SCHEMA,
        **{key: getattr(group, key) for key in ("dataset", "model", "protocol")},
        "metric": metric,
        "a": one,
        "b": two,
        "difference": difference.difference,
        "ci95": difference.interval(),
        "p_value": difference.p_value if difference.testable else None,
        "p_value_corrected": report.corrected,
        "num_optimizers": report.num_entries,
        "num_seeds": difference.num_seeds,
        "is_paired": difference.paired,
        "num_images": report.num_images,
        "more_seeds": report.outlook.more_seeds,
        "more_seeds_range": report.outlook.range,
        "detectable_difference": report.detectable,
        "seeds": [vars(row) for row in report.rows],
        "gate": vars(report.gate) if report.gate else None,
        "notes": report.notes,
    }
    return json.dumps(content, indent=2, allow_nan=False)


def _seed_rows(one: EntryScores, two: EntryScores) -> list[SeedComparison]:
    rows = []
    for seed in sorted(one.scores.keys() & two.scores.keys()):
        row = SeedComparison(seed, one.scores[seed], two.scores[seed])
        if one.images is not None and two.images is not None and one.images[seed].dtype == bool:
            left, right = one.images[seed], two.images[seed]
            counts = int((left & ~right).sum()), int((right & ~left).sum())
            row = replace(row, only_first=counts[0], only_second=counts[1], p_value=mcnemar(*counts))
        rows.append(row)
    return rows


def _gate(difference: MeanDifference, metric: str, margin: float, first: RunEntry) -> Gate:
    """Test non-inferiority by the one-sided 95 % bound, one end of the two-sided 90 % interval."""
    # The bound would describe the completed seeds only.
    if lost := {status: seeds for status, seeds in first.lost_seeds().items() if status in LOST}:
        return Gate(margin, None, False, f"A has seeds without a completed run: {_by_status(lost)}")
    interval = difference.interval(2 * LEVEL)
    if interval is None:
        return Gate(margin, None, False, warnings.why_untestable(difference))
    bound = interval[0] if METRICS[metric].higher_is_better else -interval[1]
    if bound > -margin:
        return Gate(margin, bound, True, None)
    plan = Plan(math.sqrt(difference.seed_variance), difference.spread.images, level=2 * LEVEL)
    reason = "A may be worse than B by the margin or more"
    return Gate(margin, bound, False, reason, plan.seeds_needed(margin))


def _notes_on(name: str, measured: Measured) -> list[str]:
    """Collect an optimizer's notes; the first names all runs that did not complete, also if others did."""
    by_status = by_key(measured.runs.unfinished, lambda record: record.status)
    seeds = {str(status): [record.seed for record in records] for status, records in by_status.items()}
    unfinished = [f"not in its mean: {_by_status(seeds)}"] if seeds else []
    return [f"{name}: {note}" for note in (*unfinished, *measured.runs.notes, *measured.notes)]


def _by_status(seeds: Mapping[str, list[int]]) -> str:
    """Write ``2 diverged (seed 3, 4), 1 oom (seed 0)``."""
    counts = [(len(each), status, warnings.listed(sorted(each))) for status, each in sorted(seeds.items())]
    return ", ".join(f"{number} {status} (seed {listed})" for number, status, listed in counts)
