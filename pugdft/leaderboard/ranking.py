"""Rank groups of runs: entries with means, intervals, ranges of ranks and costs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pugdft.errors import ConfigIssue, collect
from pugdft.leaderboard.costs import by_epoch, mean_curve, mean_of, top1_at
from pugdft.leaderboard.entry import Entry, Group, Versus
from pugdft.leaderboard.grouping import RunEntry, RunGroup, by_key, chosen, group_runs
from pugdft.leaderboard.load import Loaded, PerImage, read_per_image, without_garbage_collection
from pugdft.leaderboard.power import outlook
from pugdft.leaderboard.stats import (
    LEVEL,
    EntryScores,
    Spread,
    better_and_worse,
    compare_all,
    holm_adjusted,
    mean,
    rank_ranges,
    spread_of,
    summarize,
)
from pugdft.leaderboard.warnings import (
    condition_warnings,
    listed,
    more_images_note,
    scope_notes,
    tuning_budget,
    unpaired,
)
from pugdft.predictions import METRICS
from pugdft.records import RunRecord

# A record writes 0 for a cost that was not measured.
_COSTS: Mapping[str, Callable[[RunRecord], float | None]] = {
    "gradient_passes": lambda run: run.cost.gradient_passes or None,
    "train_seconds": lambda run: run.cost.train_seconds or None,
}

_Budgets = Mapping[str, float | None]


@dataclass(frozen=True)
class Measured:
    """The metrics of one entry's runs; the fields with defaults need usable predictions of all runs.

    Attributes:
        values: of each metric by seed, None where a completed run has no valid value.
        spreads: of the metrics' means over seeds and test images.
        images: scores of each test image by seed, of the ranking metric.
        split: digest of the test images' order.
    """

    runs: RunEntry
    values: Mapping[str, Mapping[int, float | None]]
    spreads: Mapping[str, Spread] = field(default_factory=dict)
    images: Mapping[int, np.ndarray] | None = None
    split: str | None = None
    notes: tuple[str, ...] = ()

    def scores(self, metric: str) -> dict[int, float]:
        """Return the valid values by seed."""
        return {seed: value for seed, value in self.values[metric].items() if value is not None}

    def without(self, metric: str) -> list[int]:
        """List completed seeds without a valid value."""
        return [seed for seed, value in self.values[metric].items() if value is None]

    def sample(self, metric: str) -> EntryScores:
        """Return the scores for comparisons by the ranking metric."""
        return EntryScores(self.scores(metric), self.images)


def without_lost(entry: RunEntry, metric: str) -> RunEntry:
    """Count completed runs whose final loss is NaN as diverged.

    The outputs of such a network are NaN, so the accuracy on record means nothing. Ranked by the loss itself,
    these runs have no valid value and rank last. An infinite loss is different: that of one image may
    overflow although all predictions are good.
    """
    lost = [run.record for run in entry.completed if _is_lost(run.record)]
    if not lost or metric == "loss":
        return entry
    seeds = listed(record.seed for record in lost)
    return replace(
        entry,
        completed=tuple(run for run in entry.completed if not _is_lost(run.record)),
        unfinished=(*entry.unfinished, *(each.model_copy(update={"status": "diverged"}) for each in lost)),
        notes=(*entry.notes, f"the loss of seed {seeds} is not a number: counted as diverged"),
    )


def _is_lost(record: RunRecord) -> bool:
    test = record.metrics.test if record.metrics else None
    return test is not None and math.isnan(test.loss)


def measure(entries: Sequence[RunEntry], metric: str) -> list[Measured]:
    """Read the metrics of every entry; per-image scores only of entries with the same images in one order."""
    measured = [_measure(entry, metric) for entry in entries]
    splits = Counter(each.split for each in measured if each.split)
    if len(splits) <= 1:
        return measured
    usual = max(splits, key=lambda split: (splits[split], split))
    note = "its test images stand in another order than others': its predictions are not compared by image"
    return [
        replace(each, images=None, notes=(*each.notes, note)) if each.split not in (None, usual) else each
        for each in measured
    ]


def _measure(entry: RunEntry, metric: str) -> Measured:
    values = {
        name: {run.record.seed: _test_value(run.record, name) for run in entry.completed} for name in METRICS
    }
    images, notes = _per_image(entry)
    splits = {each.split for each in images.values()}
    if len(images) < len(entry.completed) or len(splits) != 1:
        if len(splits) > 1:
            notes.append("its seeds' test images stand in different orders: predictions are not used")
        return Measured(entry, values, notes=tuple(notes))
    by_metric = {
        name: {seed: each.scores[name] for seed, each in images.items()}
        for name in METRICS
        if all(name in each.scores for each in images.values())
    }
    spreads: dict[str, Spread] = {
        name: spread_of(np.stack(list(by_seed.values())))
        for name, by_seed in by_metric.items()
        if len(by_seed) > 1 and min(map(len, by_seed.values())) > 1
    }
    return Measured(entry, values, spreads, by_metric.get(metric), splits.pop(), tuple(notes))


def _per_image(entry: RunEntry) -> tuple[dict[int, PerImage], list[str]]:
    """Read the per-image scores by seed, with notes on predictions that are not used."""
    found: dict[int, PerImage] = {}
    faults: list[ConfigIssue] = []
    for run in entry.completed:
        with collect(faults, str(run.record.seed)):
            if images := read_per_image(run):
                found[run.record.seed] = images
    return found, [
        f"predictions of seed {', '.join(fault.where for fault in alike)} not used: {reason}"
        for reason, alike in sorted(by_key(faults, lambda fault: fault.message).items())
    ]


def valid(value: float | None, metric: str) -> float | None:
    """Return the value; None if it is missing, NaN, or outside of the metric's bounds."""
    low, high = METRICS[metric].bounds
    return value if value is not None and low <= value <= high else None


