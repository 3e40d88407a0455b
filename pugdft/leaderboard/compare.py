"""Two optimizers against each other: their difference, how sure it is, and what the data cannot say."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from pugdft.errors import UserError, counted
from pugdft.leaderboard.crossed import LEVEL
from pugdft.leaderboard.doubts import group_doubts, listed, unpaired
from pugdft.leaderboard.entry import HIGHER_IS_BETTER, Metric
from pugdft.leaderboard.grouping import RunEntry
from pugdft.leaderboard.labels import entry_labels
from pugdft.leaderboard.power import detectable_difference, needs_more_images, seeds_needed
from pugdft.leaderboard.samples import NAMES, Measured, measure, num_test_images, without_lost
from pugdft.leaderboard.sides import Side
from pugdft.leaderboard.statistics import Comparison, compare, mean

# A run that somebody stopped says nothing of its optimizer.
_LOST = ("diverged", "failed", "oom")


@dataclass(frozen=True)
class SeedRow:
    """One seed's pair of networks.

    Attributes:
        only_first: images that only A's network gets right; None without stored predictions.
        p_value: McNemar's exact test, two-sided.
    """

    seed: int
    first: float
    second: float
    only_first: int | None = None
    only_second: int | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Gate:
    """Whether A is not worse than B by ``margin`` or more.

    Attributes:
        bound: by which A is better than B at least (one-sided, 95 %); None if that cannot be told.
        reason: why it does not hold.
        seeds_needed: to show it four times in five if both are equal; None if no number is known to.
    """

    margin: float
    bound: float | None
    holds: bool
    reason: str | None
    seeds_needed: int | None = None


@dataclass(frozen=True)
class Report:
    """A minus B, in the metric's own unit.

    Attributes:
        comparison: of the means over seeds.
        rows: the common seeds, where equal seeds are pairs.
        with_images: whether the interval counts the test images as drawn.
        more_seeds: about how many more each would tell if the difference is real; None if it is told, or if
            no number would.
        detectable: the true difference that as many seeds find four times in five; None for one.
        notes: what the data cannot say, and doubts.
    """

    labels: tuple[str, str]
    sides: tuple[Side, Side]
    metric: Metric
    means: tuple[float, float]
    comparison: Comparison
    rows: tuple[SeedRow, ...]
    with_images: bool
    num_images: int | None
    more_seeds: int | None
    detectable: float | None
    gate: Gate | None
    notes: tuple[str, ...]


def compare_sides(first: Side, second: Side, metric: Metric = "top1", margin: float | None = None) -> Report:
    """Everything that can be said of the difference between two optimizers.

    Args:
        first: A.
        second: B.
        metric: of the last epoch on the test split.
        margin: what A may be worse at most, in the metric's unit; for the gate.

    Raises:
        UserError: a side has no completed run, or one without a valid metric; the margin is no size.
    """
    if margin is not None and not 0 <= margin < math.inf:
        raise UserError(f"--margin {margin}: must be a number of at least 0, such as 0.002")
    if {run.record.id for run in first.runs.completed} & {run.record.id for run in second.runs.completed}:
        raise UserError("A and B share runs: two different optimizers are to be compared")
    first, second = (replace(side, runs=without_lost(side.runs, metric)) for side in (first, second))
    sides = (first, second)
    measured = measure([side.runs for side in sides], metric)
    for name, each in zip("AB", measured, strict=True):
        if not each.runs.completed:
            raise UserError(f"{name} ({each.runs.label}) has no completed run")
        if without := each.without(metric):
            seeds = ", ".join(map(str, without))
            raise UserError(f"{name} ({each.runs.label}) has no valid {NAMES[metric]} for seed {seeds}")
    runs = [replace(side.runs, label=name) for side, name in zip(sides, "AB", strict=True)]
    conflicts, doubts = unpaired(runs)
    one, two = (each.sample(metric) for each in measured)
    size = num_test_images(measured) if metric in ("top1", "top5") else None
    comparison = compare(one, two, size, unpaired=conflicts is not None)
    with_images = one.images is not None and two.images is not None
    more_seeds, detectable = _planning(comparison)
    return Report(
        labels=_labels(first, second),
        sides=sides,
        metric=metric,
        means=(mean(one.scores.values()), mean(two.scores.values())),
        comparison=comparison,
        rows=_rows(measured, metric) if comparison.paired else (),
        with_images=with_images,
        num_images=num_test_images(measured),
        more_seeds=more_seeds,
        detectable=detectable,
        gate=None if margin is None else _gate(comparison, metric, margin, first.runs),
        notes=(
            *_limits(comparison, measured, metric, with_images),
            *doubts,
            *group_doubts(runs),
            *(
                f"{name}: {note}"
                for name, each in zip("AB", measured, strict=True)
                for note in (*_unfinished(each.runs), *each.runs.notes, *each.notes)
            ),
        ),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value: under equal accuracy each image of either kind falls on either side evenly."""
    from scipy.special import bdtr

    total = only_first + only_second
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), total, 0.5))) if total else 1.0


