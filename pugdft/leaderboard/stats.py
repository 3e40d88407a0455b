"""Statistics of scores: intervals of means, tests of differences, and ranges of ranks.

A score is a mean over test images; every seed of an entry is evaluated on the same images. Seeds and images
are both samples. The model is the two-way crossed one of multi-reader studies, x_si = µ + S_s + I_i + E_si:
the effect of seed s on all images, the effect of image i in all seeds, and the residual. The mean over n
seeds and N images has the variance

    σ_S²/n + σ_I²/N + σ_E²/(nN) = (MS_S + MS_I − MS_E)/(nN)

with the mean squares of the two-way table. A hierarchical bootstrap over seeds and images estimates the same
variance up to known factors: it shrinks the seeds' share by (n−1)/n and counts σ_E² three times (Owen, Annals
of Applied Statistics 1, 2007). The formula needs no random draws, so no digit depends on chance.

The mean square of two to ten seeds is a rough estimate. Percentiles of the bootstrap and t with
Satterthwaite's degrees of freedom trust it too much: with three seeds a 95 % interval of the latter misses
the truth in up to 8 %, and at the 0.5 % that Holm's correction asks for among five optimizers it errs five
times too often (``benchmarks/error_rates.py``). Banerjee's rule (Sankhyā 22, 1960) keeps the level for all
σ_S, σ_I and σ_E. It multiplies each mean square by the quantile of its own degrees of freedom:

    half width² = t(n−1)² · MS_S/(nN) + t(N−1)² · (MS_I − MS_E)/(nN),

which is the t interval over seeds where images matter little, and the interval over images where seeds do.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations
from typing import Any

import numpy as np

from pugdft.leaderboard.entry import Summary

LEVEL = 0.05
"""Largest probability of any wrong separation in one group; intervals cover with 1 − LEVEL."""

# p-values are searched on the grid p = 2 Φ(−x) with steps of x; p-values beyond the last step are rounded up.
_STEP, _NUM_STEPS = 0.01, 1200

_MOST_FREEDOM = 10_000

# Scores differ by at least one image of the test split; smaller deviations are floating-point errors.
_ROUNDING = 1e-9

Scores = Mapping[int, float]
Images = Mapping[int, np.ndarray]
"""The score of every test image by seed, in the same order for all entries of a group."""


@dataclass(frozen=True)
class Spread:
    """Components of the variance of a mean, or of a difference of means. Numbers, or arrays over comparisons.

    Attributes:
        seeds: variance between seeds divided by their number; it includes the residual.
        freedom: degrees of freedom of ``seeds``, at least 1.
        images: variance due to the sample of test images; more seeds do not reduce it.
        residual: part of ``seeds`` that a finite number of images causes. If a few seeds happen to agree
            closely, the estimate ``seeds`` is replaced by this lower limit.
        image_freedom: number of test images minus one; 0 without per-image scores.
    """

    seeds: Any
    freedom: Any
    images: Any = 0.0
    residual: Any = 0.0
    image_freedom: int = 0

    def half_width(self, level: float = LEVEL) -> Any:
        """Compute half the width of the interval with at least the coverage 1 − ``level``."""
        from scipy.special import stdtrit

        image_quantile = float(stdtrit(self.image_freedom, 1 - level / 2)) if self.image_freedom else 0.0
        return self._half_width(stdtrit(self.freedom, 1 - level / 2), image_quantile)

    def p_values(self, differences: Any) -> np.ndarray:
        """Compute two-sided p-values of "no difference": the level at which the interval just reaches 0."""
        from scipy.special import stdtr

        sizes = np.abs(np.asarray(differences, dtype=float))
        seeds, freedom, images, residual = np.broadcast_arrays(
            self.seeds, self.freedom, self.images, self.residual, sizes
        )[:4]
        p_values = np.ones(sizes.shape)
        crossed = (images > 0) | (residual > 0)
        plain = (seeds > 0) & ~crossed
        p_values[plain] = 2 * stdtr(freedom[plain], -sizes[plain] / np.sqrt(seeds[plain]))
        if crossed.any():
            freedom = np.minimum(freedom[crossed], _MOST_FREEDOM).astype(float)
            part = Spread(seeds[crossed], freedom, images[crossed], residual[crossed], self.image_freedom)
            p_values[crossed] = part._search_p_values(sizes[crossed])
        return p_values

    def _half_width(self, quantile: Any, image_quantile: Any) -> Any:
        by_seeds = np.maximum(self.seeds * quantile**2, self.residual * image_quantile**2)
        return np.sqrt(by_seeds + self.images * image_quantile**2)

    def _search_p_values(self, sizes: np.ndarray) -> np.ndarray:
        """Find p-values by bisection over the grid, for all comparisons at once."""
        from scipy.special import ndtr

        image_quantiles = _image_quantiles(self.image_freedom)

        def half_width(steps: np.ndarray) -> Any:
            return self._half_width(_quantile(self.freedom, steps), image_quantiles[steps])

        low, high = np.zeros(sizes.shape, dtype=int), np.full(sizes.shape, _NUM_STEPS)
        while np.any(high - low > 1):
            middle = (low + high) // 2
            inside = half_width(middle) <= sizes
            low, high = np.where(inside, middle, low), np.where(inside, high, middle)
        below, above = half_width(low), half_width(high)
        # Widths grow by a factor from step to step, so interpolate their logarithms; below the first step,
        # where the width starts at 0, interpolate linearly.
        with np.errstate(divide="ignore", invalid="ignore"):
            geometric = np.log(sizes / below) / np.log(above / below)
            fraction = np.where(below > 0, geometric, (sizes - below) / (above - below))
        fraction = np.clip(np.nan_to_num(fraction), 0.0, 1.0)
        return 2 * np.asarray(ndtr(-_STEP * (low + fraction)))


def _quantile(freedom: Any, steps: np.ndarray) -> np.ndarray:
    """Compute Student's quantile whose two-sided level is 2 Φ(−x) at grid position ``steps``."""
    from scipy.special import ndtr, stdtrit

    return np.asarray(stdtrit(freedom, ndtr(-_STEP * steps)))


