"""Statistics over several tasks: what two entries' differences in each task say of tasks like these.

A task t gives an estimate d_t of the difference of two entries, with a variance of its own from seeds and
test images. The true differences vary from task to task, too. Tasks weigh equally, so the estimate is the
mean of d_t, whose variance is S²/k with the variance S² of the k differences, whatever its parts are:

    t = mean(d) / sqrt(S²/k),  with k − 1 degrees of freedom.

That is the method of Hartung and Knapp (Statistics in Medicine 20, 2001) with equal weights. It keeps its
level with unequal spreads, too, for all levels up to 8.3 % (Bakirov and Székely 2006; Ibragimov and Müller,
J. Business & Economic Statistics 28, 2010). Two safeguards only widen it. Few tasks may agree by chance, so
the variance is at least the one that seeds and images cause. Tasks of one data set have the same test
images, so the share of images is not averaged over them: it is taken as if it were equal in all of them.

Everything here knows only numbers. Arrays have tasks first, then entries or pairs (0, 1), (0, 2), …, (1, 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import or_
from typing import Any

import numpy as np

from pugdft.leaderboard.stats import LEVEL, MeanDifference, Spread
from pugdft.predictions import wilson_interval

_DRAWS = 400  # of the bootstrap, whose standard error is then known to 4 %
_CHUNK = 2_000_000  # numbers held at a time
_KNOWN = 9_999  # degrees of freedom of what the safeguards add: about a normal distribution


@dataclass(frozen=True)
class TaskDifferences:
    """Differences of all pairs in all tasks, arrays of (tasks, pairs); NaN where one entry is absent."""

    difference: np.ndarray
    seeds: np.ndarray  # variance due to seeds; 0 where one seed each tells nothing of it
    images: np.ndarray  # variance due to the sample of test images
    p_values: np.ndarray  # of each task alone, not corrected
    testable: np.ndarray

    @classmethod
    def of(cls, tasks: Sequence[tuple[np.ndarray, MeanDifference]], num_entries: int) -> TaskDifferences:
        """Collect the comparisons of each task; the array has the entries that it compares, in order."""
        shape = len(tasks), num_entries * (num_entries - 1) // 2
        difference, p_values = np.full(shape, np.nan), np.full(shape, np.nan)
        seeds, images = np.zeros(shape), np.zeros(shape)
        testable = np.zeros(shape, dtype=bool)
        number = np.zeros((num_entries, num_entries), dtype=int)
        number[np.triu_indices(num_entries, 1)] = np.arange(shape[1])
        for task, (present, pairs) in enumerate(tasks):
            first, second = np.triu_indices(len(present), 1)
            places = number[present[first], present[second]]
            difference[task, places] = pairs.difference
            p_values[task, places] = pairs.p_value
            testable[task, places] = pairs.testable
            known = np.where(
                pairs.spread.freedom >= 1, np.maximum(pairs.spread.total, pairs.spread.residual), 0
            )
            seeds[task, places] = known
            images[task, places] = pairs.spread.images
        return cls(difference, seeds, images, p_values, testable)

    def pooled(self, same_images: Sequence[Any]) -> MeanDifference:
        """Estimate the mean difference over tasks of each pair.

        Args:
            same_images: one value a task, equal for tasks that have the same test images.
        """
        present = ~np.isnan(self.difference)
        count = present.sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.where(present, self.difference, 0).sum(axis=0) / count
            squares = np.where(present, self.difference - mean, 0) ** 2
            variance = np.nan_to_num(squares.sum(axis=0) / (count - 1))
            own = np.nan_to_num((self.seeds + self.images).sum(axis=0) / count**2)
            shared = np.nan_to_num(self._shared(same_images) / (count * (count - 1)))
        spread = Spread(variance / np.maximum(count, 1), count - 1, shared, own, _KNOWN)
        return MeanDifference(mean, spread, count, np.ones(len(count), dtype=bool), variance)

    def _shared(self, same_images: Sequence[Any]) -> np.ndarray:
        """Sum the covariances of tasks with the same images, if the images' share is equal in all."""
        deviations, total = np.sqrt(self.images), np.zeros(self.images.shape[1])
        for each in set(same_images):
            rows = deviations[[value == each for value in same_images]]
            total += rows.sum(axis=0) ** 2 - (rows**2).sum(axis=0)
        return total

    def true_deviation(self, pooled: MeanDifference) -> np.ndarray:
        """Estimate the standard deviation over tasks of the true difference, without seeds and images."""
        own = (self.seeds + self.images).sum(axis=0) / np.maximum(pooled.num_seeds, 1)
        return np.sqrt(np.maximum(pooled.seed_variance - own, 0.0))


