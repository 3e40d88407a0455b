"""Rank groups of runs: entries with means, intervals, ranges of ranks and costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np

from pugdft.errors import ConfigIssue, collect, printable
from pugdft.leaderboard import sharpness, stats, warnings
from pugdft.leaderboard.entry import CurvePoint, Entry, Group, Versus
from pugdft.leaderboard.grouping import RunEntry, RunGroup, by_key, group_runs
from pugdft.leaderboard.load import Loaded, PerImage, read_per_image, without_garbage_collection
from pugdft.leaderboard.power import outlook
from pugdft.predictions import METRICS
from pugdft.records import LARGEST, RunRecord

_COSTS = ("gradient_passes", "train_seconds", "images_per_second", "peak_memory_bytes")

# What a curve shows, with the bounds of valid values; anything else in a history is not measured.
_CURVE = {
    "gradient_passes": (0.0, LARGEST),
    "train_seconds": (0.0, LARGEST),
    "train_loss": (-LARGEST, LARGEST),
    "test_top1": (0.0, 1.0),
}
CONTRADICTED = "contradicted"  # counted as unfinished: a record whose own predictions give other numbers
_SLACK = 1e-5  # costs are sums of floats and are rounded in the history

_Budgets = Mapping[str, float | None]  # the lowest mean of each cost that a schedule spends
_History = Mapping[int, Mapping[str, Any]]  # a run's rows by epoch


@dataclass(frozen=True)
class Measured:
    """The metrics of one entry's runs; the fields with defaults need usable predictions of all runs."""

    runs: RunEntry
    values: Mapping[str, Mapping[int, float | None]]  # by metric and seed; None for an invalid one
    spreads: Mapping[str, stats.Spread] = field(default_factory=dict)  # of means over seeds and test images
    images: Mapping[int, np.ndarray] | None = None  # each test image's ranking metric, by seed
    split: str | None = None  # digest of the test images' order
    notes: tuple[str, ...] = ()

    @property
    def records(self) -> list[RunRecord]:
        return [run.record for run in self.runs.completed]

    def scores(self, metric: str) -> dict[int, float]:
        """Return the valid values by seed."""
        return {seed: value for seed, value in self.values[metric].items() if value is not None}

    def mean(self, metric: str) -> float:
        return fmean(self.scores(metric).values())

    def without(self, metric: str) -> list[int]:
        """List completed seeds without a valid value."""
        return [seed for seed, value in self.values[metric].items() if value is None]

    def costs(self, name: str) -> list[float | None]:
        """Return a cost of each run; a record writes 0 for one that was not measured."""
        return [getattr(record.cost, name) or None for record in self.records]


def _without_lost(entry: RunEntry) -> RunEntry:
    """Count completed runs whose final loss is no finite number as diverged, whatever metric ranks.

    `pugdft` itself ends such a run as diverged; only another program, or an old version, records it so.
    """
    lost = [
        run.record.seed
        for run in entry.completed
        if (loss := _test_value(run.record, "loss")) is not None and not abs(loss) <= LARGEST
    ]
    note = f"the loss of seed {warnings.listed(lost)} is not a number up to {LARGEST:g}: counted as diverged"
    return _set_aside(entry, lost, "diverged", note)


def _set_aside(entry: RunEntry, seeds: Collection[int], status: str, note: str) -> RunEntry:
    """Count the completed runs of ``seeds`` as unfinished, with another status; say so in a note."""
    if not seeds:
        return entry
    chosen = [run.record for run in entry.completed if run.record.seed in seeds]
    return replace(
        entry,
        completed=tuple(run for run in entry.completed if run.record.seed not in seeds),
        unfinished=(*entry.unfinished, *(each.model_copy(update={"status": status}) for each in chosen)),
        notes=(*entry.notes, note),
    )


def _test_value(record: RunRecord, metric: str) -> float | None:
    return getattr(record.metrics.test if record.metrics else None, metric, None)