@lru_cache(maxsize=16)
def _image_quantiles(freedom: int) -> np.ndarray:
    return _quantile(float(freedom), np.arange(_NUM_STEPS + 1))


def mean_squares(values: np.ndarray) -> tuple[float, float, float]:
    """Compute the mean squares of seeds, images and residual of a table of seeds × images."""
    num_seeds, num_images = values.shape
    centre = values.mean(dtype=float)
    by_seed = values.mean(axis=1, dtype=float) - centre
    by_image = values.mean(axis=0, dtype=float) - centre
    seeds = num_images * float(by_seed @ by_seed)
    images = num_seeds * float(by_image @ by_image)
    total = float(np.square(values, dtype=float).sum()) - num_seeds * num_images * float(centre) ** 2
    residual = max(0.0, total - seeds - images) / ((num_seeds - 1) * (num_images - 1))
    return seeds / (num_seeds - 1), images / (num_images - 1), residual


def spread_of(values: np.ndarray) -> Spread:
    """Estimate the spread of the mean of a table of seeds × images, two or more of each."""
    seeds, images, residual = mean_squares(values)
    return Spread(
        seeds=seeds / values.size,
        freedom=len(values) - 1,
        images=max(0.0, images - residual) / values.size,
        residual=residual / values.size,
        image_freedom=values.shape[1] - 1,
    )


