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

Two entries without common seeds have a variance between seeds each, and each gets the quantile of its own
number of seeds: Welch's test (Biometrika 34, 1947) trusts the smaller group too much where it spreads more.
Entries that share some of their seeds give two independent estimates of one difference, from the pairs and
from the seeds that only one of them ran. They are averaged with weights that the numbers of seeds alone fix,
so that no score can move them, and the rule above holds for the three variances.
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
_FEW_IMAGES = 10  # right or wrong ones that tell too little of how alike the networks of several seeds are
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
    others: tuple[tuple[Any, Any], ...] = ()  # further independent variances like seeds, with their freedom

    @property
    def total(self) -> Any:
        """The variance between seeds, of all parts."""
        return self.seeds + sum(variance for variance, _ in self.others)

    def half_width(self, level: float = LEVEL) -> Any:
        """Compute half the width of the interval with at least the coverage 1 − ``level``."""
        return np.sqrt(sum(self._squares(1 - level / 2)))

    def _squares(self, level: Any) -> tuple[Any, Any]:
        """Compute the parts of the squared half width, due to seeds and to images, at a one-sided level."""
        from scipy.special import stdtrit

        # Without per-image scores the image quantile is of no matter: it is multiplied by 0.
        return self._parts(level, stdtrit(max(1, self.image_freedom), level))

    def p_values(self, differences: Any) -> np.ndarray:
        """Compute two-sided p-values of "no difference": the level at which the interval just reaches 0."""
        from scipy.special import stdtr

        sizes = np.abs(np.asarray(differences, dtype=float))
        parts = [(self.seeds, self.freedom), *self.others]
        flat = [each for part in parts for each in part]
        images, residual, *flat = (
            np.broadcast_to(each, sizes.shape) for each in (self.images, self.residual, *flat)
        )
        p_values = np.ones(sizes.shape)
        further = sum(flat[2::2], np.zeros(sizes.shape))
        searched = (images > 0) | (residual > 0) | (further > 0)
        plain = (flat[0] > 0) & ~searched
        p_values[plain] = 2 * stdtr(flat[1][plain], -sizes[plain] / np.sqrt(flat[0][plain]))
        if searched.any():
            variances = [each[searched] for each in flat[::2]]
            freedoms = [np.minimum(each[searched], _MOST_FREEDOM).astype(float) for each in flat[1::2]]
            (seeds, freedom), *others = zip(variances, freedoms, strict=True)
            others = [each for each in others if each[0].any()]  # quantiles are slow
            part = Spread(
                seeds, freedom, images[searched], residual[searched], self.image_freedom, tuple(others)
            )
            p_values[searched] = part._search_p_values(sizes[searched])
        return p_values

    def _parts(self, level: Any, image_quantile: Any) -> tuple[Any, Any]:
        from scipy.special import stdtrit

        by_seeds = self.seeds * stdtrit(self.freedom, level) ** 2
        for variance, freedom in self.others:
            by_seeds = by_seeds + variance * stdtrit(freedom, level) ** 2
        return np.maximum(by_seeds, self.residual * image_quantile**2), self.images * image_quantile**2

    def _search_p_values(self, sizes: np.ndarray) -> np.ndarray:
        """Find p-values by bisection over the grid, for all comparisons at once."""
        from scipy.special import ndtr

        levels, image_quantiles = _grid(max(1, self.image_freedom))

        def half_width(steps: np.ndarray) -> Any:
            return np.sqrt(sum(self._parts(levels[steps], image_quantiles[steps])))

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
    values: Iterable[float],
    spread: Spread | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    num_images: int | None = None,
) -> Summary:
    """Compute mean, standard deviation over seeds, and the mean's 95 % interval, clipped to ``bounds``.

    With ``spread`` the interval covers other seeds and images; without, it is t over seeds. ``num_images`` is
    the number of test images of which each value is a share: see :func:`share_interval`.
    """
    values = list(values)
    centre = fmean(values)
    if len(values) < 2:
        return Summary(centre)
    variance = math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1)
    if spread is not None and num_images:
        return Summary(centre, math.sqrt(variance), share_interval(centre, spread))
    least = 1 / (12 * num_images**2) if num_images else 0.0
    half = float((spread or Spread(max(variance, least) / len(values), len(values) - 1)).half_width())
    interval = max(bounds[0], centre - half), min(bounds[1], centre + half)
    return Summary(centre, math.sqrt(variance), interval)