def padded_table(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Put the scores of entries into rows, NaN beyond the last of each: (entries, seeds)."""
    table = np.full((len(scores), max(map(len, scores), default=0)), np.nan)
    for row, values in zip(table, scores, strict=True):
        row[: len(values)] = values
    return table


def improvements(table: np.ndarray) -> np.ndarray:
    """Compute how often a run of the row's entry beats one of the column's; equal scores count half.

    Args:
        table: scores of (entries, seeds), NaN where there is none; larger is better.

    Returns:
        (entries, entries).
    """
    counts = (~np.isnan(table)).sum(axis=1)
    larger = np.zeros((len(table), len(table)))
    for column in table.T:  # of the second entry
        larger += (table[:, None] > column[None, :, None]).sum(axis=2)
        larger += 0.5 * (table[:, None] == column[None, :, None]).sum(axis=2)
    return np.asarray(larger / (counts[:, None] * counts[None, :]))


def share_interval(share: Any, num_tasks: Any) -> tuple[Any, Any]:
    """Compute the 95 % interval of a mean over tasks of shares: none varies more than a 0 or 1."""
    return wilson_interval(np.asarray(share) * num_tasks, num_tasks)


@dataclass(frozen=True)
class Block:
    """Scores of entries in the tasks that all of them have: (tasks, entries, seeds), NaN beyond the last.

    Larger is better. Each task's scores are relative to its mean over entries.
    """

    scores: np.ndarray

    @classmethod
    def of(cls, tasks: Sequence[Sequence[np.ndarray]], sign: float) -> Block:
        """Collect the scores of each task, entry by entry."""
        flat = padded_table([sign * scores for task in tasks for scores in task])
        table = flat.reshape(len(tasks), len(tasks[0]), -1)
        means = np.nanmean(table, axis=2, keepdims=True)
        return cls(table - means.mean(axis=1, keepdims=True))

    @property
    def means(self) -> np.ndarray:
        """Mean of each task and entry: (tasks, entries)."""
        return np.nanmean(self.scores, axis=2)

    def ranks(self) -> np.ndarray:
        """Ranks within each task from 1, the best; equal means share the mean of their places."""
        return _ranks(self.means)

    def behind(self) -> np.ndarray:
        """How far each entry's mean lies behind the best in each task: (tasks, entries)."""
        return self.means.max(axis=1, keepdims=True) - self.means

    def interquartile_means(self) -> np.ndarray:
        """The mean of the middle half of each entry's runs over all tasks, which weigh equally: (entries)."""
        return _interquartile_means(self.scores[None])[0]

    def resampled(self) -> Resampled:
        """Draw tasks with replacement, and seeds within each; equal seeds of entries stay together."""
        random = np.random.default_rng(0)
        num_tasks, num_entries, num_seeds = self.scores.shape
        counts = (~np.isnan(self.scores)).sum(axis=2)
        size = max(1, _CHUNK // self.scores.size)
        parts: list[tuple[np.ndarray, ...]] = []
        for begin in range(0, _DRAWS, size):
            draws = min(size, _DRAWS - begin)
            tasks = random.integers(num_tasks, size=(draws, num_tasks))
            # The same fraction for all entries: of equal numbers of seeds they take the same ones.
            fractions = random.random((draws, num_tasks, 1, num_seeds))
            places = (fractions * counts[tasks][..., None]).astype(int)
            drawn = np.take_along_axis(self.scores[tasks], places, axis=3)
            drawn[np.arange(num_seeds) >= counts[tasks][..., None]] = np.nan
            means = np.nanmean(drawn, axis=3)
            ranks = _ranks(means.reshape(-1, num_entries)).reshape(means.shape).mean(axis=1)
            parts.append((means.mean(axis=1), ranks, _interquartile_means(drawn)))
        return Resampled(num_tasks, *map(np.concatenate, zip(*parts, strict=True)))


@dataclass(frozen=True)
class Resampled:
    """What each draw gave, for each entry: arrays of (draws, entries)."""

    num_tasks: int
    means: np.ndarray
    ranks: np.ndarray
    interquartile: np.ndarray

    def half_width(self, values: np.ndarray) -> np.ndarray:
        """Half the width of 95 % intervals: few tasks get the quantile of t and their own k/(k − 1)."""
        from scipy.special import stdtrit

        freedom = self.num_tasks - 1
        inflation = math.sqrt(self.num_tasks / freedom)
        return np.asarray(values.std(axis=0, ddof=1) * inflation * stdtrit(freedom, 1 - LEVEL / 2))

    def front_shares(self, costs: np.ndarray) -> np.ndarray:
        """Share of draws in which no entry that costs as much or less has a higher mean: (entries)."""
        rivals = costs[None, :] <= costs[:, None] * (1 + EQUAL_COST)
        np.fill_diagonal(rivals, False)
        on_front = [
            np.all(self.means[:, entry, None] >= self.means[:, rivals[entry]], axis=1)
            for entry in range(len(costs))
        ]
        return np.mean(on_front, axis=1)


EQUAL_COST = 0.02  # costs that differ by less count as equal


def _ranks(means: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    # Means of a few runs on equal images may be equal but for rounding.
    return np.asarray(rankdata(-means.round(9), axis=-1))


def _interquartile_means(scores: np.ndarray) -> np.ndarray:
    """Middle halves of (draws, tasks, entries, seeds); a run weighs 1 over the number of its task's runs."""
    draws, num_tasks, num_entries, num_seeds = scores.shape
    flat = scores.transpose(0, 2, 1, 3).reshape(draws, num_entries, num_tasks * num_seeds)
    present = ~np.isnan(scores)
    weights = present / np.maximum(present.sum(axis=3, keepdims=True), 1) / num_tasks
    weights = weights.transpose(0, 2, 1, 3).reshape(flat.shape)
    order = np.argsort(flat, axis=2)  # NaN come last, without weight
    ordered, ends = np.take_along_axis(flat, order, 2), np.take_along_axis(weights, order, 2).cumsum(axis=2)
    inside = np.clip(ends, 0.25, 0.75)
    inside = np.diff(inside, axis=2, prepend=0.25)
    return np.asarray((np.nan_to_num(ordered) * inside).sum(axis=2) / inside.sum(axis=2))


def critical_difference(num_entries: int, num_tasks: int) -> float:
    """Compute Nemenyi's critical difference of average ranks at 5 % (Demšar, JMLR 7, 2006)."""
    from scipy.stats import studentized_range

    quantile = float(studentized_range.ppf(1 - LEVEL, num_entries, math.inf)) / math.sqrt(2)
    return quantile * math.sqrt(num_entries * (num_entries + 1) / (6 * num_tasks))


def mean_ratios(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute costs as multiples of the cheapest entry's: geometric means over tasks, 95 % intervals.

    Args:
        costs: (tasks, entries), above 0.
    """
    from scipy.special import stdtrit

    logs = np.log(costs)
    relative = logs - logs[:, [int(logs.mean(axis=0).argmin())]]
    half = stdtrit(len(costs) - 1, 1 - LEVEL / 2) * relative.std(axis=0, ddof=1) / math.sqrt(len(costs))
    centre = relative.mean(axis=0)
    return np.exp(centre), np.exp(centre - half), np.exp(centre + half)


@lru_cache(maxsize=64)
def _most_true(size: int) -> tuple[int, ...]:
    """For each number of false equalities among ``size`` entries: how many others can be true at most."""
    # Entries fall into classes of equal ones, and a class of j has j(j − 1)/2 true equalities. Bit b of
    # ``counts[n]`` says whether n entries can have b of them.
    counts = [1]
    for number in range(1, size + 1):
        parts = (counts[number - each] << each * (each - 1) // 2 for each in range(1, number + 1))
        counts.append(reduce(or_, parts))
    num_pairs = size * (size - 1) // 2
    most, found = 0, []
    for number in range(num_pairs + 1):
        most = number if counts[size] >> number & 1 else most
        found.append(most)
    return tuple(found[num_pairs - number] for number in range(num_pairs))


def shaffer_adjusted(p_values: np.ndarray, size: int) -> np.ndarray:
    """Adjust the p-values of all pairs of ``size`` entries (Shaffer, J. American Statistical Ass. 81, 1986).

    That is Holm's procedure, but it counts only the equalities that can be true together: if one of five
    entries differs from another, at most six of ten pairs are equal.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.maximum(1, _most_true(size))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return adjusted