def mean(values: Iterable[float]) -> float:
    """Compute the arithmetic mean of at least one number."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


def summarize(
    values: Iterable[float], spread: Spread | None = None, bounds: tuple[float, float] = (0.0, 1.0)
) -> Summary:
    """Compute mean, standard deviation over seeds, and the mean's 95 % interval, clipped to ``bounds``.

    Args:
        values: one score for each seed.
        spread: of the mean over seeds and test images; the interval then covers other seeds and other images.
            Without it the interval is t over seeds, for these images only.
        bounds: smallest and largest possible score.
    """
    values = list(values)
    centre = mean(values)
    if len(values) < 2:
        return Summary(centre)
    variance = math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1)
    half = float((spread or Spread(variance / len(values), len(values) - 1)).half_width())
    interval = max(bounds[0], centre - half), min(bounds[1], centre + half)
    return Summary(centre, math.sqrt(variance), interval)


@dataclass(frozen=True)
class EntryScores:
    """One entry's scores by seed and, where stored, those of every test image, whose means the scores are.

    ``images`` has an array for each seed of ``scores``, or it is None.
    """

    scores: Scores
    images: Images | None = None


@dataclass(frozen=True)
class MeanDifference:
    """The difference of two entries' means, first minus second, and its uncertainty.

    Attributes:
        p_value: two-sided, of "no difference"; 1 where nothing can be tested.
        testable: whether there is an estimate of the variance.
        num_seeds: number of seeds compared.
        paired: whether both entries ran these seeds.
        seed_variance: variance over seeds of the difference of one seed each.
    """

    difference: float
    p_value: float
    testable: bool
    num_seeds: int
    paired: bool
    spread: Spread
    seed_variance: float

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """Compute the interval with at least the coverage 1 − ``level``; None if nothing can be tested."""
        if not self.testable:
            return None
        half = float(self.spread.half_width(level))
        return self.difference - half, self.difference + half


@dataclass(frozen=True)
class Pairs:
    """Comparisons of all pairs i < j of ``size`` entries, first minus second.

    Arrays are in the order (0, 1), (0, 2), …, (1, 2), …; see :class:`MeanDifference` for their meaning.
    """

    size: int
    difference: np.ndarray
    spread: Spread
    testable: np.ndarray
    num_seeds: np.ndarray
    paired: np.ndarray
    seed_variance: np.ndarray

    @cached_property
    def p_values(self) -> np.ndarray:
        """Two-sided p-values of "no difference"; 1 where nothing can be tested."""
        return np.where(self.testable, self.spread.p_values(self.difference), 1.0)

    def first_and_second(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions i and j of each pair."""
        return np.triu_indices(self.size, 1)

    def __getitem__(self, place: int) -> MeanDifference:
        whole = self.spread
        parts = (whole.seeds, whole.freedom, whole.images, whole.residual)
        seeds, freedom, images, residual = (float(part[place]) for part in parts)
        return MeanDifference(
            difference=float(self.difference[place]),
            p_value=float(self.p_values[place]),
            testable=bool(self.testable[place]),
            num_seeds=int(self.num_seeds[place]),
            paired=bool(self.paired[place]),
            spread=Spread(seeds, freedom, images, residual, whole.image_freedom),
            seed_variance=float(self.seed_variance[place]),
        )


def compare_all(
    entries: Sequence[EntryScores], num_images: int | None = None, unpaired: np.ndarray | None = None
) -> Pairs:
    """Compare all pairs of entries: paired over common seeds, by Welch's test where none is common.

    Pairing is valid because equal seeds share their split, order, augmentation and head. One common seed, or
    one seed of an unpaired entry, gives no estimate of the variance, and nothing is testable. With per-image
    scores of both entries the test images count as a sample, too.

    Few seeds often agree by chance, and a variance of zero would make t infinite. Top-1 moves in steps of 1/N
    for N test images. Rounding to such steps alone has the variance 1/(12 N²), and 1/(6 N²) for a difference
    of two top-1; no estimate of a variance is taken to be smaller. Three seeds that differ by one image each
    are thus not separated (p = 0.051), those that differ by two images are. Where N is unknown, or the score
    is no count of images, nothing is testable without any variance.

    Args:
        entries: scores of each entry.
        num_images: N where scores are counts over N; else None.
        unpaired: square matrix, true for pairs whose equal seeds do not share what pairing needs.
    """
    size = len(entries)
    rounding = 1 / (12 * num_images**2) if num_images else 0.0
    seeds = sorted({seed for each in entries for seed in each.scores})
    table = np.array([[each.scores.get(seed, np.nan) for seed in seeds] for each in entries])
    table = table.reshape(size, len(seeds))
    own = _Moments.of(table)
    own_variances = np.maximum(own.variance, rounding)
    image_components = _image_components(entries)
    rows = []
    for first in range(size - 1):
        # Seeds that the first entry lacks are common to no pair of this row.
        present = ~np.isnan(table[first])
        pairs = _Moments.of(table[first, present] - table[first + 1 :, present])
        is_paired = pairs.count > 0
        if unpaired is not None:
            is_paired &= ~unpaired[first, first + 1 :]
        one, two = own.count[first], own.count[first + 1 :]
        shares = own_variances[first] / one, own_variances[first + 1 :] / two
        seed_variance = np.maximum(pairs.variance, 2 * rounding)
        with np.errstate(divide="ignore", invalid="ignore"):
            welch = (shares[0] + shares[1]) ** 2 / (shares[0] ** 2 / (one - 1) + shares[1] ** 2 / (two - 1))
        welch = np.where(np.minimum(one, two) > 1, np.nan_to_num(welch, nan=1.0), 0.0)
        images, residual = np.zeros(len(two)), np.zeros(len(two))
        if image_components is not None:
            paired_parts = image_components.paired(first, pairs)
            unpaired_parts = image_components.unpaired(first) if not is_paired.all() else paired_parts
            images, residual = np.where(is_paired, paired_parts, unpaired_parts)
        own_seed_variance = own_variances[first] + own_variances[first + 1 :]
        columns = (
            np.where(is_paired, pairs.mean, own.mean[first] - own.mean[first + 1 :]),
            np.where(is_paired, pairs.count, np.minimum(one, two)),
            is_paired,
            np.where(is_paired, seed_variance, own_seed_variance),
            np.where(is_paired, seed_variance / np.maximum(pairs.count, 1), shares[0] + shares[1]),
            np.where(is_paired, pairs.count - 1, welch),
            images,
            residual,
        )
        rows.append(columns)
    joined = [np.concatenate(column) for column in zip(*rows, strict=True)] if rows else [np.zeros(0)] * 8
    difference, num_seeds, paired, seed_variance, by_seeds, freedom, by_images, rest = joined
    image_freedom = image_components.num_images - 1 if image_components else 0
    spread = Spread(by_seeds, freedom, by_images, rest, image_freedom)
    return Pairs(
        size=size,
        difference=difference,
        spread=spread,
        testable=(spread.freedom >= 1) & (spread.seeds + spread.residual + spread.images > 0),
        num_seeds=num_seeds,
        paired=paired,
        seed_variance=seed_variance,
    )


