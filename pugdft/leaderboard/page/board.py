"""Which columns the tables have: for each what to read, how to write it, and what it means."""

from __future__ import annotations

from collections.abc import Sequence

from pugdft.leaderboard.columns import NOTHING
from pugdft.leaderboard.entry import Entry, Group
from pugdft.leaderboard.page.cells import Column, Section
from pugdft.leaderboard.page.quantities import (
    COUNT,
    MEASURES,
    MEMORY,
    PERCENT,
    Unit,
    passes_unit,
    seconds_unit,
)

_NORM, _COSINE = Unit("", 1, 3), Unit("", 1, 2)


def measured_columns(group: Group, entries: Sequence[Entry]) -> list[Column]:
    """Columns of the ranked entries, without those in which no entry has anything."""
    metric = group.metric
    passes = passes_unit(entry.gradient_passes for entry in entries)
    seconds = seconds_unit(entry.train_seconds for entry in entries)
    equal_passes = passes_unit([group.equal_passes]).phrase(group.equal_passes)
    equal_seconds = seconds_unit([group.equal_seconds]).phrase(group.equal_seconds)
    test = Section("test split, last epoch", entries)
    cost = Section("cost of a run", entries)
    equal = Section("top-1 at equal cost", entries)
    evidence = Section("evidence", entries)
    never = Section("never ranks", entries)
    columns = [
        Section("", entries).count("seeds", "Completed runs.", lambda entry: entry.num_seeds),
        test.summary(metric),
        test.interval(metric),
        *(test.mean(other) for other in MEASURES if other != metric),
        cost.column(
            "passes",
            "Forward-backward passes over a batch. An update of SAM or PUGD takes two.",
            passes,
            lambda entry: entry.gradient_passes,
            "ascending",
        ),
        cost.column(
            "training",
            "Time of training, without evaluation.",
            seconds,
            lambda entry: entry.train_seconds,
            "ascending",
        ),
        cost.column("images/s", "Images of updates a second.", COUNT, lambda entry: entry.images_per_second),
        cost.column(
            "memory",
            "Peak memory of the device.",
            MEMORY,
            lambda entry: entry.peak_memory_bytes,
            "ascending",
        ),
        cost.count(
            "tuning\ntrials",
            "Trials on held-out images, spent to choose the options.",
            lambda entry: entry.tuning.trials if entry.tuning else None,
            "ascending",
        ),
        equal.column(
            "equal\npasses" if group.equal_passes is None else f"{equal_passes}\npasses",
            "After as many gradient passes as the cheapest entry takes in all.",
            PERCENT,
            lambda entry: entry.top1_at_equal_passes,
        ),
        equal.column(
            "equal\ntime" if group.equal_seconds is None else equal_seconds.replace(" ", "\n"),
            "After as much training time as the cheapest entry takes in all.",
            PERCENT,
            lambda entry: entry.top1_at_equal_seconds,
        ),
        evidence.column(
            "‖e‖", "Mean length of the perturbation.", _NORM, lambda entry: entry.mean_perturbation_norm
        ),
        evidence.column(
            "cos",
            "Mean cosine between both gradients of an update.",
            _COSINE,
            lambda entry: entry.mean_gradient_cosine,
        ),
        never.best_epoch(),
    ]
    return _filled(columns)


def reported_columns(entries: Sequence[Entry]) -> list[Column]:
    """Columns of what others reported: numbers without ranks."""
    section = Section("", entries)
    seeds = section.count("seeds", "As stated by the source.", lambda entry: entry.num_seeds or None)
    return _filled([section.summary("top1"), section.mean("top5"), section.best_epoch(), seeds])


def _filled(columns: Sequence[Column]) -> list[Column]:
    return [
        column
        for column in columns
        if any(cell.strip or cell.text not in (NOTHING, "") for cell in column.cells)
    ]
