"""Groups of runs to ranked entries: what every renderer shows."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pugdft.errors import UserError
from pugdft.leaderboard.costs import by_epoch, mean_curve, mean_of, smallest, top1_at
from pugdft.leaderboard.entry import Entry, Group, Summary, Versus
from pugdft.leaderboard.grouping import RunEntry, RunGroup, chosen, group_runs
from pugdft.leaderboard.load import (
    Loaded,
    PerImage,
    read_per_image,
    without_garbage_collection,
)
from pugdft.leaderboard.power import needs_more_images, seeds_needed
from pugdft.leaderboard.stats import (
    LEVEL,
    Pairs,
    Sample,
    Spread,
    compare_all,
    holm_adjusted,
    mean,
    ranges_of,
    spread_of,
    summarize,
)
from pugdft.leaderboard.warnings import group_doubts, listed, tuning_budget, unpaired
from pugdft.predictions import METRICS
from pugdft.records import RunRecord


@dataclass(frozen=True)
class Measured:
    """One entry's numbers.

    Attributes:
        values: of each metric by seed, None where a completed run has no valid one.
        spreads: of the metrics' means over seeds and test images, where predictions are stored for all runs.
        images: of the ranking metric, each test image by seed; likewise.
        split: which images those are, and in which order.
    """

    runs: RunEntry
    values: Mapping[str, Mapping[int, float | None]]
    spreads: Mapping[str, Spread] = field(default_factory=dict)
    images: Mapping[int, np.ndarray] | None = None
    split: str | None = None
    notes: tuple[str, ...] = ()

    def scores(self, metric: str) -> dict[int, float]:
        """The valid values by seed."""
        return {seed: value for seed, value in self.values[metric].items() if value is not None}

    def without(self, metric: str) -> list[int]:
        """Completed seeds without a valid value."""
        return [seed for seed, value in self.values[metric].items() if value is None]

    def sample(self, metric: str) -> Sample:
        """For comparisons by the metric that ``images`` are of."""
        return Sample(self.scores(metric), self.images)


def without_lost(entry: RunEntry, metric: str) -> RunEntry:
    """The entry, of whose runs those have diverged that evaluated to a loss that is no number.

    Their network's outputs are no numbers either, so the accuracy that they have on record is that of
    nothing. By the loss itself they have no figure, which ranks last. A loss without end is another matter:
    one image's may overflow where all predictions are as good as ever.
    """
    lost = [run.record for run in entry.completed if _is_lost(run.record)]
    if not lost or metric == "loss":
        return entry
    seeds = listed([str(record.seed) for record in lost])
    return replace(
        entry,
        completed=tuple(run for run in entry.completed if not _is_lost(run.record)),
        unfinished=(*entry.unfinished, *(each.model_copy(update={"status": "diverged"}) for each in lost)),
        notes=(*entry.notes, f"the loss of seed {seeds} is not a number: counted as diverged"),
    )


def measure(entries: Sequence[RunEntry], metric: str) -> list[Measured]:
    """Every entry's numbers; per-image ones only of entries that met the same images in the same order."""
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


def valid(value: float | None, metric: str) -> float | None:
    """The value, unless it is missing or none of the metric's: NaN, more than everything."""
    low, high = METRICS[metric].bounds
    return value if value is not None and low <= value <= high else None


def num_test_images(measured: Sequence[Measured]) -> int | None:
    """The test split's size, the smallest if records disagree; None if one does not say it."""
    records = [run.record for each in measured for run in each.runs.completed]
    smallest = min((record.data.sizes.get("test", 0) if record.data else 0 for record in records), default=0)
    return smallest if smallest > 0 else None


def scope_notes(measured: Sequence[Measured], metric: str) -> tuple[str, ...]:
    """How far ranks reach, where they reach less far than one would think: entries that can be compared."""
    several = [each for each in measured if len(each.runs.completed) > 1]
    if len(several) < 2:
        return ()
    notes = []
    if len({frozenset(each.values[metric]) for each in several}) > 1:
        notes.append(
            "entries ran different seeds: two are compared over those they share, unpaired if they share none"
        )
    without = [each.runs.label for each in several if each.images is None]
    if METRICS[metric].per_image is None:
        notes.append(f"{METRICS[metric].name} is no mean over images: ranks speak of these test images only")
    elif len(without) == len(several):
        notes.append("without stored predictions, ranks speak of these test images only")
    elif without:
        named = ", ".join(without[:6]) + (f" and {len(without) - 6} more" if len(without) > 6 else "")
        notes.append(f"without stored predictions, ranks of {named} speak of these test images only")
    return tuple(notes)