def compare(
    first: EntryScores | Scores,
    second: EntryScores | Scores,
    num_images: int | None = None,
    unpaired: bool = False,
) -> MeanDifference:
    """Compare one pair by the rules of :func:`compare_all`."""
    pair = [each if isinstance(each, EntryScores) else EntryScores(each) for each in (first, second)]
    return compare_all(pair, num_images, np.full((2, 2), True) if unpaired else None)[0]


@dataclass(frozen=True)
class _Moments:
    """Count, mean and variance (n − 1) of each row of a table. NaN marks a missing value.

    The variance of fewer than two values is 0; so is that of values that only floating-point errors separate.
    """

    count: np.ndarray
    mean: np.ndarray
    variance: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> _Moments:
        present = ~np.isnan(values)
        count = present.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.where(present, values, 0.0).sum(axis=1) / count
            deviations = np.where(present, values - mean[:, None], 0.0)
            variance = (deviations**2).sum(axis=1) / (count - 1)
        width = np.ptp(deviations, axis=1) if values.shape[1] else np.zeros(len(values))
        return cls(count, mean, np.where((width > _ROUNDING) & (count > 1), variance, 0.0))


def _image_components(entries: Sequence[EntryScores]) -> _ImageComponents | None:
    """Prepare per-image comparisons; None unless two entries have scores of two or more images."""
    images = [each.images for each in entries]
    sizes = {len(array) for each in images for array in (each or {}).values()}
    assert len(sizes) <= 1, "per-image scores of different test splits"
    if sum(each is not None for each in images) < 2 or max(sizes, default=0) < 2:
        return None
    return _ImageComponents(images, sizes.pop())


