"""Groups of runs to ranked entries: what every renderer shows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pugdft.errors import UserError, close_match
from pugdft.leaderboard.collect import LARGEST, Loaded
from pugdft.leaderboard.grouping import RunEntry, RunGroup, group_runs
from pugdft.leaderboard.printable import printable
from pugdft.leaderboard.statistics import Summary, mean, rank_ranges, summarize
from pugdft.record import RunRecord


@dataclass(frozen=True)
class Entry:
    """One optimizer's row. Means are over its completed seeds; None is "not measured".

    Attributes:
        rank_low: best rank that the seeds allow; None if no run completed.
        top1: None if no run completed, or if a completed one has no top-1: leaving that seed out would
            flatter the optimizer. Such an entry ranks behind all that have one.
        unfinished: status to the number of runs that ended so.
        records: ids of the runs counted, by seed.
    """

    label: str
    status: Literal["measured", "reported"]
    spec: Mapping[str, Any]
    rank_low: int | None
    rank_high: int | None
    num_seeds: int
    top1: Summary | None
    top5_mean: float | None
    ece_mean: float | None
    gradient_passes: float | None
    train_seconds: float | None
    images_per_second: float | None
    peak_memory_bytes: float | None
    mean_perturbation_norm: float | None
    mean_gradient_cosine: float | None
    unfinished: Mapping[str, int]
    records: tuple[str, ...]
    unfinished_records: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def num_failed(self) -> int:
        """Runs that did not complete, whatever the reason."""
        return sum(self.unfinished.values())


@dataclass(frozen=True)
class Group:
    """One ranking: entries by mean top-1, then those without one."""

    dataset: str
    model: str
    protocol: str
    recipe: Mapping[str, Any]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]


def build_leaderboard(
    records: Sequence[Loaded], dataset: str | None = None, model: str | None = None
) -> list[Group]:
    """A ranking for each data set × model × protocol.

    Args:
        records: from :func:`pugdft.leaderboard.collect.collect`.
        dataset: keep this one: its name, or a part of it that no other name has; case does not matter.
        model: likewise.

    Raises:
        UserError: a filter matches nothing, or several names; the message lists what exists.
    """
    groups = group_runs(records)
    if dataset is not None:
        name = _chosen("data set", dataset, {group.dataset for group in groups})
        groups = [group for group in groups if group.dataset == name]
    if model is not None:
        name = _chosen("model", model, {group.model for group in groups})
        groups = [group for group in groups if group.model == name]
    return [_ranked(group) for group in groups]


def _chosen(kind: str, wanted: str, names: Iterable[str]) -> str:
    """The one name that is meant: exactly, then but for case, then as the only one with that part."""
    known = sorted(names)
    folded = wanted.casefold()
    tests: list[Callable[[str], bool]] = [
        lambda name: name == wanted,
        lambda name: name.casefold() == folded,
        lambda name: folded in name.casefold(),
    ]
    matches = next((found for test in tests if (found := [name for name in known if test(name)])), [])
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f'{kind} "{printable(wanted)}" is part of several names: {", ".join(matches)}')
    exists = f"Known: {', '.join(known)}" if known else "There are no records"
    raise UserError(f'no record of {kind} "{printable(wanted)}". {exists}.{close_match(wanted, known)}')


def _ranked(group: RunGroup) -> Group:
    """Ranks for every entry with a completed run; one without a top-1 comes behind all that have one."""
    started = [entry for entry in group.entries if entry.completed]
    scored = [entry for entry in started if not _seeds_without_top1(entry)]
    unscored = [entry for entry in started if _seeds_without_top1(entry)]
    scores = [
        {run.seed: top1 for run in entry.completed if (top1 := _top1(run)) is not None} for entry in scored
    ]
    ranges = rank_ranges(scores, _num_test_images(scored))
    entries = [
        _entry(entry, summarize(list(score.values())), (low, high))
        for entry, score, (low, high) in zip(scored, scores, ranges, strict=True)
    ]
    entries += [_entry(entry, None, (len(scored) + 1, len(started))) for entry in unscored]
    entries += [_entry(entry, None, (None, None)) for entry in group.entries if not entry.completed]
    ordered = tuple(sorted(entries, key=_order))
    return Group(group.dataset, group.model, group.protocol, group.recipe, ordered, group.notes)


def _order(entry: Entry) -> tuple[bool, bool, float, str]:
    top1 = entry.top1.mean if entry.top1 else 0.0
    return entry.rank_low is None, entry.top1 is None, -top1, entry.label


def _entry(runs: RunEntry, top1: Summary | None, ranks: tuple[int | None, int | None]) -> Entry:
    completed = runs.completed
    without = _seeds_without_top1(runs)
    doubts = (f"no valid top-1 for seed {', '.join(map(str, without))}: ranked last",) if without else ()
    return Entry(
        label=runs.label,
        status="measured",
        spec=runs.spec,
        rank_low=ranks[0],
        rank_high=ranks[1],
        num_seeds=len(completed),
        top1=top1,
        top5_mean=_mean_of(completed, lambda run: run.metrics.test.top5 if run.metrics else None),
        ece_mean=_mean_of(completed, lambda run: run.metrics.test.ece if run.metrics else None),
        # A record writes 0 for a cost that nobody measured.
        gradient_passes=_mean_of(completed, lambda run: run.cost.gradient_passes or None),
        train_seconds=_mean_of(completed, lambda run: run.cost.train_seconds or None),
        images_per_second=_mean_of(completed, lambda run: run.cost.images_per_second or None),
        peak_memory_bytes=_mean_of(completed, lambda run: run.cost.peak_memory_bytes or None),
        mean_perturbation_norm=_mean_of(completed, lambda run: run.method.mean_perturbation_norm),
        mean_gradient_cosine=_mean_of(completed, lambda run: run.method.mean_gradient_cosine),
        unfinished=dict(sorted(Counter(run.status for run in runs.unfinished).items())),
        records=tuple(run.id for run in completed),
        unfinished_records=tuple(run.id for run in runs.unfinished),
        notes=runs.notes + doubts,
    )


def _top1(run: RunRecord) -> float | None:
    """The last epoch's top-1 on the test split, unless it is missing or no fraction."""
    top1 = run.metrics.test.top1 if run.metrics else math.nan
    return top1 if 0.0 <= top1 <= 1.0 else None


def _num_test_images(entries: Iterable[RunEntry]) -> int | None:
    """The test split's size, the smallest if records disagree; None if one does not say it."""
    sizes = [run.data.sizes.get("test", 0) if run.data else 0 for entry in entries for run in entry.completed]
    smallest = min(sizes, default=0)
    return smallest if smallest > 0 else None


def _seeds_without_top1(entry: RunEntry) -> list[int]:
    return [run.seed for run in entry.completed if _top1(run) is None]


def _mean_of(runs: Sequence[RunRecord], read: Callable[[RunRecord], float | None]) -> float | None:
    """The mean over all runs; None unless every one of them has a value, finite and small enough to add."""
    values = [value for run in runs if (value := read(run)) is not None and abs(value) <= LARGEST]
    return mean(values) if values and len(values) == len(runs) else None
