"""How far a mean over seeds and test images may be off: both were drawn, and all seeds meet the same images.

The model is the two-way crossed one of multi-reader studies, x_si = µ + S_s + I_i + E_si: what seed s adds to
all images, what image i adds in all seeds, and the rest. The mean over n seeds and N images has the variance

    σ_S²/n + σ_I²/N + σ_E²/(nN) = (MS_S + MS_I − MS_E)/(nN)

with the mean squares of the two-way table. This is what a hierarchical bootstrap, which draws seeds and
images for all of them, spreads to, but for known factors: it shrinks the seeds' share by (n−1)/n and counts
σ_E² three times (Owen, Annals of Applied Statistics 1, 2007). So nothing need be drawn, and no digit depends
on chance.

The mean square of two to ten seeds is itself a rough guess. The bootstrap's percentiles trust it too much,
and so does t with Satterthwaite's degrees of freedom: with three seeds its 95 % interval misses in up to 8 %,
and at the 0.5 % that Holm asks for among five optimizers it errs five times too often
(``benchmarks/error_rates.py``). Banerjee's rule (Sankhyā 22, 1960) never errs more often than it says,
whatever σ_S, σ_I and σ_E are: each mean square gets the quantile of its own degrees of freedom,

    half width² = t(n−1)² · MS_S/(nN) + t(N−1)² · (MS_I − MS_E)/(nN),

which is t over seeds where images matter little, and the interval over images where seeds do.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from pugdft.leaderboard.entry import Summary

LEVEL = 0.05

"""Chance of any wrong separation in one group; 1 − LEVEL is the interval's coverage."""

# Quantiles are looked up by x with p = 2 Φ(−x), 0.01 apart; what lies beyond the last is reported as its p.
_STEP, _NUM_STEPS = 0.01, 1200

_LARGEST_FREEDOM = 10_000


@dataclass(frozen=True)
class Spread:
    """Squared standard errors of a mean, or of a difference of means, by where they come from.

    Numbers, or arrays of one entry a comparison.

    Attributes:
        seeds: variance between seeds over their number, what single images do to a seed included.
        freedom: its degrees of freedom, at least 1.
        images: of the drawing of the test images, the same in all seeds: no seed makes it smaller.
        residual: the part of ``seeds`` that follows from a finite number of images; no estimate of ``seeds``
            can be smaller, however alike a few seeds came out.
        image_freedom: test images less one; 0 where nothing is known of single images.
    """

    seeds: Any
    freedom: Any
    images: Any = 0.0
    residual: Any = 0.0
    image_freedom: int = 0

    def half_width(self, level: float = LEVEL) -> Any:
        """Half of the interval that covers with at least the probability 1 − ``level``."""
        from scipy.special import stdtrit

        image_quantile = float(stdtrit(self.image_freedom, 1 - level / 2)) if self.image_freedom else 0.0
        quantile = stdtrit(self.freedom, 1 - level / 2)
        return np.sqrt(_squared_width(self, quantile, image_quantile))

    def p_values(self, differences: Any) -> np.ndarray:
        """Two-sided, for no difference: the level whose interval just touches 0. 1 where nothing spreads."""
        sizes = np.abs(np.asarray(differences, dtype=float))
        seeds, freedom, images, residual = np.broadcast_arrays(
            self.seeds, self.freedom, self.images, self.residual, sizes
        )[:4]
        p_values = np.ones(sizes.shape)
        alone = (seeds > 0) & (images <= 0) & (residual <= 0)
        if alone.any():
            from scipy.special import stdtr

            p_values[alone] = 2 * stdtr(freedom[alone], -sizes[alone] / np.sqrt(seeds[alone]))
        freedom = np.minimum(freedom, _LARGEST_FREEDOM)
        crossed = ~alone & ((images > 0) | (residual > 0))
        # Whole degrees have tables; Welch's, which are seldom needed here, go by themselves.
        whole = np.where(freedom == np.floor(freedom), freedom, 0)
        for degrees in np.unique(whole[crossed]):
            where = crossed & (whole == degrees)
            part = Spread(
                seeds[where],
                degrees or freedom[where],
                images[where],
                residual[where],
                self.image_freedom,
            )
            p_values[where] = _touching(sizes[where], part)
        return p_values