def _test_value(record: RunRecord, metric: str) -> float | None:
    test = record.metrics.test if record.metrics else None
    return valid(getattr(test, metric, None), metric)


def num_test_images(measured: Sequence[Measured]) -> int | None:
    """Return the size of the test split, the smallest if records disagree; None if one does not state it."""
    records = [record for each in measured for record in _records(each)]
    sizes = [record.data.sizes.get("test", 0) if record.data else 0 for record in records]
    return min(sizes, default=0) or None


@without_garbage_collection()
def build_leaderboard(
    records: Sequence[Loaded],
    dataset: str | None = None,
    model: str | None = None,
    metric: str = "top1",
) -> list[Group]:
    """Rank the runs of each data set × model × protocol; runs of a search are only counted in a note.

    Args:
        records: from :func:`pugdft.leaderboard.load.collect`.
        dataset: keep only this one: its name, or a part that no other name has; case does not matter.
        model: likewise.
        metric: what ranks, of the last epoch on the test split.

    Raises:
        UserError: a filter matches nothing, or several names; the message lists what exists.
    """
    return [_ranked(group, metric) for group in chosen_groups(group_runs(records), dataset, model)]


def chosen_groups(groups: list[RunGroup], dataset: str | None, model: str | None) -> list[RunGroup]:
    """Keep the groups that match the filters, as :func:`build_leaderboard`."""
    for kind, field_name, wanted in (("data set", "dataset", dataset), ("model", "model", model)):
        if wanted is not None:
            name = chosen(kind, wanted, {getattr(group, field_name) for group in groups})
            groups = [group for group in groups if getattr(group, field_name) == name]
    return groups


def _ranked(group: RunGroup, metric: str) -> Group:
    """Rank every entry with a completed run; those without the metric come last."""
    runs = [without_lost(entry, metric) for entry in group.entries]
    measured = sorted(measure(runs, metric), key=lambda each: each.runs.label)
    started = [each for each in measured if each.runs.completed]
    sign = -1 if METRICS[metric].higher_is_better else 1
    scored = sorted(
        (each for each in started if not each.without(metric)),
        key=lambda each: sign * mean(each.scores(metric).values()),
    )
    conflicts, pairing_notes = unpaired([each.runs for each in scored])
    budgets: dict[str, float | None] = {}
    for cost, read in _COSTS.items():
        means = [mean_of(_records(each), read) for each in scored]
        budgets[cost] = min((value for value in means if value is not None), default=None)
    entries = _compared(scored, metric, conflicts, budgets)
    for each in started:
        if seeds := each.without(metric):
            # Its mean without the missing seed would flatter it.
            note = f"no valid {METRICS[metric].name} for seed {', '.join(map(str, seeds))}: ranked last"
            entries.append(_entry(each, budgets, (note,), rank_low=len(scored) + 1, rank_high=len(started)))
    entries += [_entry(each, budgets) for each in measured if not each.runs.completed]
    return Group(
        dataset=group.dataset,
        model=group.model,
        protocol=group.protocol,
        recipe=group.recipe,
        entries=tuple(entries),
        notes=(*group.notes, *condition_warnings(runs), *pairing_notes, *scope_notes(scored, metric)),
        metric=metric,
        equal_passes=budgets["gradient_passes"],
        equal_seconds=budgets["train_seconds"],
    )


