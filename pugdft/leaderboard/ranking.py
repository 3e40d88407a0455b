"""Groups of runs to ranked entries: what every renderer shows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pugdft.leaderboard.collect import Loaded, without_garbage_collection
from pugdft.leaderboard.costs import by_epoch, mean_curve, mean_of, smallest, top1_at
from pugdft.leaderboard.crossed import LEVEL
from pugdft.leaderboard.doubts import group_doubts, tuning_budget, unpaired
from pugdft.leaderboard.entry import HIGHER_IS_BETTER, Entry, Group, Metric, Summary, Versus
from pugdft.leaderboard.filters import chosen
from pugdft.leaderboard.grouping import RunGroup, group_runs
from pugdft.leaderboard.pairs import Pairs, compare_all
from pugdft.leaderboard.power import needs_more_images, seeds_needed
from pugdft.leaderboard.samples import (
    BOUNDS,
    NAMES,
    Measured,
    measure,
    num_test_images,
    scope_notes,
    valid,
    without_lost,
)
from pugdft.leaderboard.statistics import holm_adjusted, mean, ranges_of, summarize
from pugdft.record import RunRecord

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
    metric: Metric = "top1",
) -> list[Group]:
    """A ranking for each data set × model × protocol. Runs of a search are left out, and counted in a note.

    Args:
        records: from :func:`pugdft.leaderboard.collect.collect`.
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


def _ranked(group: RunGroup, metric: Metric) -> Group:
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


def _best_first(measured: Sequence[Measured], metric: Metric) -> list[Measured]:
    sign = -1 if HIGHER_IS_BETTER[metric] else 1
    return sorted(measured, key=lambda each: (sign * mean(each.scores(metric).values()), each.runs.label))


def _by_label(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry.label)


def _records(measured: Measured) -> list[RunRecord]:
    return [run.record for run in measured.runs.completed]


def _compared(
    scored: Sequence[Measured], metric: Metric, conflicts: np.ndarray | None, budgets: _Budgets
) -> list[Entry]:
    """Entries with ranks, best first, each held against the first.

    The seeds that an optimizer survived say nothing of those that diverged: by them alone it is never told
    apart from an entry below it.
    """
    num_images = num_test_images(scored) if metric in ("top1", "top5") else None
    pairs = compare_all([each.sample(metric) for each in scored], num_images, conflicts)
    adjusted = holm_adjusted(pairs.p_values)
    diverged = [_diverged(each) for each in scored]
    testable = pairs.testable
    if any(diverged):
        first, second = pairs.first_and_second()
        better = np.where((pairs.difference > 0) == HIGHER_IS_BETTER[metric], first, second)
        testable = testable & ~np.array([note is not None for note in diverged])[better]
    ranges = ranges_of(pairs, testable & (adjusted <= LEVEL), HIGHER_IS_BETTER[metric])
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
    measured: Sequence[Measured], metric: Metric, num_scored: int, budgets: _Budgets
) -> list[Entry]:
    """Entries that share the last ranks: leaving out the seed that has no figure would flatter them."""
    entries = []
    for each in measured:
        seeds = ", ".join(map(str, each.without(metric)))
        entry = _entry(each, budgets)
        notes = (*entry.notes, f"no valid {NAMES[metric]} for seed {seeds}: ranked last")
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
        top1=_summary(measured, "top1"),
        top5=_summary(measured, "top5"),
        loss=_summary(measured, "loss"),
        ece=_summary(measured, "ece"),
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


def _summary(measured: Measured, metric: Metric) -> Summary | None:
    if not measured.runs.completed or measured.without(metric):
        return None
    return summarize(measured.scores(metric), measured.spreads.get(metric), BOUNDS[metric])