def mean_squares(values: np.ndarray) -> tuple[float, float, float]:
    """MS of seeds, images and the rest of a table of seeds × images, two or more of each."""
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
    """Of the mean of a table of seeds × images, two or more of each."""
    seeds, images, residual = mean_squares(values)
    return Spread(
        seeds=seeds / values.size,
        freedom=len(values) - 1,
        images=max(0.0, images - residual) / values.size,
        residual=residual / values.size,
        image_freedom=values.shape[1] - 1,
    )


def _squared_width(spread: Spread, quantile: Any, image_quantile: Any) -> Any:
    by_seeds = np.maximum(spread.seeds * quantile**2, spread.residual * image_quantile**2)
    return by_seeds + spread.images * image_quantile**2


def _touching(sizes: np.ndarray, spread: Spread) -> np.ndarray:
    """p-values by bisection in the table; of one whole number of degrees of freedom, or of each its own."""
    from scipy.special import ndtr

    image_quantiles = _quantiles(spread.image_freedom)
    table = None if np.ndim(spread.freedom) else _quantiles(int(spread.freedom))

    def width(index: np.ndarray) -> np.ndarray:
        quantiles = _quantile(spread.freedom, index) if table is None else table[index]
        return np.sqrt(_squared_width(spread, quantiles, image_quantiles[index]))

    low, high = np.zeros(sizes.shape, dtype=int), np.full(sizes.shape, _NUM_STEPS)
    while np.any(high - low > 1):
        middle = (low + high) // 2
        inside = width(middle) <= sizes
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    below, above = width(low), width(high)
    # Between two entries the width grows by a factor; from 0 to the first one, linearly.
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.where(
            below > 0, np.log(sizes / below) / np.log(above / below), (sizes - below) / (above - below)
        )
    fraction = np.clip(np.nan_to_num(fraction), 0.0, 1.0)
    return 2 * np.asarray(ndtr(-_STEP * (low + fraction)))


@lru_cache(maxsize=256)
def _quantiles(degrees: int) -> np.ndarray:
    return _quantile(degrees, np.arange(_NUM_STEPS + 1))


