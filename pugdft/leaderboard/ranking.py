"""Rank groups of runs: entries with means, intervals, ranges of ranks and costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np

from pugdft.errors import ConfigIssue, collect, printable
from pugdft.leaderboard import sharpness, stats, warnings
from pugdft.leaderboard.entry import CurvePoint, Entry, Group, Versus
from pugdft.leaderboard.grouping import RunEntry, RunGroup, by_key, chosen, group_runs, is_lost
from pugdft.leaderboard.load import Loaded, PerImage, fingerprints, read_per_image, without_garbage_collection
from pugdft.leaderboard.power import Plan, outlook
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
# Counted as unfinished: records whose own predictions give other numbers or labels, and copies of a run.
CONTRADICTED, COPIED = "contradicted", "copied"
# What speaks against an optimizer; a run that somebody stopped, or copied, does not.
LOST = ("diverged", "failed", "oom", CONTRADICTED)
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
    labels: str | None = None  # digest of their labels in any order
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
    lost = [run.record.seed for run in entry.completed if is_lost(run.record)]
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


def measure(entries: Sequence[RunEntry], metric: str) -> list[Measured]:
    """Read the metrics of every entry; per-image scores only of entries with the same images in one order.

    Runs that their own predictions contradict, copies of other runs, and runs without a finite loss are set
    aside; likewise those whose test images have other labels than the others', under one ``data.sha256``.
    """
    measured = [_measure(entry, metric) for entry in entries]
    if (usual := _usual(each.labels for each in measured)) is not None:
        for place, each in enumerate(measured):
            if each.labels not in (None, usual):
                seeds = [record.seed for record in each.records]
                entry = _set_aside(
                    each.runs, seeds, CONTRADICTED, _OTHER_LABELS.format("those of the others")
                )
                measured[place] = _measure(entry, metric)
    usual = _usual(each.split for each in measured)
    note = "its test images stand in another order than others': its predictions are not compared by image"
    return [
        replace(each, images=None, notes=(*each.notes, note)) if each.split not in (None, usual) else each
        for each in measured
    ]


def _usual(digests: Iterable[str | None]) -> str | None:
    """The digest that most have, of equally frequent ones the highest."""
    counts = Counter(filter(None, digests))
    return max(counts, key=lambda each: (counts[each], each), default=None)


def _without_copies(entry: RunEntry, digests: Mapping[int, str]) -> RunEntry:
    """Count runs of several seeds that left the same weights, predictions or history as one run."""
    first_of: dict[str, int] = {}
    copies: dict[int, list[int]] = {}
    for run in entry.completed:
        seed = run.record.seed
        marks = fingerprints(run.record) | {digests[seed]} if seed in digests else fingerprints(run.record)
        known = min((first_of[mark] for mark in marks if mark in first_of), default=None)
        if known is not None:
            copies.setdefault(known, []).append(seed)
        for mark in marks:
            first_of.setdefault(mark, seed if known is None else known)
    for first, seeds in copies.items():
        note = (
            f"seed {warnings.listed(seeds)} left the weights, predictions or history of seed {first}: "
            "one run, which counts once"
        )
        entry = _set_aside(entry, seeds, COPIED, note)
    return entry


_OTHER_LABELS = "left out, for the labels of its test images are not {}, on the same data.sha256"


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
    entry = _set_aside(entry, contradicted, CONTRADICTED, note)
    labels = _usual(each.labels for each in images.values())
    others = [seed for seed, each in images.items() if each.labels != labels and seed not in contradicted]
    note = _OTHER_LABELS.format("those of its other seeds")
    entry = _set_aside(entry, others, CONTRADICTED, f"seed {warnings.listed(others)} {note}")
    entry = _without_lost(_without_copies(entry, {seed: each.digest for seed, each in images.items()}))
    kept = {run.record.seed for run in entry.completed}
    images = {seed: each for seed, each in images.items() if seed in kept}
    faults = [each for each in faults if int(each.where) in kept]
    records = [run.record for run in entry.completed]
    tests = {each.seed: each.metrics.test if each.metrics else None for each in records}
    values = {
        name: {seed: valid(getattr(test, name, None), name) for seed, test in tests.items()}
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
        return Measured(entry, values, labels=labels, notes=tuple(notes))
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
    return Measured(entry, values, spreads, by_metric.get(metric), splits.pop(), labels, tuple(notes))


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
    records: Sequence[Loaded],
    dataset: str | None = None,
    model: str | None = None,
    metric: str = "top1",
    *,
    baseline: str | None = None,
    looks: int = 1,
) -> list[Group]:
    """Rank the runs of each data set × model × protocol by ``metric`` of the last epoch on the test split.

    Runs of a search are only counted in a note. ``dataset`` and ``model`` are names, or parts that no other
    name has, in any case; UserError if one matches nothing, or several names. With ``baseline``, an entry's
    label or a part of it, each other entry is compared with that one alone, in the groups that have it.
    ``looks`` is the number of looks at the growing data over which the error is kept; more of them if the
    records were planned in more steps.
    """
    groups = group_runs(records, dataset, model)
    if baseline is None:
        return [_ranked(group, metric, None, looks) for group in groups]
    name = chosen("optimizer", baseline, (entry.label for group in groups for entry in group.entries))
    return [_ranked(group, metric, name, looks) for group in groups]


def _ranked(group: RunGroup, metric: str, baseline: str | None, looks: int) -> Group:
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
    runs = [each.runs for each in measured]
    planned, plan_notes = warnings.planned(runs)
    if baseline not in [each.runs.label for each in scored]:
        baseline = None
    design = _Design(metric, conflicts, baseline, max(looks, planned))
    entries, detectable = _compared(scored, design, budgets)
    for each in started:
        if seeds := each.without(metric):
            # Its mean without the missing seed would flatter it.
            note = f"no valid {METRICS[metric].name} for seed {', '.join(map(str, seeds))}: ranked last"
            entries.append(_entry(each, budgets, (note,), rank_low=len(scored) + 1, rank_high=len(started)))
    entries += [_entry(each, budgets) for each in measured if not each.runs.completed]
    doubts = (
        *warnings.condition_warnings(runs),
        *plan_notes,
        *pairing_notes,
        *warnings.search_notes(scored),
        *warnings.spread_notes(scored, metric),
        *warnings.scope_notes(scored, metric),
    )
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
        baseline=baseline,
        num_pairs=design.num_tests(len(scored)),
        detectable=detectable,
        looks=design.looks,
        num_classes=max(
            (run.data.classes for each in started for run in each.records if run.data), default=None
        ),
    )


@dataclass(frozen=True)
class _Design:
    """Which pairs of entries are tested, and for how many looks."""

    metric: str
    conflicts: np.ndarray | None
    baseline: str | None
    looks: int

    def num_tests(self, num_entries: int) -> int:
        return num_entries - 1 if self.baseline else num_entries * (num_entries - 1) // 2


def _with_sharpness(entries: Sequence[Entry], measured: Sequence[Measured]) -> list[Entry]:
    """Add what was measured of the minima, on the sample and with the options that most runs share."""
    runs = {each.runs.label: each.runs.completed for each in measured}
    comparison = sharpness.usual_comparison([run for completed in runs.values() for run in completed])
    if comparison is None:
        return list(entries)
    found = {label: sharpness.summaries(completed, comparison) for label, completed in runs.items()}
    return [replace(entry, sharpness=found[entry.label]) for entry in entries]


def _compared(
    scored: Sequence[Measured], design: _Design, budgets: _Budgets
) -> tuple[list[Entry], float | None]:
    """Build ranked entries, best first, each compared with the first or with the baseline.

    Also return the smallest true difference that the least certain of these comparisons finds.
    """
    metric = design.metric
    row, size = METRICS[metric], len(scored)
    num_images = num_test_images(scored) if row.is_share_of_images else None
    samples = [stats.EntryScores(each.scores(metric), each.images) for each in scored]
    pairs = stats.compare_all(samples, num_images, design.conflicts)
    labels = [each.runs.label for each in scored]
    center = labels.index(design.baseline) if design.baseline else 0
    first, second = np.triu_indices(size, 1)
    tested = (first == center) | (second == center) if design.baseline else np.ones(len(first), dtype=bool)
    adjusted, num_tests = np.ones(len(first)), design.num_tests(size)
    factor = stats.looks_factor(design.looks, stats.LEVEL / max(1, num_tests))
    adjusted[tested] = np.minimum(1.0, factor * stats.holm_adjusted(pairs.p_value[tested]))
    lost_notes = [_lost_note(each.runs) for each in scored]
    better, worse = stats.better_and_worse(pairs.difference, size, row.higher_is_better)
    # Seeds that completed say nothing of those that came to nothing.
    testable = pairs.testable & ~np.array([bool(notes) for notes in lost_notes], dtype=bool)[better]
    separated = tested & testable & (adjusted <= stats.LEVEL)
    ranges = stats.rank_ranges(better[separated], worse[separated], size)
    entries = []
    for number, (each, (low, high)) in enumerate(zip(scored, ranges, strict=True)):
        versus, notes = None, lost_notes[number]
        if number != center:
            place = int(np.flatnonzero((first == min(number, center)) & (second == max(number, center)))[0])
            pair, sign = pairs[place], 1 if number < center else -1
            p_value = float(adjusted[place]) if testable[place] else None
            ahead = outlook(pair, p_value, num_tests)
            interval = None
            if bounds := pair.interval():
                below, above = sorted(sign * bound for bound in bounds)
                interval = (below, above)
            versus = Versus(
                sign * pair.difference,
                p_value,
                bool(separated[place]),
                ahead.more_seeds,
                ahead.range,
                float(pair.p_value) if pair.testable else None,
                interval,
            )
            whom = f" to {design.baseline}" if design.baseline else " to the best"
            notes += (warnings.MORE_IMAGES.format(whom),) * ahead.needs_images
        ranked = {"rank_low": low, "rank_high": high, "scores": each.scores(metric)}
        key = "versus_baseline" if design.baseline else "versus_best"
        entries.append(_entry(each, budgets, notes, **ranked, **{key: versus}))
    mine = np.flatnonzero(((first == center) | (second == center)) & testable)
    if not len(mine):
        return entries, None
    widths = pairs.spread.half_width()
    least_certain = pairs[int(mine[np.argmax(np.broadcast_to(widths, len(first))[mine])])]
    plan = replace(Plan.of(least_certain, num_tests), level=stats.LEVEL / factor)
    return entries, plan.detectable_difference(least_certain.num_seeds)


def _lost_note(runs: RunEntry) -> tuple[str, ...]:
    """Say which seeds bar an entry from ranks above others; nothing if every seed has a result."""
    lost = {status: seeds for status, seeds in runs.lost_seeds().items() if status in LOST}
    if not lost:
        return ()
    num_seeds = len({run.record.seed for run in runs.completed} | {each.seed for each in runs.unfinished})
    number = len({seed for seeds in lost.values() for seed in seeds})
    words = ", ".join(f"{len(seeds)} {status}" for status, seeds in lost.items())
    return (f"{number} of {num_seeds} seeds without a result ({words}): not ranked above others",)


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
            name: stats.summarize(
                measured.scores(name).values(),
                measured.spreads.get(name),
                row.bounds,
                num_test_images([measured]) if row.is_share_of_images else None,
            )
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