def share_interval(share: float, spread: Spread, level: float = LEVEL) -> tuple[float, float]:
    """Compute the interval of a share of test images that also holds where nearly all, or none, are right.

    The variance due to N images is proportional to π(1 − π) of the true share π, and near an end the share
    that was found says little about π. So the interval has all π with

        (|share − π| − 1/(2N))² ≤ S + c · π(1 − π),   c = max(I/(share(1 − share)), w · t(N−1)²/N),

    S and I being the parts of the squared half width due to seeds and to images. That is Wilson's score
    interval with the correction for whole images (Newcombe, Statistics in Medicine 17, 1998), of as many
    images as carry the same variance. Where fewer than ten images are right, or wrong, that number cannot be
    told: w is 1, and the interval is one network's. With more of them, w falls as ten over their number.
    """
    from scipy.special import stdtrit

    num_images = spread.image_freedom + 1
    by_seeds, by_images = map(float, spread._squares(1 - level / 2))
    odds = share * (1 - share)
    rarer = num_images * min(share, 1 - share)
    known = min(1.0, _FEW_IMAGES / rarer) if rarer > 0 else 1.0
    least = known * float(stdtrit(spread.image_freedom, 1 - level / 2)) ** 2 / num_images
    factor = max(by_images / odds, least) if odds > 0 else least

    def lower(found: float) -> float:
        found = max(0.0, found - 0.5 / num_images)
        middle = 2 * found + factor
        inner = middle**2 - 4 * (1 + factor) * (found**2 - by_seeds)
        return (middle - math.sqrt(max(0.0, inner))) / (2 * (1 + factor))

    return max(0.0, min(share, lower(share))), min(1.0, max(share, 1 - lower(1 - share)))


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
    num_seeds: Any  # compared, of the entry with fewer
    paired: Any  # whether seeds of both entries are pairs
    seed_variance: Any  # over seeds, of the difference of one seed each
    share: Any = 1.0  # weight of the pairs in the difference; the rest is of seeds that one entry alone ran
    num_pairs: Any = 0  # common seeds that count

    @property
    def testable(self) -> Any:
        """Whether there is an estimate of the variance."""
        spread = self.spread
        return (spread.freedom >= 1) & (spread.total + spread.residual + spread.images > 0)

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
        # A part without a variance is none.
        others = tuple(
            (variance[place].item(), freedom[place].item())
            for variance, freedom in self.spread.others
            if variance[place] > 0
        )
        return replace(self, **whole, spread=replace(self.spread, **spread, others=others))


def compare_all(
    entries: Sequence[EntryScores], num_images: int | None = None, unpaired: np.ndarray | None = None
) -> MeanDifference:
    """Compare all pairs (0, 1), (0, 2), …, (1, 2), …: paired over common seeds, unpaired over the others.

    Pairing is valid because equal seeds share their split, order, augmentation and head, but for pairs of
    entries that are true in the square matrix ``unpaired``. One common seed, or one seed of an unpaired
    entry, gives no estimate of the variance. Where that is all there is, nothing is testable. With per-image
    scores of both entries the test images count as a sample, too.

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
    present = ~np.isnan(table)
    shared = present[first] & present[second]
    if unpaired is not None:
        shared &= ~unpaired[first, second][:, None]
    common = _Moments.of(np.where(shared, table[first] - table[second], np.nan))
    one, two = (_Moments.of(np.where(shared, np.nan, table[each])) for each in (first, second))
    share = _paired_share(common.count, one.count, two.count)
    paired, is_alone, is_mixed = share > 0, share == 0, (share > 0) & (share < 1)
    fewest = np.minimum(one.count, two.count)
    paired_variance = np.maximum(common.variance, 2 * rounding)
    own = [np.maximum(each.variance, rounding) for each in (one, two)]
    with np.errstate(divide="ignore", invalid="ignore"):
        of_common = share**2 * paired_variance / common.count
        of_one, of_two = (
            (1 - share) ** 2 * each / side.count for each, side in zip(own, (one, two), strict=True)
        )
        alone = np.where(share < 1, (1 - share) * (one.mean - two.mean), 0.0)
        difference = np.where(paired, share * common.mean, 0.0) + alone
    freedoms = [np.maximum(each.count - 1, 1) for each in (one, two)]
    spread = Spread(
        np.where(is_alone, of_one, of_common),
        np.where(is_alone, np.where(fewest > 1, freedoms[0], 0), common.count - 1),
        *_image_parts(entries, (first, second), common, share),
        ((np.where(is_mixed, of_one, 0.0), freedoms[0]), (np.where(share < 1, of_two, 0.0), freedoms[1])),
    )
    num_seeds = np.where(paired, common.count, 0) + np.where(share < 1, fewest, 0)
    variance = np.where(
        is_alone, own[0] + own[1], np.where(is_mixed, spread.total * num_seeds, paired_variance)
    )
    return MeanDifference(
        difference, spread, num_seeds, paired, variance, share, np.where(paired, common.count, 0)
    )


def _paired_share(num_common: np.ndarray, num_first: np.ndarray, num_second: np.ndarray) -> np.ndarray:
    """Choose the weight of the pairs by numbers of seeds, such that the interval is short.

    It is the shortest if all seeds spread alike and the level is the one that Holm asks for among ten pairs.
    Numbers below two give no estimate of a variance, and no weight.
    """
    from scipy.special import stdtrit

    def square(count: np.ndarray) -> np.ndarray:
        """The squared half width of a mean of so many seeds that spread by one."""
        known = np.maximum(count, 2)
        return np.where(count > 1, stdtrit(known - 1, 1 - LEVEL / 20) ** 2 / known, np.inf)

    paired, alone = 2 * square(num_common), square(num_first) + square(num_second)
    with np.errstate(invalid="ignore"):
        share = np.where(np.isinf(alone), 1.0, np.where(np.isinf(paired), 0.0, alone / (alone + paired)))
    return np.where(num_common > 0, share, 0.0)


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
    entries: Sequence[EntryScores], pairs: _Positions, common: _Moments, share: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Estimate the images' fields of ``Spread`` for each pair; 0 where per-image scores are missing."""
    images: list[Images] = [each.images if each.images and len(each.images) > 1 else {} for each in entries]
    sizes = {len(scores) for by_seed in images for scores in by_seed.values()}
    assert len(sizes) <= 1, "per-image scores of different test splits"
    num_images = max(sizes, default=0)
    if num_images < 2:
        return np.zeros(len(share)), np.zeros(len(share)), 0
    parts = _paired_parts(images, pairs, common, num_images)
    if (share == 0).any():
        parts = np.where(share == 0, _unpaired_parts(images, pairs, num_images), parts)
    is_whole = (share == 1) | (common.count == 0)
    subsets = _Subsets(images)
    for place in np.flatnonzero(~is_whole):
        one, two = pairs[0][place], pairs[1][place]
        if images[one] and images[two]:
            parts[:, place] = subsets.parts(one, two, float(share[place]), float(parts[1, place]))
    by_image, residual = np.where(np.isfinite(parts[0]), parts, 0.0)
    return by_image, residual, num_images - 1