class _ImageComponents:
    """Image and residual components of the variance, for pairs of entries with per-image scores."""

    def __init__(self, images: Sequence[Images | None], num_images: int) -> None:
        self.num_images = num_images
        self._images = [each if each and len(each) > 1 else {} for each in images]
        # Over common seeds: Σ_images (Σ_seeds d)² and Σ_images Σ_seeds d²; NaN where unknown.
        self._of_sums = np.full((len(images), len(images)), np.nan)
        self._of_each = self._of_sums.copy()
        by_common: dict[frozenset[int], list[tuple[int, int]]] = defaultdict(list)
        seeds = [frozenset(each) for each in self._images]
        for first, second in combinations(range(len(images)), 2):
            if len(common := seeds[first] & seeds[second]) > 1:
                by_common[common].append((first, second))
        for common, pairs in by_common.items():
            first, second = np.array(pairs).T
            rows = np.union1d(first, second)
            of_sums, of_each = self._squared_distances(rows.tolist(), sorted(common))
            places = np.searchsorted(rows, first), np.searchsorted(rows, second)
            self._of_sums[first, second], self._of_each[first, second] = of_sums[places], of_each[places]

    def paired(self, first: int, pairs: _Moments) -> tuple[np.ndarray, np.ndarray]:
        """Estimate ``Spread.images`` and ``Spread.residual`` of ``first`` minus each later entry.

        Args:
            first: position of an entry.
            pairs: moments over common seeds of the differences to later entries.
        """
        num_seeds, num_images = pairs.count, self.num_images
        with np.errstate(divide="ignore", invalid="ignore"):
            centre = num_seeds * num_images * pairs.mean**2
            by_seed = (num_seeds - 1) * num_images * pairs.variance
            by_image = np.maximum(self._of_sums[first, first + 1 :] / num_seeds - centre, 0.0)
            rest = np.maximum(self._of_each[first, first + 1 :] - centre - by_seed - by_image, 0.0)
            residual = rest / ((num_seeds - 1) * (num_images - 1)) / (num_seeds * num_images)
            images = np.maximum(by_image / (num_images - 1) / (num_seeds * num_images) - residual, 0.0)
        return _where_known(images, residual)

    def unpaired(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Estimate the same for entries with other seeds: both were evaluated on the same images."""
        of_means, residuals = self._own_means
        residual = residuals[first] + residuals[first + 1 :]
        images = np.maximum(of_means[first, first + 1 :] / self.num_images - residual, 0.0)
        return _where_known(images, residual)

    @cached_property
    def _own_means(self) -> tuple[np.ndarray, np.ndarray]:
        """Variances over images of the differences of means over own seeds, and each mean's residual."""
        rows = [position for position, images in enumerate(self._images) if images]
        means, residuals = np.empty((len(rows), self.num_images)), np.full(len(self._images), np.nan)
        for at, row in enumerate(rows):
            values = np.stack([scores for _, scores in sorted(self._images[row].items())])
            means[at] = values.mean(axis=0)
            residuals[row] = mean_squares(values)[2] / values.size
        variances = np.full(self._of_sums.shape, np.nan)
        squares = _distances(means - means.mean(axis=1)[:, None])
        variances[np.ix_(rows, rows)] = np.maximum(squares, 0.0) / (self.num_images - 1)
        return variances, residuals

    def _squared_distances(self, rows: Sequence[int], seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Compute squared distances between entries' sums over seeds, and the sums of those of each seed."""
        images = [self._images[row] for row in rows]
        # Counts are whole numbers: single precision is exact as long as it can represent the largest.
        are_counts = all(each[seed].dtype == bool for each in images for seed in seeds)
        kind = np.float32 if are_counts and len(seeds) ** 2 * self.num_images < 2**24 else np.float64
        sums = np.zeros((len(rows), self.num_images), kind)
        of_each = np.zeros((len(rows), len(rows)))
        for seed in seeds:
            values = np.stack([each[seed] for each in images]).astype(kind)
            of_each += _distances(values)
            sums += values
        return _distances(sums), of_each


def _distances(values: np.ndarray) -> np.ndarray:
    """Compute the squared Euclidean distance between every two rows."""
    products = (values @ values.T).astype(float)
    squares = np.diag(products)
    return np.asarray(squares[:, None] + squares[None, :] - 2 * products)


def _where_known(images: np.ndarray, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = np.isfinite(images)
    return np.where(known, images, 0.0), np.where(known, residual, 0.0)


def holm_adjusted(p_values: np.ndarray) -> np.ndarray:
    """Adjust p-values by Holm's step-down procedure (Scandinavian J. Statistics 6, 1979).

    The k-th smallest of m is multiplied by m − k + 1, and none is less than that of a smaller one.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return adjusted


def rank_ranges(pairs: Pairs, separated: np.ndarray, higher_is_better: bool = True) -> list[tuple[int, int]]:
    """Compute the best and worst rank (1 = best score) of each entry from the separated pairs.

    The best rank is 1 + the number of separated better entries; the worst is n − that of worse ones.
    """
    first, second = (each[separated] for each in pairs.first_and_second())
    first_wins = (pairs.difference[separated] > 0) == higher_is_better
    winners, losers = np.where(first_wins, first, second), np.where(first_wins, second, first)
    num_better = np.bincount(losers, minlength=pairs.size)
    num_worse = np.bincount(winners, minlength=pairs.size)
    return list(zip((1 + num_better).tolist(), (pairs.size - num_worse).tolist(), strict=True))


def mcnemar(only_first: int, only_second: int) -> float:
    """Compute McNemar's exact two-sided p-value from the images that only one of two models gets right."""
    from scipy.special import bdtr

    total = only_first + only_second
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), total, 0.5))) if total else 1.0
