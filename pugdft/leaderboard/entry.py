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
    """Comparison of an entry with the best entry of its group.

    Attributes:
        difference: of the ranking metric, this entry minus the best.
        p_value: two-sided, after Holm's correction over all pairs of the group; None if untestable.
        separated: whether the data tell the two apart.
        more_seeds: about how many more seeds each would need if the difference is real; None if separated or
            untestable, or if no number would do.
    """

    difference: float
    p_value: float | None
    separated: bool
    more_seeds: int | None


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
    """One optimizer's row. Means are over its completed seeds.

    Attributes:
        rank_low: best rank that the seeds allow; None if no run completed, and for reported rows.
        summaries: by metric. A metric is missing if a completed run has no valid value, as leaving that seed
            out would flatter the optimizer. By this metric such an entry ranks last.
        best_test_top1: of the best epoch picked on the test split. Comparable with papers, never ranks.
        top1_at_equal_passes: at the group's ``equal_passes``, from the histories.
        scores: the ranking metric by seed.
        unfinished: status to the number of runs that ended so.
        records: ids of the runs counted, by seed.
        source: where a reported row was printed.
    """

    label: str
    status: Literal["measured", "reported"]
    spec: Mapping[str, Any]
    rank_low: int | None = None
    rank_high: int | None = None
    num_seeds: int = 0
    summaries: Mapping[str, Summary] = field(default_factory=dict)
    best_test_top1: float | None = None
    gradient_passes: float | None = None
    train_seconds: float | None = None
    images_per_second: float | None = None
    peak_memory_bytes: float | None = None
    top1_at_equal_passes: float | None = None
    top1_at_equal_seconds: float | None = None
    tuning: TuningBudget | None = None
    mean_perturbation_norm: float | None = None
    mean_gradient_cosine: float | None = None
    scores: Mapping[int, float] = field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    versus_best: Versus | None = None
    unfinished: Mapping[str, int] = field(default_factory=dict)
    records: tuple[str, ...] = ()
    unfinished_records: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source: PublishedSource | None = None

    @property
    def num_failed(self) -> int:
        """Number of runs that did not complete, whatever the reason."""
        return sum(self.unfinished.values())

    @property
    def top1(self) -> Summary | None:
        """Top-1 accuracy."""
        return self.summaries.get("top1")

    def summary(self, metric: str) -> Summary | None:
        """Return a metric's summary without numbers that are not finite; None if its mean is none."""
        found = self.summaries.get(metric)
        if found is None or finite(found.mean) is None:
            return None
        bounds = found.ci95 if found.ci95 and all(map(math.isfinite, found.ci95)) else None
        return Summary(found.mean, finite(found.std), bounds)


@dataclass(frozen=True)
class Group:
    """One ranking: measured entries by the metric, those without it, those never completed, reported ones.

    Attributes:
        protocol: one line for people; ``reported`` groups say so in it.
        recipe: the shared part of the recipes; empty for a group of reported rows alone.
        equal_passes: gradient passes of the cheapest entry, at which all are compared.
        equal_seconds: likewise in seconds of training.
        notes: doubts about the whole comparison.
    """

    dataset: str
    model: str
    protocol: str
    recipe: Mapping[str, Any]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()
    metric: str = "top1"
    equal_passes: float | None = None
    equal_seconds: float | None = None

    @property
    def best(self) -> tuple[Entry, ...]:
        """The measured entries that the data cannot rule out as the best."""
        return tuple(entry for entry in self.entries if entry.rank_low == 1)

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