def _records(measured: Measured) -> list[RunRecord]:
    return [run.record for run in measured.runs.completed]


def _compared(
    scored: Sequence[Measured], metric: str, conflicts: np.ndarray | None, budgets: _Budgets
) -> list[Entry]:
    """Build ranked entries, best first, each compared with the first.

    Seeds that completed say nothing of those that diverged: an optimizer with diverged seeds is never
    separated from an entry below it.
    """
    if not scored:
        return []
    num_images = num_test_images(scored) if METRICS[metric].is_share_of_images else None
    pairs = compare_all([each.sample(metric) for each in scored], num_images, conflicts)
    adjusted = holm_adjusted(pairs.p_value)
    diverged = [_diverged(each) for each in scored]
    better, worse = better_and_worse(pairs.difference, len(scored), METRICS[metric].higher_is_better)
    testable = pairs.testable & ~np.array(list(map(bool, diverged)))[better]
    separated = testable & (adjusted <= LEVEL)
    ranges = rank_ranges(better[separated], worse[separated], len(scored))
    entries = []
    for number, (each, (low, high)) in enumerate(zip(scored, ranges, strict=True)):
        versus, notes = None, diverged[number]
        if number > 0:
            place = number - 1  # the pairs with the best entry come first
            p_value = float(adjusted[place]) if testable[place] else None
            more_seeds, needs_images = outlook(pairs[place], p_value, len(adjusted))
            difference = -float(pairs.difference[place])
            versus = Versus(difference, p_value, bool(separated[place]), more_seeds)
            notes += (more_images_note(" to the best"),) * needs_images
        ranked = {"rank_low": low, "rank_high": high, "scores": each.scores(metric), "versus_best": versus}
        entries.append(_entry(each, budgets, notes, **ranked))
    return entries


def _diverged(measured: Measured) -> tuple[str, ...]:
    """Note that seeds diverged which no run completed, if there are any."""
    runs = measured.runs
    lost = runs.lost_seeds().get("diverged")
    if not lost:
        return ()
    seeds = {run.seed for run in (*_records(measured), *runs.unfinished)}
    return (f"{len(lost)} of {len(seeds)} seeds diverged: not ranked above others",)


def _entry(measured: Measured, budgets: _Budgets, notes: tuple[str, ...] = (), **ranked: Any) -> Entry:
    """Build an entry with fields from its ranking; of the other entries it needs only the lowest costs."""
    runs, records = measured.runs, _records(measured)
    summaries = {
        name: summarize(measured.scores(name).values(), measured.spreads.get(name), row.bounds)
        for name, row in METRICS.items()
        if records and not measured.without(name)
    }
    histories = [by_epoch(run.history) for run in records]
    at_equal = {
        cost: top1_at(histories, [read(run) for run in records], cost, budgets[cost])
        for cost, read in _COSTS.items()
    }
    tuning, tuning_note = tuning_budget(runs)
    best_epochs = [run.metrics.best_test if run.metrics else None for run in records]
    return Entry(
        label=runs.label,
        status="measured",
        spec=runs.spec,
        num_seeds=len(records),
        summaries=summaries,
        best_test_top1=mean_of(best_epochs, lambda best: valid(best.top1, "top1") if best else None),
        gradient_passes=mean_of(records, _COSTS["gradient_passes"]),
        train_seconds=mean_of(records, _COSTS["train_seconds"]),
        top1_at_equal_passes=at_equal["gradient_passes"],
        top1_at_equal_seconds=at_equal["train_seconds"],
        images_per_second=mean_of(records, lambda run: run.cost.images_per_second or None),
        peak_memory_bytes=mean_of(records, lambda run: run.cost.peak_memory_bytes or None),
        tuning=tuning,
        mean_perturbation_norm=mean_of(records, lambda run: run.method.mean_perturbation_norm),
        mean_gradient_cosine=mean_of(records, lambda run: run.method.mean_gradient_cosine),
        curve=mean_curve(histories),
        unfinished=dict(sorted(Counter(run.status for run in runs.unfinished).items())),
        records=tuple(run.id for run in records),
        unfinished_records=tuple(run.id for run in runs.unfinished),
        notes=(*runs.notes, *measured.notes, *((tuning_note,) if tuning_note else ()), *notes),
        **ranked,
    )