def measure(entries: Sequence[RunEntry], metric: str) -> list[Measured]:
    """Read the metrics of every entry; per-image scores only of entries with the same images in one order.

    Runs that their own predictions contradict, and runs without a finite loss, are set aside.
    """
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
    images: dict[int, PerImage] = {}
    faults: list[ConfigIssue] = []
    for run in entry.completed:
        with collect(faults, str(run.record.seed)):
            if found := read_per_image(run):
                images[run.record.seed] = found
    ids = {run.record.seed: printable(run.record.id) for run in entry.completed}
    contradicted = {seed: each.contradictions for seed, each in images.items() if each.contradictions}
    named = (f"{ids[seed]} ({', '.join(found)})" for seed, found in contradicted.items())
    note = f"left out, for their own predictions contradict them: {warnings.listed(named)}"
    entry = _without_lost(_set_aside(entry, contradicted, CONTRADICTED, note))
    kept = {run.record.seed for run in entry.completed}
    images = {seed: each for seed, each in images.items() if seed in kept}
    faults = [each for each in faults if int(each.where) in kept]
    values = {
        name: {run.record.seed: valid(_test_value(run.record, name), name) for run in entry.completed}
        for name in METRICS
    }
    notes = [
        f"predictions of seed {', '.join(fault.where for fault in alike)} not used: {reason}"
        for reason, alike in sorted(by_key(faults, lambda fault: fault.message).items())
    ]
    splits = {each.split for each in images.values()}
    if len(splits) > 1:
        notes.append("its seeds' test images stand in different orders: predictions are not used")
    if len(images) < len(entry.completed) or len(splits) != 1:
        return Measured(entry, values, notes=tuple(notes))
    by_metric = {
        name: {seed: each.scores[name] for seed, each in images.items()}
        for name, row in METRICS.items()
        if row.per_image
    }
    spreads = {
        name: stats.spread_of(np.stack(list(by_seed.values())))
        for name, by_seed in by_metric.items()
        if len(by_seed) > 1 and min(map(len, by_seed.values())) > 1
    }
    return Measured(entry, values, spreads, by_metric.get(metric), splits.pop(), tuple(notes))


def valid(value: float | None, metric: str) -> float | None:
    """Return the value; None if it is missing, NaN, or outside of the metric's bounds."""
    low, high = METRICS[metric].bounds
    return value if value is not None and low <= value <= high else None


def num_test_images(measured: Sequence[Measured]) -> int | None:
    """Return the size of the test split, the smallest if records disagree; None if one does not state it."""
    records = [record for each in measured for record in each.records]
    sizes = [record.data.sizes.get("test", 0) if record.data else 0 for record in records]
    return min(sizes, default=0) or None


@without_garbage_collection()
def build_leaderboard(
    records: Sequence[Loaded], dataset: str | None = None, model: str | None = None, metric: str = "top1"
) -> list[Group]:
    """Rank the runs of each data set × model × protocol by ``metric`` of the last epoch on the test split.

    Runs of a search are only counted in a note. ``dataset`` and ``model`` are names, or parts that no other
    name has, in any case; UserError if one matches nothing, or several names.
    """
    return [_ranked(group, metric) for group in group_runs(records, dataset, model)]


