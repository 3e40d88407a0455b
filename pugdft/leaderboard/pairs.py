"""Every two entries of a group against each other, as arrays: thousands of entries make millions of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pugdft.leaderboard.crossed import Spread
from pugdft.leaderboard.image_sums import Images, ImageSums

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