def _labels(first: Side, second: Side) -> tuple[str, str]:
    """Told apart as in a table of both; two sets of runs of one optimizer have one label."""
    if first.runs.spec == second.runs.spec:
        return first.runs.label, second.runs.label
    one, two = entry_labels([first.runs.spec, second.runs.spec])
    return one, two


def _rows(measured: list[Measured], metric: Metric) -> tuple[SeedRow, ...]:
    one, two = (each.scores(metric) for each in measured)
    rows = []
    for seed in sorted(one.keys() & two.keys()):
        row = SeedRow(seed, one[seed], two[seed])
        images: list[Mapping[int, np.ndarray]] = [each.images for each in measured if each.images]
        if len(images) == 2 and images[0][seed].dtype == bool:
            left, right = (each[seed] for each in images)
            only_first, only_second = int((left & ~right).sum()), int((right & ~left).sum())
            row = replace(
                row,
                only_first=only_first,
                only_second=only_second,
                p_value=mcnemar(only_first, only_second),
            )
        rows.append(row)
    return tuple(rows)


def _planning(comparison: Comparison) -> tuple[int | None, float | None]:
    if not comparison.testable:
        return None, None
    # However alike a few seeds came out, finite images make them spread.
    least = float(comparison.spread.residual) * comparison.num_seeds
    spread, images = math.sqrt(max(comparison.seed_variance, least)), float(comparison.spread.images)
    detectable = detectable_difference(comparison.num_seeds, spread, image_variance=images)
    if comparison.p_value <= LEVEL:
        return None, detectable
    needed = seeds_needed(comparison.difference, spread, image_variance=images)
    return None if needed is None else max(1, needed - comparison.num_seeds), detectable


def _gate(comparison: Comparison, metric: Metric, margin: float, first: RunEntry) -> Gate:
    """Non-inferiority: the one-sided 95 % bound, which is the end of a two-sided 90 % interval.

    Where seeds of A came to nothing the bound would speak of those that went well.
    """
    lost = {status: seeds for status, seeds in first.lost_seeds().items() if status in _LOST}
    if lost:
        return Gate(margin, None, False, f"A has seeds without a completed run: {_by_status(lost)}")
    interval = comparison.interval(2 * LEVEL)
    if interval is None:
        return Gate(margin, None, False, _untestable(comparison))
    bound = interval[0] if HIGHER_IS_BETTER[metric] else -interval[1]
    if bound > -margin:
        return Gate(margin, bound, True, None)
    needed = seeds_needed(
        margin,
        math.sqrt(comparison.seed_variance),
        image_variance=float(comparison.spread.images),
        level=2 * LEVEL,
    )
    return Gate(margin, bound, False, "A may be worse than B by the margin or more", needed)


def _unfinished(runs: RunEntry) -> list[str]:
    """Every run that did not complete, those of seeds that ran again included."""
    by_status: dict[str, list[int]] = defaultdict(list)
    for record in runs.unfinished:
        by_status[record.status].append(record.seed)
    return [f"not in its mean: {_by_status(by_status)}"] if by_status else []


def _by_status(seeds: Mapping[str, list[int]]) -> str:
    """``2 diverged (seed 3, 4), 1 oom (seed 0)``."""
    return ", ".join(
        f"{len(each)} {status} (seed {listed([str(seed) for seed in sorted(each)])})"
        for status, each in sorted(seeds.items())
    )


def _untestable(comparison: Comparison) -> str:
    if comparison.num_seeds < 2:
        kind = "common seed" if comparison.paired else "seed on one side"
        return f"there is one {kind}, and nothing tells how much another would differ"
    return "nothing spreads, so there is nothing to hold the difference against"


def _limits(comparison: Comparison, measured: list[Measured], metric: Metric, with_images: bool) -> list[str]:
    """What the data cannot say."""
    limits = []
    if not comparison.testable:
        limits.append(f"no claim about the optimizers: {_untestable(comparison)}")
    if not comparison.paired:
        limits.append("no seed is a pair, so the runs are compared as unpaired, which takes more seeds")
    elif any(len(each.runs.completed) > comparison.num_seeds for each in measured):
        common = counted(comparison.num_seeds, "common seed")
        limits.append(f"the difference is over {common}, the means are over all")
    if metric == "ece":
        limits.append("ECE is no mean over images: this speaks of these test images only")
    elif not with_images:
        limits.append("without stored predictions on both sides, this speaks of these test images only")
    images = float(comparison.spread.images)
    if (
        comparison.testable
        and comparison.difference
        and comparison.p_value > LEVEL
        and needs_more_images(comparison.difference, image_variance=images)
    ):
        limits.append("so small a difference would need more test images, whatever the number of seeds")
    return limits
