"""The plain data of a leaderboard: groups of entries, which every format reads.

Fractions are in 0..1, times in seconds, memory in bytes; None means "not measured" or "cannot be told".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Summary:
    """Mean over seeds. ``std`` has n − 1 in the denominator; it and the interval are None for one seed."""

    mean: float
    std: float | None = None
    ci95: tuple[float, float] | None = None


@dataclass(frozen=True)
class CurvePoint:
    """Means over an entry's seeds at the end of an epoch; the costs are sums since the start."""

    epoch: int
    gradient_passes: float | None
    train_seconds: float | None
    train_loss: float | None
    test_top1: float | None


@dataclass(frozen=True)
class TuningBudget:
    """Cost of the search that chose an entry's options on held-out images."""

    trials: int
    gradient_passes: float


@dataclass(frozen=True)
class Versus:
    """Comparison of an entry with the best entry of its group, or with the baseline."""

    difference: float  # of the ranking metric, this entry minus the other; over the seeds that are compared
    p_value: float | None  # two-sided, corrected over all pairs tested and all looks; None if untestable
    separated: bool  # whether the data tell the two apart
    # About how many more seeds each needs if the difference is real; None if separated or if none helps.
    more_seeds: int | None
    # The same for the smallest and the largest spread that the seeds allow (80 %); no end: more than 1,000.
    more_seeds_range: tuple[int, int | None] | None = None
    p_alone: float | None = None  # of this pair alone, uncorrected
    ci95: tuple[float, float] | None = None  # of the difference of this pair alone


@dataclass(frozen=True)
class PublishedSource:
    """Publication and table that a reported row comes from."""

    title: str
    arxiv: str | None
    year: int | None
    table: str
    protocol: str
    caveat: str | None


@dataclass(frozen=True)
class Entry:
    """One optimizer's row. Means are over its completed seeds."""

    label: str
    status: Literal["measured", "reported"]
    spec: Mapping[str, Any]
    rank_low: int | None = None  # best rank that the seeds allow; None if none completed, or if reported
    rank_high: int | None = None
    num_seeds: int = 0
    # By metric; missing if a completed run has no valid value: without that seed the mean would flatter.
    summaries: Mapping[str, Summary] = field(default_factory=dict)
    best_test_top1: float | None = None  # the best epoch picked on the test split: never ranks
    gradient_passes: float | None = None
    train_seconds: float | None = None
    images_per_second: float | None = None
    peak_memory_bytes: float | None = None
    top1_at_equal_passes: float | None = None  # at the group's equal_passes, from the histories
    top1_at_equal_seconds: float | None = None
    tuning: TuningBudget | None = None
    mean_perturbation_norm: float | None = None
    mean_gradient_cosine: float | None = None
    scores: Mapping[int, float] = field(default_factory=dict)  # the ranking metric by seed
    # By the names of `sharpness.MEASURES`; empty unless all seeds were measured as the group's others.
    sharpness: Mapping[str, Summary] = field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    versus_best: Versus | None = None  # None for the best itself, and where a baseline was named
    versus_baseline: Versus | None = None
    unfinished: Mapping[str, int] = field(default_factory=dict)  # number of runs by status
    records: tuple[str, ...] = ()  # ids of the runs counted, by seed
    unfinished_records: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source: PublishedSource | None = None  # where a reported row was printed

    @property
    def num_failed(self) -> int:
        """Number of runs that did not complete, whatever the reason."""
        return sum(self.unfinished.values())

    @property
    def top1(self) -> Summary | None:
        return self.summaries.get("top1")

    def summary(self, metric: str) -> Summary | None:
        """Return a metric's summary without numbers that are not finite; None if its mean is none."""
        found = self.summaries.get(metric)
        if found is None or not math.isfinite(found.mean):
            return None
        has_interval = found.ci95 and all(map(math.isfinite, found.ci95))
        return Summary(found.mean, finite(found.std), found.ci95 if has_interval else None)


@dataclass(frozen=True)
class Group:
    """One ranking: measured entries by the metric, those without it, those never completed, reported ones."""

    dataset: str
    model: str
    protocol: str  # one line for people
    recipe: Mapping[str, Any]  # the shared part; empty if all rows are reported
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()  # doubts about the whole comparison
    metric: str = "top1"
    equal_passes: float | None = None  # gradient passes of the cheapest entry, at which all are compared
    equal_seconds: float | None = None  # likewise in seconds of training
    baseline: str | None = None  # label of the entry that all others, and no other two, are compared with
    num_pairs: int = 0  # of entries that are tested together
    num_classes: int | None = None
    # Smallest true difference to the best, or to the baseline, that is found four times in five: the
    # least certain of these comparisons decides. None if nothing can be tested.
    detectable: float | None = None
    looks: int = 1  # at the growing data, over which the error is kept

    @property
    def best(self) -> tuple[Entry, ...]:
        """The measured entries that the data cannot rule out as the best."""
        return tuple(entry for entry in self.entries if entry.rank_low == 1)

    @property
    def tested_against(self) -> Entry | None:
        """The entry that each other one is compared with: the baseline, else the one of the best mean."""
        named = [each for each in self.measured if each.label == self.baseline]
        scored = [each for each in self.measured if each.summary(self.metric)]
        return next(iter(named or scored), None)

    @property
    def measured(self) -> tuple[Entry, ...]:
        """The entries that ran with pugdft."""
        return tuple(entry for entry in self.entries if entry.status == "measured")

    @property
    def reported(self) -> tuple[Entry, ...]:
        """The entries that others printed."""
        return tuple(entry for entry in self.entries if entry.status == "reported")


def finite(value: float | None) -> float | None:
    """Return ``value`` unless it is missing, infinite or not a number."""
    return value if value is not None and math.isfinite(value) else None