def _quantile(degrees: Any, index: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr, stdtrit

    return -np.asarray(stdtrit(np.asarray(degrees, dtype=float), ndtr(-_STEP * index)))


Images = Mapping[int, np.ndarray]

"""The score of every test image by seed, in one order for all entries of a group."""


class ImageSums:
    """For all pairs of entries that have per-image scores, split by the seeds they have in common.

    Attributes:
        num_images: test images.

    Args:
        images: of each entry, None where they are not known.
        num_images: of each array.
    """

    def __init__(self, images: Sequence[Images | None], num_images: int) -> None:
        self.num_images = num_images
        self._images = images
        # Σ_images (Σ_seeds d)² and Σ_images Σ_seeds d² over common seeds; NaN where not known.
        self._of_sums = np.full((len(images), len(images)), np.nan)
        self._of_each = self._of_sums.copy()
        self._fill()

    def paired(
        self, first: int, num_seeds: np.ndarray, differences: np.ndarray, variances: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of each difference between ``first`` and a later entry: ``Spread.images`` and ``Spread.residual``.

        Args:
            first: position of an entry.
            num_seeds: common ones, for each later entry; so are the others.
            differences: mean over them.
            variances: over them, as they are.
        """
        later, images = slice(first + 1, None), self.num_images
        with np.errstate(divide="ignore", invalid="ignore"):
            centre = num_seeds * images * differences**2
            seeds = (num_seeds - 1) * images * variances
            by_image = np.maximum(self._of_sums[first, later] / num_seeds - centre, 0.0)
            rest = np.maximum(self._of_each[first, later] - centre - seeds - by_image, 0.0)
            residual = rest / ((num_seeds - 1) * (images - 1)) / (num_seeds * images)
            drawn = np.maximum(by_image / (images - 1) / (num_seeds * images) - residual, 0.0)
        known = (num_seeds > 1) & np.isfinite(drawn)
        return np.where(known, drawn, 0.0), np.where(known, residual, 0.0)

    def unpaired(self, first: int, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Likewise against entries with seeds of their own: the same images met both."""
        of_means, residuals = self._own_means
        residual = residuals[first] + residuals[others]
        drawn = np.maximum(of_means[first, others] / self.num_images - residual, 0.0)
        known = np.isfinite(drawn)
        return np.where(known, drawn, 0.0), np.where(known, residual, 0.0)

    @cached_property
    def _own_means(self) -> tuple[np.ndarray, np.ndarray]:
        """Variances over images of the difference of every two entries' means over their own seeds, and the
        residual's share of the variance of each entry's mean; NaN where not known.
        """
        rows = [position for position, images in enumerate(self._images) if images and len(images) > 1]
        means, residuals = np.empty((len(rows), self.num_images)), np.full(len(self._images), np.nan)
        for at, row in enumerate(rows):
            images = self._images[row] or {}
            values = np.stack([images[seed] for seed in sorted(images)])
            means[at] = values.mean(axis=0)
            residuals[row] = mean_squares(values)[2] / values.size
        centres = means.mean(axis=1)
        variances = np.full(self._of_sums.shape, np.nan)
        squares = _distances(means - centres[:, None])
        variances[np.ix_(rows, rows)] = np.maximum(squares, 0.0) / (self.num_images - 1)
        return variances, residuals

    def _fill(self) -> None:
        """One product of matrices for each set of seeds that some two entries have in common."""
        by_seeds: dict[frozenset[int], list[int]] = defaultdict(list)
        for position, images in enumerate(self._images):
            if images and len(images) > 1:
                by_seeds[frozenset(images)].append(position)
        patterns = list(by_seeds)
        blocks: dict[frozenset[int], list[tuple[frozenset[int], frozenset[int]]]] = defaultdict(list)
        for number, one in enumerate(patterns):
            for two in patterns[number:]:
                if len(one & two) > 1:
                    blocks[one & two].append((one, two))
        for common, pairs in blocks.items():
            rows = sorted({row for pair in pairs for pattern in pair for row in by_seeds[pattern]})
            place = {row: at for at, row in enumerate(rows)}
            of_sums, of_each = self._squared_distances(rows, sorted(common))
            for one, two in pairs:
                here = np.ix_(by_seeds[one], by_seeds[two])
                there = np.ix_([place[row] for row in by_seeds[one]], [place[row] for row in by_seeds[two]])
                for whole, part in ((self._of_sums, of_sums), (self._of_each, of_each)):
                    whole[here] = part[there]
                    whole.T[here] = part[there]

    def _squared_distances(self, rows: Sequence[int], seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Between entries: of their sums over seeds, and of every seed's images, added up."""
        images = [known for row in rows if (known := self._images[row])]
        # Counts are whole numbers: single precision is exact as long as it has room for them.
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
    products = (values @ values.T).astype(float)
    own = np.diag(products)
    return np.asarray(own[:, None] + own[None, :] - 2 * products)


Scores = Mapping[int, float]

# Scores differ by at least one image in the test split; a spread below this is floating point.
_ROUNDING = 1e-9

_FIELDS = ("difference", "seed_variance", "seeds", "freedom", "images", "residual")

_ROW = np.dtype([("num_seeds", np.int32), *((name, float) for name in _FIELDS)])


@dataclass(frozen=True)
class Sample:
    """One entry's scores by seed and, where stored, those of every test image, whose means the scores are.

    ``images`` has an array for each seed of ``scores``, or it is None.
    """

    scores: Scores
    images: Images | None = None


@dataclass(frozen=True)
class Pairs:
    """Comparisons of all pairs i < j of ``size`` entries, (0, 1), (0, 2), …, (1, 2), …; first minus second.

    Attributes:
        difference: over common seeds; of the means where none is common.
        spread: of ``difference``; meaningless where not ``testable``.
        testable: whether there is any spread to hold the difference against.
        num_seeds: that were compared: common ones, else of the entry with fewer.
        seed_variance: of the difference that one more seed each would bring.
    """

    size: int
    difference: np.ndarray
    spread: Spread
    testable: np.ndarray
    num_seeds: np.ndarray
    seed_variance: np.ndarray

    @cached_property
    def p_values(self) -> np.ndarray:
        """Two-sided, for "no difference"; 1 where nothing can be tested."""
        return np.where(self.testable, self.spread.p_values(self.difference), 1.0)

    def first_and_second(self) -> tuple[np.ndarray, np.ndarray]:
        """The positions i and j of each pair."""
        return np.triu_indices(self.size, 1)

    def of_entry(self, entry: int) -> tuple[np.ndarray, np.ndarray]:
        """The other entries, and where the pairs of ``entry`` with each of them stand."""
        others = np.delete(np.arange(self.size), entry)
        low, high = np.minimum(entry, others), np.maximum(entry, others)
        return others, low * self.size - low * (low + 1) // 2 + high - low - 1


def compare_all(
    samples: Sequence[Sample], num_images: int | None = None, unpaired: np.ndarray | None = None
) -> Pairs:
    """Paired over common seeds; Welch's way where no seed is common and each has two or more.

    Pairing is right because equal seeds share their split, order, augmentation and head. With a single
    common seed, or a single seed on one side, there is no estimate of the spread and nothing is testable.
    With per-image scores on both sides the test images count as drawn, too (see ``crossed``).

    A spread of zero over seeds would make t infinite, yet a few equal differences are a common accident:
    top-1 moves in steps of 1/N for N test images. The rounding to such a step alone has the variance
    1/(12 N²), that of a difference of two top-1 is 1/(6 N²), and no estimate of a variance is taken to be
    smaller than that. Three seeds that differ by one image each are thus not separated (p = 0.051), by two
    images they are. Where N is unknown, or the score is no count of images, a spread of zero is no test.

    Args:
        samples: of each entry.
        num_images: N where scores are counts over N; else None.
        unpaired: square, true where equal seeds do not share what pairing needs.
    """
    table = _ScoreTable(samples, num_images, unpaired)
    sums = _image_sums(samples)
    pairs = np.zeros(len(samples) * (len(samples) - 1) // 2, _ROW)
    begin = 0
    for first in range(len(samples)):
        row = _row(table, sums, first)
        pairs[begin : begin + len(row)] = row
        begin += len(row)
    spread = Spread(
        pairs["seeds"],
        pairs["freedom"],
        pairs["images"],
        pairs["residual"],
        sums.num_images - 1 if sums else 0,
    )
    return Pairs(
        size=len(samples),
        difference=pairs["difference"],
        spread=spread,
        testable=(spread.freedom >= 1) & (spread.seeds + spread.residual + spread.images > 0),
        num_seeds=pairs["num_seeds"],
        seed_variance=pairs["seed_variance"],
    )


class _ScoreTable:
    """Scores as entries × seeds, NaN where a seed is missing, with each entry's own mean and variance."""

    def __init__(
        self, samples: Sequence[Sample], num_images: int | None, unpaired: np.ndarray | None
    ) -> None:
        columns = {seed: at for at, seed in enumerate(sorted({s for each in samples for s in each.scores}))}
        self.scores = np.full((len(samples), len(columns)), np.nan)
        for row, sample in enumerate(samples):
            for seed, score in sample.scores.items():
                self.scores[row, columns[seed]] = score
        self.unpaired = unpaired
        self.rounding = 1 / (12 * num_images**2) if num_images else 0.0
        self.num_seeds, self.means, variances = _moments(self.scores)
        self.variances = np.maximum(variances, self.rounding)


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, mean and variance (n − 1) of each row's numbers, NaN being none.

    The variance of less than two numbers is 0; so is that of numbers that only floating point spreads.
    """
    present = ~np.isnan(values)
    count = present.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(present, values, 0.0).sum(axis=1) / count
        deviations = np.where(present, values - mean[:, None], 0.0)
        variance = (deviations**2).sum(axis=1) / (count - 1)
    width = np.ptp(deviations, axis=1) if values.shape[1] else np.zeros(len(values))
    return count, mean, np.where((width > _ROUNDING) & (count > 1), variance, 0.0)


def _row(table: _ScoreTable, sums: ImageSums | None, first: int) -> np.ndarray:
    """Entry ``first`` against all that follow it."""
    later = slice(first + 1, None)
    own = np.flatnonzero(~np.isnan(table.scores[first]))
    count, mean, variance = _moments(table.scores[first, own] - table.scores[later, own])
    row = np.zeros(len(mean), _ROW)
    row["difference"], row["num_seeds"], row["freedom"] = mean, count, count - 1
    row["seed_variance"] = np.maximum(variance, 2 * table.rounding)
    row["seeds"] = row["seed_variance"] / np.maximum(count, 1)
    if sums is not None:
        row["images"], row["residual"] = sums.paired(first, count, mean, variance)
    without_pairs = count == 0
    if table.unpaired is not None:
        without_pairs |= table.unpaired[first, later]
    if without_pairs.any():
        others = np.flatnonzero(without_pairs)
        row[others] = _welch(table, sums, first, others + first + 1)
    return row


def _welch(table: _ScoreTable, sums: ImageSums | None, first: int, others: np.ndarray) -> np.ndarray:
    """Entry ``first`` against entries whose seeds are not its own."""
    row = np.zeros(len(others), _ROW)
    one, two = table.num_seeds[first], table.num_seeds[others]
    shares = table.variances[first] / one, table.variances[others] / two
    row["difference"] = table.means[first] - table.means[others]
    row["num_seeds"] = fewer = np.minimum(one, two)
    row["seed_variance"] = table.variances[first] + table.variances[others]
    row["seeds"] = shares[0] + shares[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = row["seeds"] ** 2 / (shares[0] ** 2 / (one - 1) + shares[1] ** 2 / (two - 1))
    row["freedom"] = np.where(fewer > 1, np.nan_to_num(freedom, nan=1.0), 0.0)
    if sums is not None:
        row["images"], row["residual"] = sums.unpaired(first, others)
    return row


def _image_sums(samples: Sequence[Sample]) -> ImageSums | None:
    """None unless two entries have the scores of the same number of images, two or more."""
    sizes = {len(array) for each in samples for array in (each.images or {}).values()}
    assert len(sizes) <= 1, "per-image scores of different test splits"
    if sum(each.images is not None for each in samples) < 2 or max(sizes, default=0) < 2:
        return None
    return ImageSums([each.images for each in samples], sizes.pop())


__all__ = ["LEVEL", "Comparison", "Sample", "Summary", "compare", "holm", "mean", "rank_ranges", "summarize"]


@dataclass(frozen=True)
class Comparison:
    """First minus second.

    Attributes:
        p_value: two-sided, of "no difference"; 1 where nothing can be tested.
        testable: whether there is any spread to hold the difference against.
        num_seeds: that were compared.
        paired: whether those are common to both.
        spread: of the difference.
        seed_variance: of the difference that one more seed each would bring.
    """

    difference: float
    p_value: float
    testable: bool
    num_seeds: int
    paired: bool
    spread: Spread
    seed_variance: float

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """Covers the true difference with at least 1 − ``level``; None if nothing can be tested."""
        if not self.testable:
            return None
        half = float(self.spread.half_width(level))
        return self.difference - half, self.difference + half


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean of at least one number."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


def summarize(
    scores: Sequence[float] | Scores,
    spread: Spread | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Summary:
    """Mean, standard deviation over seeds, and the mean's 95 % interval, clipped to ``bounds``.

    Args:
        scores: by seed, or in any order.
        spread: of the mean over seeds and test images, for an interval that speaks of other seeds and other
            images (see ``crossed``); without, it is t over seeds, for these images.
        bounds: that no score can leave.
    """
    values = list(scores.values()) if isinstance(scores, Mapping) else list(scores)
    centre = mean(values)
    if len(values) < 2:
        return Summary(centre)
    variance = math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1)
    half = float((spread or Spread(variance / len(values), len(values) - 1)).half_width())
    interval = max(bounds[0], centre - half), min(bounds[1], centre + half)
    return Summary(centre, math.sqrt(variance), interval)


def compare(
    first: Sample | Scores,
    second: Sample | Scores,
    num_images: int | None = None,
    unpaired: bool = False,
) -> Comparison:
    """One pair, by the rules of :func:`pugdft.leaderboard.stats.compare_all`.

    Args:
        first: scores by seed, with those of each image or without.
        second: likewise.
        num_images: that each score is a fraction of, None if unknown or if it is no fraction.
        unpaired: equal seeds do not share what pairing needs.
    """
    one, two = (each if isinstance(each, Sample) else Sample(each) for each in (first, second))
    pairs = compare_all([one, two], num_images, np.full((2, 2), True) if unpaired else None)
    spread = pairs.spread
    return Comparison(
        difference=float(pairs.difference[0]),
        p_value=float(pairs.p_values[0]),
        testable=bool(pairs.testable[0]),
        num_seeds=int(pairs.num_seeds[0]),
        paired=bool(one.scores.keys() & two.scores.keys()) and not unpaired,
        spread=Spread(
            float(spread.seeds[0]),
            float(spread.freedom[0]),
            float(spread.images[0]),
            float(spread.residual[0]),
            spread.image_freedom,
        ),
        seed_variance=float(pairs.seed_variance[0]),
    )


def rank_ranges(
    samples: Sequence[Sample | Scores], num_images: int | None = None, higher_is_better: bool = True
) -> list[tuple[int, int]]:
    """For each entry the best and the worst rank (1 = best score) that the data allow.

    Args:
        samples: of each entry.
        num_images: images that each score is a fraction of, None if unknown.
        higher_is_better: which end of the scores rank 1 is.
    """
    pairs = compare_all([s if isinstance(s, Sample) else Sample(s) for s in samples], num_images)
    return ranges_of(pairs, holm_adjusted(pairs.p_values) <= LEVEL, higher_is_better)


def ranges_of(pairs: Pairs, separated: np.ndarray, higher_is_better: bool = True) -> list[tuple[int, int]]:
    """The best rank is 1 + the separated better entries, the worst is n − the separated worse ones."""
    first, second = (each[separated] for each in pairs.first_and_second())
    first_wins = (pairs.difference[separated] > 0) == higher_is_better
    winners, losers = np.where(first_wins, first, second), np.where(first_wins, second, first)
    num_better = np.bincount(losers, minlength=pairs.size)
    num_worse = np.bincount(winners, minlength=pairs.size)
    lows, highs = 1 + num_better, pairs.size - num_worse
    return list(zip(lows.tolist(), highs.tolist(), strict=True))


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which hypotheses Holm's step-down procedure rejects."""
    return [bool(p_value <= level) for p_value in holm_adjusted(np.asarray(p_values, dtype=float))]


def holm_adjusted(p_values: np.ndarray) -> np.ndarray:
    """p-values that may each be held against the level of all (Scandinavian J. Statistics 6, 1979).

    The k-th smallest of m is multiplied by m − k + 1, and none is less than that of a smaller one.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return adjusted
