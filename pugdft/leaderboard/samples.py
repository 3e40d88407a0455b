"""What an entry's runs measured: each metric by seed, and what the stored predictions add to it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pugdft.leaderboard.collect import LARGEST
from pugdft.leaderboard.crossed import Spread, spread_of
from pugdft.leaderboard.doubts import listed
from pugdft.leaderboard.entry import Metric
from pugdft.leaderboard.grouping import RunEntry
from pugdft.leaderboard.pairs import Sample
from pugdft.leaderboard.per_image import NotUsable, PerImage, read_per_image
from pugdft.record import RunRecord

NAMES: Mapping[Metric, str] = {"top1": "top-1", "top5": "top-5", "loss": "loss", "ece": "ECE"}

BOUNDS: Mapping[Metric, tuple[float, float]] = {
    "top1": (0.0, 1.0),
    "top5": (0.0, 1.0),
    "loss": (0.0, LARGEST),
    "ece": (0.0, 1.0),
}
"""What a value must lie in to be one."""


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
    values: Mapping[Metric, Mapping[int, float | None]]
    spreads: Mapping[Metric, Spread] = field(default_factory=dict)
    images: Mapping[int, np.ndarray] | None = None
    split: str | None = None
    notes: tuple[str, ...] = ()

    def scores(self, metric: Metric) -> dict[int, float]:
        """The valid values by seed."""
        return {seed: value for seed, value in self.values[metric].items() if value is not None}

    def without(self, metric: Metric) -> list[int]:
        """Completed seeds without a valid value."""
        return [seed for seed, value in self.values[metric].items() if value is None]

    def sample(self, metric: Metric) -> Sample:
        """For comparisons by the metric that ``images`` are of."""
        return Sample(self.scores(metric), self.images)


def without_lost(entry: RunEntry, metric: Metric) -> RunEntry:
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


def measure(entries: Sequence[RunEntry], metric: Metric) -> list[Measured]:
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


def valid(value: float | None, metric: Metric) -> float | None:
    """The value, unless it is missing or none of the metric's: NaN, more than everything."""
    low, high = BOUNDS[metric]
    return value if value is not None and low <= value <= high else None


def num_test_images(measured: Sequence[Measured]) -> int | None:
    """The test split's size, the smallest if records disagree; None if one does not say it."""
    records = [run.record for each in measured for run in each.runs.completed]
    smallest = min((record.data.sizes.get("test", 0) if record.data else 0 for record in records), default=0)
    return smallest if smallest > 0 else None


def scope_notes(measured: Sequence[Measured], metric: Metric) -> tuple[str, ...]:
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
    if metric == "ece":
        notes.append("ECE is no mean over images: ranks speak of these test images only")
    elif len(without) == len(several):
        notes.append("without stored predictions, ranks speak of these test images only")
    elif without:
        named = ", ".join(without[:6]) + (f" and {len(without) - 6} more" if len(without) > 6 else "")
        notes.append(f"without stored predictions, ranks of {named} speak of these test images only")
    return tuple(notes)


def _measure(entry: RunEntry, metric: Metric) -> Measured:
    values: dict[Metric, dict[int, float | None]] = {
        name: {run.record.seed: _value(run.record, name) for run in entry.completed} for name in NAMES
    }
    images, notes = _per_image(entry)
    splits = {each.split for each in images.values()}
    if len(images) < len(entry.completed) or len(splits) != 1:
        if len(splits) > 1:
            notes.append("its seeds' test images stand in different orders: predictions are not used")
        return Measured(entry, values, notes=tuple(notes))
    known = [name for name in NAMES if all(name in each.scores for each in images.values())]
    by_metric = {name: {seed: each.scores[name] for seed, each in images.items()} for name in known}
    spreads: dict[Metric, Spread] = {
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
        except NotUsable as error:
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


def _value(record: RunRecord, metric: Metric) -> float | None:
    test = record.metrics.test if record.metrics else None
    return valid(getattr(test, metric), metric) if test else None