def _measure(entry: RunEntry, metric: str) -> Measured:
    values: dict[str, dict[int, float | None]] = {
        name: {run.record.seed: _value(run.record, name) for run in entry.completed} for name in METRICS
    }
    images, notes = _per_image(entry)
    splits = {each.split for each in images.values()}
    if len(images) < len(entry.completed) or len(splits) != 1:
        if len(splits) > 1:
            notes.append("its seeds' test images stand in different orders: predictions are not used")
        return Measured(entry, values, notes=tuple(notes))
    known = [name for name in METRICS if all(name in each.scores for each in images.values())]
    by_metric = {name: {seed: each.scores[name] for seed, each in images.items()} for name in known}
    spreads: dict[str, Spread] = {
        name: spread_of(np.stack(list(by_seed.values())))
        for name, by_seed in by_metric.items()
        if len(by_seed) > 1 and min(map(len, by_seed.values())) > 1
    }
    return Measured(entry, values, spreads, by_metric.get(metric), splits.pop(), tuple(notes))


def _per_image(entry: RunEntry) -> tuple[dict[int, PerImage], list[str]]:
    """By seed what the predictions give, and why some are not used."""
    found: dict[int, PerImage] = {}
    reasons: dict[str, list[int]] = defaultdict(list)
    for run in entry.completed:
        try:
            images = read_per_image(run)
        except UserError as error:
            reasons[str(error)].append(run.record.seed)
            continue
        if images is not None:
            found[run.record.seed] = images
    notes = [
        f"predictions of seed {', '.join(map(str, seeds))} not used: {reason}"
        for reason, seeds in sorted(reasons.items())
    ]
    return found, notes


def _is_lost(record: RunRecord) -> bool:
    test = record.metrics.test if record.metrics else None
    return test is not None and math.isnan(test.loss)


def _value(record: RunRecord, metric: str) -> float | None:
    test = record.metrics.test if record.metrics else None
    return valid(getattr(test, metric), metric) if test else None


# A record writes 0 for a cost that nobody measured.
_COSTS: Mapping[str, Callable[[RunRecord], float | None]] = {
    "gradient_passes": lambda run: run.cost.gradient_passes or None,
    "train_seconds": lambda run: run.cost.train_seconds or None,
}

_Budgets = Mapping[str, float | None]


@without_garbage_collection()
def build_leaderboard(
    records: Sequence[Loaded],
    dataset: str | None = None,
    model: str | None = None,
    metric: str = "top1",
) -> list[Group]:
    """A ranking for each data set × model × protocol. Runs of a search are left out, and counted in a note.

    Args:
        records: from :func:`pugdft.leaderboard.load.collect`.
        dataset: keep this one: its name, or a part of it that no other name has; case does not matter.
        model: likewise.
        metric: what ranks, of the last epoch on the test split.

    Raises:
        UserError: a filter matches nothing, or several names; the message lists what exists.
    """
    return [_ranked(group, metric) for group in chosen_groups(group_runs(records), dataset, model)]


def chosen_groups(groups: list[RunGroup], dataset: str | None, model: str | None) -> list[RunGroup]:
    """Those under the filters.

    Raises:
        UserError: as :func:`build_leaderboard`.
    """
    if dataset is not None:
        name = chosen("data set", dataset, {group.dataset for group in groups})
        groups = [group for group in groups if group.dataset == name]
    if model is not None:
        name = chosen("model", model, {group.model for group in groups})
        groups = [group for group in groups if group.model == name]
    return groups


def _ranked(group: RunGroup, metric: str) -> Group:
    """Ranks for every entry with a completed run; one without the metric comes behind all that have it."""
    group = replace(group, entries=tuple(without_lost(entry, metric) for entry in group.entries))
    measured = measure(group.entries, metric)
    started = [each for each in measured if each.runs.completed]
    scored = _best_first([each for each in started if not each.without(metric)], metric)
    conflicts, pairing_doubts = unpaired([each.runs for each in scored])
    budgets = {
        cost: smallest(mean_of(_records(each), read) for each in scored) for cost, read in _COSTS.items()
    }
    entries = _compared(scored, metric, conflicts, budgets)
    without = [each for each in started if each.without(metric)]
    entries += _without_metric(without, metric, len(scored), budgets)
    entries += _by_label(_entry(each, budgets) for each in measured if not each.runs.completed)
    return Group(
        dataset=group.dataset,
        model=group.model,
        protocol=group.protocol,
        recipe=group.recipe,
        entries=tuple(entries),
        notes=(
            *group.notes,
            *group_doubts(group.entries),
            *pairing_doubts,
            *scope_notes(scored, metric),
        ),
        metric=metric,
        equal_passes=budgets["gradient_passes"],
        equal_seconds=budgets["train_seconds"],
    )


def _best_first(measured: Sequence[Measured], metric: str) -> list[Measured]:
    sign = -1 if METRICS[metric].higher_is_better else 1
    return sorted(measured, key=lambda each: (sign * mean(each.scores(metric).values()), each.runs.label))


def _by_label(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry.label)


def _records(measured: Measured) -> list[RunRecord]:
    return [run.record for run in measured.runs.completed]


