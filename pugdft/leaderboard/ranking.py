"""Groups of runs to ranked entries: what every renderer shows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from pugdft.leaderboard.collect import Loaded, without_garbage_collection
from pugdft.leaderboard.costs import mean_curve, mean_of, smallest, top1_at
from pugdft.leaderboard.crossed import LEVEL
from pugdft.leaderboard.doubts import group_doubts, tuning_budget, unpaired
from pugdft.leaderboard.entry import HIGHER_IS_BETTER, Entry, Group, Metric, Summary, Versus
from pugdft.leaderboard.filters import chosen
from pugdft.leaderboard.grouping import RunGroup, group_runs
from pugdft.leaderboard.pairs import Pairs, compare_all
from pugdft.leaderboard.power import needs_more_images, seeds_needed
from pugdft.leaderboard.samples import BOUNDS, NAMES, Measured, measure, num_test_images, scope_notes, valid
from pugdft.leaderboard.statistics import holm_adjusted, mean, ranges_of, summarize


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
    measured = measure(group.entries, metric)
    started = [each for each in measured if each.runs.completed]
    scored = _best_first([each for each in started if not each.without(metric)], metric)
    conflicts, pairing_doubts = unpaired([each.runs for each in scored])
    entries = _compared(scored, metric, conflicts)
    passes = smallest(entry.gradient_passes for entry in entries)
    seconds = smallest(entry.train_seconds for entry in entries)
    entries += _without_metric([each for each in started if each.without(metric)], metric, len(scored))
    entries += _by_label(_entry(each) for each in measured if not each.runs.completed)
    return Group(
        dataset=group.dataset,
        model=group.model,
        protocol=group.protocol,
        recipe=group.recipe,
        entries=tuple(
            replace(
                entry,
                top1_at_equal_passes=top1_at(entry.curve, "gradient_passes", passes),
                top1_at_equal_seconds=top1_at(entry.curve, "train_seconds", seconds),
            )
            for entry in entries
        ),
        notes=(
            *group.notes,
            *group_doubts(group.entries),
            *pairing_doubts,
            *scope_notes(scored, metric),
        ),
        metric=metric,
        equal_passes=passes,
        equal_seconds=seconds,
    )


def _best_first(measured: Sequence[Measured], metric: Metric) -> list[Measured]:
    sign = -1 if HIGHER_IS_BETTER[metric] else 1
    return sorted(measured, key=lambda each: (sign * mean(each.scores(metric).values()), each.runs.label))


def _by_label(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry.label)


def _compared(scored: Sequence[Measured], metric: Metric, conflicts: np.ndarray | None) -> list[Entry]:
    """Entries with ranks, best first, each held against the first."""
    num_images = num_test_images(scored) if metric in ("top1", "top5") else None
    pairs = compare_all([each.sample(metric) for each in scored], num_images, conflicts)
    adjusted = holm_adjusted(pairs.p_values)
    ranges = ranges_of(pairs, adjusted <= LEVEL, HIGHER_IS_BETTER[metric])
    entries = [
        replace(_entry(each), rank_low=low, rank_high=high, scores=each.scores(metric))
        for each, (low, high) in zip(scored, ranges, strict=True)
    ]
    if not entries:
        return []
    others, places = pairs.of_entry(0)
    for other, place in zip(others, places, strict=True):
        versus, note = _versus(pairs, int(place), float(adjusted[place]))
        entry = entries[other]
        notes = (*entry.notes, note) if note else entry.notes
        entries[other] = replace(entry, versus_best=versus, notes=notes)
    return entries


def _versus(pairs: Pairs, place: int, adjusted: float) -> tuple[Versus, str | None]:
    """An entry against the best, from the pair that has the best first, and what is to be said of it."""
    difference = -float(pairs.difference[place])
    if not pairs.testable[place]:
        return Versus(difference, None, False, None), None
    if adjusted <= LEVEL or difference == 0:
        return Versus(difference, adjusted, adjusted <= LEVEL, None), None
    num_pairs, image_variance = len(pairs.difference), float(pairs.spread.images[place])
    spread = math.sqrt(pairs.seed_variance[place])
    needed = seeds_needed(difference, spread, num_pairs, image_variance=image_variance)
    note = None
    if needs_more_images(difference, num_pairs, image_variance=image_variance):
        note = "so small a difference to the best would need more test images, whatever the number of seeds"
    more = None if needed is None else max(1, needed - int(pairs.num_seeds[place]))
    return Versus(difference, adjusted, False, more), note


def _without_metric(measured: Sequence[Measured], metric: Metric, num_scored: int) -> list[Entry]:
    """Entries that share the last ranks: leaving out the seed that has no figure would flatter them."""
    entries = []
    for each in measured:
        seeds = ", ".join(map(str, each.without(metric)))
        entry = _entry(each)
        notes = (*entry.notes, f"no valid {NAMES[metric]} for seed {seeds}: ranked last")
        ranks = num_scored + 1, num_scored + len(measured)
        entries.append(replace(entry, rank_low=ranks[0], rank_high=ranks[1], notes=notes))
    return _by_label(entries)


def _entry(measured: Measured) -> Entry:
    """Everything about one entry that does not depend on the others."""
    runs = measured.runs
    records = [run.record for run in runs.completed]
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
        # A record writes 0 for a cost that nobody measured.
        gradient_passes=mean_of(records, lambda run: run.cost.gradient_passes or None),
        train_seconds=mean_of(records, lambda run: run.cost.train_seconds or None),
        images_per_second=mean_of(records, lambda run: run.cost.images_per_second or None),
        peak_memory_bytes=mean_of(records, lambda run: run.cost.peak_memory_bytes or None),
        tuning=tuning,
        mean_perturbation_norm=mean_of(records, lambda run: run.method.mean_perturbation_norm),
        mean_gradient_cosine=mean_of(records, lambda run: run.method.mean_gradient_cosine),
        curve=mean_curve(records),
        unfinished=dict(sorted(Counter(run.status for run in runs.unfinished).items())),
        records=tuple(run.id for run in records),
        unfinished_records=tuple(run.id for run in runs.unfinished),
        notes=(*runs.notes, *measured.notes, *((doubt,) if doubt else ())),
    )


def _summary(measured: Measured, metric: Metric) -> Summary | None:
    if not measured.runs.completed or measured.without(metric):
        return None
    return summarize(measured.scores(metric), measured.spreads.get(metric), BOUNDS[metric])