def _ranked(group: RunGroup, metric: str) -> Group:
    """Rank every entry with a completed run; those without the metric come last."""
    measured = sorted(measure(group.entries, metric), key=lambda each: each.runs.label)
    started = [each for each in measured if each.runs.completed]
    sign = -1 if METRICS[metric].higher_is_better else 1
    scored = [each for each in started if not each.without(metric)]
    scored.sort(key=lambda each: sign * each.mean(metric))
    conflicts, pairing_notes = warnings.unpaired([each.runs for each in scored])
    budgets: dict[str, float | None] = {}
    for cost in ("gradient_passes", "train_seconds"):
        means = [_mean_of(each.costs(cost)) for each in scored]
        budgets[cost] = min((value for value in means if value is not None), default=None)
    entries = _compared(scored, metric, conflicts, budgets)
    for each in started:
        if seeds := each.without(metric):
            # Its mean without the missing seed would flatter it.
            note = f"no valid {METRICS[metric].name} for seed {', '.join(map(str, seeds))}: ranked last"
            entries.append(_entry(each, budgets, (note,), rank_low=len(scored) + 1, rank_high=len(started)))
    entries += [_entry(each, budgets) for each in measured if not each.runs.completed]
    runs = [each.runs for each in measured]
    doubts = (*warnings.condition_warnings(runs), *pairing_notes, *warnings.scope_notes(scored, metric))
    return Group(
        dataset=group.dataset,
        model=group.model,
        protocol=group.protocol,
        recipe=group.recipe,
        entries=tuple(_with_sharpness(entries, measured)),
        notes=(*group.notes, *warnings.kept_notes(group.recipe), *doubts),
        metric=metric,
        equal_passes=budgets["gradient_passes"],
        equal_seconds=budgets["train_seconds"],
    )


def _with_sharpness(entries: Sequence[Entry], measured: Sequence[Measured]) -> list[Entry]:
    """Add what was measured of the minima, on the sample and with the options that most runs share."""
    runs = {each.runs.label: each.runs.completed for each in measured}
    comparison = sharpness.usual_comparison([run for completed in runs.values() for run in completed])
    if comparison is None:
        return list(entries)
    found = {label: sharpness.summaries(completed, comparison) for label, completed in runs.items()}
    return [replace(entry, sharpness=found[entry.label]) for entry in entries]


def _compared(
    scored: Sequence[Measured], metric: str, conflicts: np.ndarray | None, budgets: _Budgets
) -> list[Entry]:
    """Build ranked entries, best first, each compared with the first."""
    row = METRICS[metric]
    num_images = num_test_images(scored) if row.is_share_of_images else None
    samples = [stats.EntryScores(each.scores(metric), each.images) for each in scored]
    pairs = stats.compare_all(samples, num_images, conflicts)
    adjusted = stats.holm_adjusted(pairs.p_value)
    diverged: list[tuple[str, ...]] = []
    for each in scored:
        lost = each.runs.lost_seeds().get("diverged")
        num_seeds = len({record.seed for record in (*each.records, *each.runs.unfinished)})
        note = f"{len(lost or ())} of {num_seeds} seeds diverged: not ranked above others"
        diverged.append((note,) if lost else ())
    better, worse = stats.better_and_worse(pairs.difference, len(scored), row.higher_is_better)
    # Seeds that completed say nothing of those that diverged.
    testable = pairs.testable & ~np.array([bool(notes) for notes in diverged], dtype=bool)[better]
    separated = testable & (adjusted <= stats.LEVEL)
    ranges = stats.rank_ranges(better[separated], worse[separated], len(scored))
    entries = []
    for number, (each, (low, high)) in enumerate(zip(scored, ranges, strict=True)):
        versus, notes = None, diverged[number]
        if number > 0:
            place = number - 1  # the pairs with the best entry come first
            p_value = float(adjusted[place]) if testable[place] else None
            more_seeds, needs_images = outlook(pairs[place], p_value, len(adjusted))
            difference = -float(pairs.difference[place])
            versus = Versus(difference, p_value, bool(separated[place]), more_seeds)
            notes += (warnings.MORE_IMAGES.format(" to the best"),) * needs_images
        ranked = {"rank_low": low, "rank_high": high, "scores": each.scores(metric), "versus_best": versus}
        entries.append(_entry(each, budgets, notes, **ranked))
    return entries