def _compared(
    scored: Sequence[Measured], metric: str, conflicts: np.ndarray | None, budgets: _Budgets
) -> list[Entry]:
    """Entries with ranks, best first, each held against the first.

    The seeds that an optimizer survived say nothing of those that diverged: by them alone it is never told
    apart from an entry below it.
    """
    num_images = num_test_images(scored) if METRICS[metric].is_share_of_images else None
    pairs = compare_all([each.sample(metric) for each in scored], num_images, conflicts)
    adjusted = holm_adjusted(pairs.p_values)
    diverged = [_diverged(each) for each in scored]
    testable = pairs.testable
    if any(diverged):
        first, second = pairs.first_and_second()
        better = np.where((pairs.difference > 0) == METRICS[metric].higher_is_better, first, second)
        testable = testable & ~np.array([note is not None for note in diverged])[better]
    ranges = ranges_of(pairs, testable & (adjusted <= LEVEL), METRICS[metric].higher_is_better)
    entries = []
    for each, note, (low, high) in zip(scored, diverged, ranges, strict=True):
        entry = _entry(each, budgets)
        notes = (*entry.notes, note) if note else entry.notes
        entries.append(replace(entry, rank_low=low, rank_high=high, scores=each.scores(metric), notes=notes))
    if not entries:
        return []
    others, places = pairs.of_entry(0)
    for other, place in zip(others, places, strict=True):
        versus, note = _versus(pairs, int(place), float(adjusted[place]) if testable[place] else None)
        entry = entries[other]
        notes = (*entry.notes, note) if note else entry.notes
        entries[other] = replace(entry, versus_best=versus, notes=notes)
    return entries


def _versus(pairs: Pairs, place: int, adjusted: float | None) -> tuple[Versus, str | None]:
    """An entry against the best, from the pair that has the best first, and what is to be said of it."""
    difference = -float(pairs.difference[place])
    if adjusted is None:
        return Versus(difference, None, False, None), None
    if adjusted <= LEVEL or difference == 0:
        return Versus(difference, adjusted, adjusted <= LEVEL, None), None
    num_pairs, image_variance = len(pairs.difference), float(pairs.spread.images[place])
    # However alike a few seeds came out, finite images make them spread.
    least = float(pairs.spread.residual[place]) * pairs.num_seeds[place]
    spread = math.sqrt(max(pairs.seed_variance[place], least))
    needed = seeds_needed(difference, spread, num_pairs, image_variance=image_variance)
    note = None
    if needs_more_images(difference, num_pairs, image_variance=image_variance):
        note = "so small a difference to the best would need more test images, whatever the number of seeds"
    more = None if needed is None else max(1, needed - int(pairs.num_seeds[place]))
    return Versus(difference, adjusted, False, more), note


def _diverged(measured: Measured) -> str | None:
    """What is said of an entry with seeds that diverged and no run completed."""
    runs = measured.runs
    lost = runs.lost_seeds().get("diverged")
    if not lost:
        return None
    seeds = {run.seed for run in (*_records(measured), *runs.unfinished)}
    return f"{len(lost)} of {len(seeds)} seeds diverged: not ranked above others"


def _without_metric(
    measured: Sequence[Measured], metric: str, num_scored: int, budgets: _Budgets
) -> list[Entry]:
    """Entries that share the last ranks: leaving out the seed that has no figure would flatter them."""
    entries = []
    for each in measured:
        seeds = ", ".join(map(str, each.without(metric)))
        entry = _entry(each, budgets)
        notes = (*entry.notes, f"no valid {METRICS[metric].name} for seed {seeds}: ranked last")
        ranks = num_scored + 1, num_scored + len(measured)
        entries.append(replace(entry, rank_low=ranks[0], rank_high=ranks[1], notes=notes))
    return _by_label(entries)


def _entry(measured: Measured, budgets: _Budgets) -> Entry:
    """Everything about one entry that does not depend on the others but through the cheapest one's cost."""
    runs, records = measured.runs, _records(measured)
    histories = [by_epoch(run.history) for run in records]
    at_equal = {
        cost: top1_at(histories, [read(run) for run in records], cost, budgets[cost])
        for cost, read in _COSTS.items()
    }
    tuning, doubt = tuning_budget(runs)
    return Entry(
        label=runs.label,
        status="measured",
        spec=runs.spec,
        num_seeds=len(records),
        summaries={name: found for name in METRICS if (found := _summary(measured, name))},
        best_test_top1=mean_of(
            records,
            lambda run: (
                valid(run.metrics.best_test.top1, "top1") if run.metrics and run.metrics.best_test else None
            ),
        ),
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
        notes=(*runs.notes, *measured.notes, *((doubt,) if doubt else ())),
    )


def _summary(measured: Measured, metric: str) -> Summary | None:
    if not measured.runs.completed or measured.without(metric):
        return None
    return summarize(measured.scores(metric), measured.spreads.get(metric), METRICS[metric].bounds)
