"""Statistics of scores: intervals of means, tests of differences, and ranges of ranks.

A score is a mean over test images; every seed of an entry is evaluated on the same images. Seeds and images
are both samples, as in the two-way crossed model of multi-reader studies, x_si = µ + S_s + I_i + E_si. The
mean over n seeds and N images has the variance

    σ_S²/n + σ_I²/N + σ_E²/(nN) = (MS_S + MS_I − MS_E)/(nN)

with the mean squares of the two-way table. A hierarchical bootstrap estimates the same up to known factors
(Owen, Annals of Applied Statistics 1, 2007); the formula needs no random draws.

The mean square of two to ten seeds is a rough estimate, and t with Satterthwaite's degrees of freedom trusts
it too much: with three seeds a 95 % interval misses the truth in up to 8 %, and at the 0.5 % that Holm asks
for among five optimizers it errs five times too often (``benchmarks/error_rates.py``). Banerjee's rule
(Sankhyā 22, 1960) keeps the level for all σ. It multiplies each mean square by its own quantile of t:

    half width² = t(n−1)² · MS_S/(nN) + t(N−1)² · (MS_I − MS_E)/(nN),

which is the t interval over seeds where images matter little, and the interval over images where seeds do.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean
from typing import Any

import numpy as np

from pugdft.leaderboard.entry import Summary

LEVEL = 0.05  # largest probability of any wrong separation in one group; intervals cover with 1 − LEVEL

# p-values are searched on the grid p = 2 Φ(−x) with steps of x; p-values beyond the last step are rounded up.
_STEP, _NUM_STEPS = 0.01, 1200
_MOST_FREEDOM = 10_000
_ROUNDING = 1e-9  # scores differ by at least one test image; less is a floating-point error

Scores = Mapping[int, float]
Images = Mapping[int, np.ndarray]  # each test image's score by seed, in one order for all entries of a group


@dataclass(frozen=True)
class Spread:
    """Components of the variance of a mean, or a difference of means: numbers, or arrays over comparisons."""

    seeds: Any  # variance between seeds divided by their number; it includes the residual
    freedom: Any  # degrees of freedom of seeds, at least 1
    images: Any = 0.0  # variance due to the sample of test images; more seeds do not reduce it
    # Part of seeds that a finite number of images causes; its lower limit, where a few seeds happen to agree.
    residual: Any = 0.0
    image_freedom: int = 0  # number of test images minus one; 0 without per-image scores

    def half_width(self, level: float = LEVEL) -> Any:
        """Compute half the width of the interval with at least the coverage 1 − ``level``."""
        from scipy.special import stdtrit

        # Without per-image scores the image quantile is of no matter: it is multiplied by 0.
        freedoms = self.freedom, max(1, self.image_freedom)
        return self._half_width(*(stdtrit(freedom, 1 - level / 2) for freedom in freedoms))

    def p_values(self, differences: Any) -> np.ndarray:
        """Compute two-sided p-values of "no difference": the level at which the interval just reaches 0."""
        from scipy.special import stdtr

        sizes = np.abs(np.asarray(differences, dtype=float))
        fields = self.seeds, self.freedom, self.images, self.residual
        seeds, freedom, images, residual = (np.broadcast_to(field, sizes.shape) for field in fields)
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
        from scipy.special import ndtr, stdtrit

        levels, image_quantiles = _grid(self.image_freedom)

        def half_width(steps: np.ndarray) -> Any:
            return self._half_width(stdtrit(self.freedom, levels[steps]), image_quantiles[steps])

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


@lru_cache(maxsize=16)
def _grid(image_freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the one-sided level Φ(−x) at each step of the grid, and its quantile for test images."""
    from scipy.special import ndtr, stdtrit

    levels = ndtr(-_STEP * np.arange(_NUM_STEPS + 1))
    return levels, stdtrit(float(image_freedom), levels)


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


def summarize(
    values: Iterable[float], spread: Spread | None = None, bounds: tuple[float, float] = (0.0, 1.0)
) -> Summary:
    """Compute mean, standard deviation over seeds, and the mean's 95 % interval, clipped to ``bounds``."""
    # With ``spread`` the interval covers other seeds and images; without, it is t over seeds.
    values = list(values)
    centre = fmean(values)
    if len(values) < 2:
        return Summary(centre)
    variance = math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1)
    half = float((spread or Spread(variance / len(values), len(values) - 1)).half_width())
    interval = max(bounds[0], centre - half), min(bounds[1], centre + half)
    return Summary(centre, math.sqrt(variance), interval)