def _entry(measured: Measured, budgets: _Budgets, notes: tuple[str, ...] = (), **ranked: Any) -> Entry:
    """Build an entry with fields from its ranking; of the other entries it needs only the lowest costs."""
    runs, records = measured.runs, measured.records
    ranked |= {name: _mean_of(measured.costs(name)) for name in _COSTS}
    histories = [_by_epoch(run.history) for run in records]
    at_passes, at_seconds = (
        _top1_at(histories, measured.costs(cost), cost, budget) for cost, budget in budgets.items()
    )
    tuning, tuning_notes = warnings.tuning_budget(runs)
    best_epochs = [run.metrics.best_test if run.metrics else None for run in records]
    return Entry(
        label=runs.label,
        status="measured",
        spec=runs.spec,
        num_seeds=len(records),
        summaries={
            name: stats.summarize(measured.scores(name).values(), measured.spreads.get(name), row.bounds)
            for name, row in METRICS.items()
            if records and not measured.without(name)
        },
        best_test_top1=_mean_of([valid(best.top1, "top1") if best else None for best in best_epochs]),
        top1_at_equal_passes=at_passes,
        top1_at_equal_seconds=at_seconds,
        tuning=tuning,
        mean_perturbation_norm=_mean_of([run.method.mean_perturbation_norm for run in records]),
        mean_gradient_cosine=_mean_of([run.method.mean_gradient_cosine for run in records]),
        curve=_mean_curve(histories),
        unfinished=dict(sorted(Counter(run.status for run in runs.unfinished).items())),
        records=tuple(run.id for run in records),
        unfinished_records=tuple(run.id for run in runs.unfinished),
        notes=(*runs.notes, *measured.notes, *tuning_notes, *notes),
        **ranked,
    )


def _mean_of(values: Sequence[float | None]) -> float | None:
    """Compute the mean of numbers; None unless all are known, finite and small enough to add."""
    known = [value for value in values if value is not None and abs(value) <= LARGEST]
    return fmean(known) if known and len(known) == len(values) else None


def _by_epoch(history: Sequence[Mapping[str, Any]]) -> _History:
    """Index rows by epoch; of several rows of one epoch the last counts."""
    rows = [row for row in history if _is_within(row.get("epoch"), 1, 1e9)]
    return {int(row["epoch"]): row for row in rows if row["epoch"] % 1 == 0}


def _mean_curve(histories: Sequence[_History]) -> tuple[CurvePoint, ...]:
    """Compute means over runs at the end of every epoch that all runs reached."""
    epochs = sorted(set.intersection(*map(set, histories))) if histories else []
    if not epochs:
        return ()
    rows = [history[epoch] for history in histories for epoch in epochs]
    columns = []
    for key, bounds in _CURVE.items():
        values = _numbers([row.get(key) for row in rows], bounds).reshape(len(histories), len(epochs))
        columns.append([None if each != each else each for each in values.mean(axis=0).tolist()])
    return tuple(CurvePoint(*point) for point in zip(epochs, *columns, strict=True))


def _top1_at(
    histories: Sequence[_History], totals: Sequence[float | None], cost: str, budget: float | None
) -> float | None:
    """Compute the mean over runs of top-1 at the last evaluated epoch within a budget; None if one has none.

    Runs of one entry cost slightly different times. Each may spend the same share of its own total, such that
    the budget is their average; the entry that the budget was taken from thus spends all of it. Unless all
    totals are known, each run may spend the budget itself.
    """
    if budget is None or not histories:
        return None
    average = _mean_of(totals)
    budgets = [budget / average * (total or 0.0) if average else budget for total in totals]
    last = []
    for history, own in zip(histories, budgets, strict=True):
        within = (
            history[epoch]["test_top1"]
            for epoch in sorted(history, reverse=True)
            if _is_within(history[epoch].get(cost), 0.0, own * (1 + _SLACK))
            and _is_within(history[epoch].get("test_top1"), 0.0, 1.0)
        )
        last.append(next(within, None))
    return _mean_of(last)


def _is_within(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high


def _numbers(values: Sequence[Any], bounds: tuple[float, float]) -> np.ndarray:
    """Convert values to floats; NaN for all that are no number within ``bounds``."""
    usable = [
        value if type(value) is float or (type(value) is int and abs(value) <= LARGEST) else np.nan
        for value in values
    ]
    numbers = np.array(usable, dtype=float)
    return np.where((numbers >= bounds[0]) & (numbers <= bounds[1]), numbers, np.nan)