class _Subsets:
    """Per-image scores of entries that share some of their seeds."""

    def __init__(self, images: Sequence[Images]) -> None:
        self._images = images
        self._known: dict[tuple[int, frozenset[int]], tuple[np.ndarray, float]] = {}

    def parts(self, one: int, two: int, share: float, paired_residual: float) -> tuple[float, float]:
        """Estimate the images' fields of ``Spread`` for a pair whose common seeds weigh ``share``."""
        first, second = (frozenset(self._images[each]) for each in (one, two))
        of_one, of_two = self._of(one, first - second), self._of(two, second - first)
        difference = (1 - share) * (of_one[0] - of_two[0])
        residual = (1 - share) ** 2 * (of_one[1] + of_two[1])
        if share > 0:
            common = [self._of(each, first & second)[0] for each in (one, two)]
            difference = difference + share * (common[0] - common[1])
            residual += share**2 * paired_residual
        by_image = float(np.var(difference, ddof=1)) / len(difference)
        return max(0.0, by_image - residual), residual

    def _of(self, entry: int, seeds: frozenset[int]) -> tuple[np.ndarray, float]:
        """An entry's mean over some seeds for each image, and that mean's variance due to the residual."""
        if (entry, seeds) not in self._known:
            table = np.stack([self._images[entry][seed] for seed in sorted(seeds)])
            residual = mean_squares(table)[2] / table.size if len(table) > 1 else 0.0
            self._known[entry, seeds] = table.mean(axis=0), residual
        return self._known[entry, seeds]


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


def looks_factor(looks: int, level: float = LEVEL) -> float:
    """Compute by how much p-values are multiplied at each of several looks, so that all err with ``level``.

    Pocock's constant boundary (Biometrika 64, 1977): at each of K looks after equal numbers of seeds, one
    nominal level. Its sum of independent normal steps is integrated look by look (Armitage, McPherson
    and Rowe, J. Royal Statistical Society A 132, 1969).
    """
    if looks <= 1:
        return 1.0
    from scipy.optimize import brentq
    from scipy.special import ndtr, ndtri

    low, high = -float(ndtri(level / 2)), -float(ndtri(level / 2 / looks))
    bound = brentq(lambda bound: _crossing(bound, looks) - level, low, high, xtol=1e-6)
    return level / (2 * float(ndtr(-bound)))


def _crossing(bound: float, looks: int) -> float:
    """The probability that a sum of k standard normal steps leaves ±bound·√k at one of the first looks."""
    from scipy.special import ndtr

    steps = np.linspace(-1, 1, 401)
    places = bound * steps
    weights = np.gradient(places)
    weights[[0, -1]] /= 2
    inside = np.exp(-(places**2) / 2) / math.sqrt(2 * math.pi)
    crossed = 2 * float(ndtr(-bound))
    for number in range(2, looks + 1):
        limit = bound * math.sqrt(number)
        crossed += float((weights * inside) @ (ndtr(places - limit) + ndtr(-places - limit)))
        further = limit * steps
        kernel = np.exp(-((further[:, None] - places) ** 2) / 2) / math.sqrt(2 * math.pi)
        inside, places = kernel @ (weights * inside), further
        weights = np.gradient(places)
        weights[[0, -1]] /= 2
    return crossed


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