def spearman(first: Sequence[float], second: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Compute the rank correlation and its 95 % interval; no interval for fewer than five pairs.

    The interval is Fisher's with the variance (1 + ρ²/2)/(n − 3) of ranks (doi:10.1007/BF02294183).
    """
    from scipy.stats import norm, rankdata

    ranks = [rankdata(values) for values in (first, second)]
    if any(np.ptp(each) == 0 for each in ranks):
        return math.nan, None
    rho = float(np.corrcoef(*ranks)[0, 1])
    if len(first) < 5 or abs(rho) > 1 - 1e-12:
        return rho, None
    half = float(norm.ppf(0.975)) * math.sqrt((1 + rho**2 / 2) / (len(first) - 3))
    return rho, (math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half))


@dataclass(frozen=True)
class EntryScores:
    """One entry's scores by seed and, if stored for all of them, those of every test image."""

    scores: Scores
    images: Images | None = None


@dataclass(frozen=True)
class MeanDifference:
    """A difference of two entries' means, first minus second. Numbers, or arrays over pairs of entries."""

    difference: Any
    spread: Spread
    num_seeds: Any  # compared
    paired: Any  # whether both entries ran these seeds
    seed_variance: Any  # over seeds, of the difference of one seed each

    @property
    def testable(self) -> Any:
        """Whether there is an estimate of the variance."""
        spread = self.spread
        return (spread.freedom >= 1) & (spread.seeds + spread.residual + spread.images > 0)

    @property
    def p_value(self) -> Any:
        """Two-sided p-value of "no difference"; 1 where nothing can be tested."""
        return np.where(self.testable, self.spread.p_values(self.difference), 1.0)[()]

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """Compute one pair's interval with at least the coverage 1 − ``level``; None if untestable."""
        if not self.testable:
            return None
        half = float(self.spread.half_width(level))
        return self.difference - half, self.difference + half

    def __getitem__(self, place: int) -> MeanDifference:
        whole, spread = (
            {key: each[place].item() for key, each in vars(arrays).items() if isinstance(each, np.ndarray)}
            for arrays in (self, self.spread)
        )
        return replace(self, **whole, spread=replace(self.spread, **spread))


def compare_all(
    entries: Sequence[EntryScores], num_images: int | None = None, unpaired: np.ndarray | None = None
) -> MeanDifference:
    """Compare all pairs (0, 1), (0, 2), …, (1, 2), …: paired over common seeds, else by Welch's test.

    Pairing is valid because equal seeds share their split, order, augmentation and head, but for pairs of
    entries that are true in the square matrix ``unpaired``. One common seed, or one seed of an unpaired
    entry, gives no estimate of the variance, and nothing is testable. With per-image scores of both entries
    the test images count as a sample, too.

    Few seeds often agree by chance, and a variance of zero would make t infinite. Rounding top-1 to steps of
    1/N for N test images has the variance 1/(12 N²), and 1/(6 N²) for a difference of two: the least that is
    assumed. Three seeds that differ by one image each are thus not separated (p = 0.051), those that differ
    by two are. ``num_images`` is N, or None where scores are no counts: then zero variance is not testable.
    """
    first, second = np.triu_indices(len(entries), 1)
    rounding = 1 / (12 * num_images**2) if num_images else 0.0
    seeds = sorted({seed for each in entries for seed in each.scores})
    table = np.array([[each.scores.get(seed, np.nan) for seed in seeds] for each in entries])
    table = table.reshape(len(entries), len(seeds))
    own, common = _Moments.of(table), _Moments.of(table[first] - table[second])
    paired = common.count > 0
    if unpaired is not None:
        paired &= ~unpaired[first, second]
    own_variance = np.maximum(own.variance, rounding)
    share = own_variance / own.count
    both_shares, fewest = share[first] + share[second], np.minimum(own.count[first], own.count[second])
    with np.errstate(divide="ignore", invalid="ignore"):
        of_share = share**2 / (own.count - 1)
        welch = np.nan_to_num(both_shares**2 / (of_share[first] + of_share[second]), nan=1.0)
    paired_variance = np.maximum(common.variance, 2 * rounding)
    by_seed = np.where(paired, paired_variance / np.maximum(common.count, 1), both_shares)
    freedom = np.where(paired, common.count - 1, np.where(fewest > 1, welch, 0.0))
    return MeanDifference(
        difference=np.where(paired, common.mean, own.mean[first] - own.mean[second]),
        spread=Spread(by_seed, freedom, *_image_parts(entries, (first, second), common, paired)),
        num_seeds=np.where(paired, common.count, fewest),
        paired=paired,
        seed_variance=np.where(paired, paired_variance, own_variance[first] + own_variance[second]),
    )


@dataclass(frozen=True)
class _Moments:
    """Count, mean and variance (n − 1; 0 for one value) of each row of a table. NaN marks a missing value."""

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
        width = deviations.max(axis=1, initial=0.0) - deviations.min(axis=1, initial=0.0)
        return cls(count, mean, np.where((width > _ROUNDING) & (count > 1), variance, 0.0))


_Positions = tuple[np.ndarray, np.ndarray]  # first and second entry of each pair


def _image_parts(
    entries: Sequence[EntryScores], pairs: _Positions, common: _Moments, paired: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Estimate the images' fields of ``Spread`` for each pair; 0 where per-image scores are missing."""
    images: list[Images] = [each.images if each.images and len(each.images) > 1 else {} for each in entries]
    sizes = {len(scores) for by_seed in images for scores in by_seed.values()}
    assert len(sizes) <= 1, "per-image scores of different test splits"
    num_images = max(sizes, default=0)
    if num_images < 2:
        return np.zeros(len(paired)), np.zeros(len(paired)), 0
    parts = _paired_parts(images, pairs, common, num_images)
    if not paired.all():
        parts = np.where(paired, parts, _unpaired_parts(images, pairs, num_images))
    by_image, residual = np.where(np.isfinite(parts[0]), parts, 0.0)
    return by_image, residual, num_images - 1


def _paired_parts(images: list[Images], pairs: _Positions, common: _Moments, num_images: int) -> np.ndarray:
    """Estimate variances due to images and residual over the common seeds of each pair."""
    first, second = pairs
    seeds = [frozenset(by_seed) for by_seed in images]
    places_by_common: dict[frozenset[int], list[int]] = defaultdict(list)
    for place, (one, two) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        if len(shared := seeds[one] & seeds[two]) > 1:
            places_by_common[shared].append(place)
    # Σ_images (Σ_seeds d)² and Σ_images Σ_seeds d², with the difference d of one image in one seed.
    of_sums, of_each = np.full((2, len(first)), np.nan)
    for shared, places in places_by_common.items():
        rows = np.union1d(first[places], second[places])
        between_sums, between_each = _squared_distances([images[row] for row in rows], sorted(shared))
        at = np.searchsorted(rows, first[places]), np.searchsorted(rows, second[places])
        of_sums[places], of_each[places] = between_sums[at], between_each[at]
    num_seeds, size = common.count, common.count * num_images
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = size * common.mean**2
        by_image = np.maximum(of_sums / num_seeds - centre, 0.0)
        rest = np.maximum(of_each - centre - (size - num_images) * common.variance - by_image, 0.0)
        residual = rest / ((num_seeds - 1) * (num_images - 1)) / size
        due_to_images = np.maximum(by_image / (num_images - 1) / size - residual, 0.0)
    return np.stack([due_to_images, residual])


def _unpaired_parts(images: Sequence[Images], pairs: _Positions, num_images: int) -> np.ndarray:
    """Estimate the same for entries with other seeds: both were evaluated on the same images."""
    first, second = pairs
    means, residuals = np.full((len(images), num_images), np.nan), np.full(len(images), np.nan)
    for position, by_seed in enumerate(images):
        if by_seed:
            table = np.stack([by_seed[seed] for seed in sorted(by_seed)])
            means[position] = table.mean(axis=0)
            residuals[position] = mean_squares(table)[2] / table.size
    variances = np.maximum(_distances(means - means.mean(axis=1)[:, None]), 0.0) / (num_images - 1)
    residual = residuals[first] + residuals[second]
    return np.stack([np.maximum(variances[first, second] / num_images - residual, 0.0), residual])


def _squared_distances(images: Sequence[Images], seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Compute squared distances between entries' sums over seeds, and the sums of those of each seed."""
    num_images = len(images[0][seeds[0]])
    # Counts are whole numbers: single precision is exact as long as it can represent the largest.
    are_counts = all(by_seed[seed].dtype == bool for by_seed in images for seed in seeds)
    kind = np.float32 if are_counts and len(seeds) ** 2 * num_images < 2**24 else np.float64
    sums, of_each = np.zeros((len(images), num_images), kind), np.zeros((len(images), len(images)))
    for seed in seeds:
        values = np.stack([by_seed[seed] for by_seed in images]).astype(kind)
        of_each += _distances(values)
        sums += values
    return _distances(sums), of_each


def _distances(values: np.ndarray) -> np.ndarray:
    """Compute the squared Euclidean distance between every two rows."""
    products = (values @ values.T).astype(float)
    squares = np.diag(products)
    return np.asarray(squares[:, None] + squares[None, :] - 2 * products)


def holm_adjusted(p_values: np.ndarray) -> np.ndarray:
    """Adjust p-values by Holm's step-down procedure (Scandinavian J. Statistics 6, 1979)."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return adjusted


def better_and_worse(difference: np.ndarray, size: int, higher_is_better: bool) -> _Positions:
    """Return the positions of the better and of the worse entry of each pair among ``size`` entries."""
    first, second = np.triu_indices(size, 1)
    first_wins = (difference > 0) == higher_is_better
    return np.where(first_wins, first, second), np.where(first_wins, second, first)


def rank_ranges(better: np.ndarray, worse: np.ndarray, size: int) -> list[tuple[int, int]]:
    """Compute each entry's ranks: 1 + the number of entries shown to be better, n − that of worse ones."""
    lowest, highest = 1 + np.bincount(worse, minlength=size), size - np.bincount(better, minlength=size)
    return list(zip(lowest.tolist(), highest.tolist(), strict=True))


def mcnemar(only_first: int, only_second: int) -> float:
    """Compute McNemar's exact two-sided p-value from the images that only one of two models gets right."""
    from scipy.special import bdtr

    total = only_first + only_second
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), total, 0.5))) if total else 1.0
